"""The texts of an answer or of options, out of whatever a table, a data set or a script holds them in.

Every way in goes through here: rows of parquet files and data sets, questions files, benchmarks, Python.
Knows values only: no files, no columns, no metrics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from m3score.common.errors import M3ScoreError

_TEXT_KEYS = ("answer", "text")
"""Of an object: where VQA data sets, and those in the manner of SQuAD, keep its text."""
_SHOWN = 120
_EXACT = 2**53
"""Up to here a float holds every whole number."""


def is_missing(value: Any) -> bool:
    """Whether there is no value: None, NaN, pandas.NA or NaT. A text is always one, "None" and "nan" too."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | Decimal) and math.isnan(value)


def read_texts(value: Any, what: str = "answers") -> tuple[str, ...]:
    """The texts in a cell.

    Args:
        value: nothing (missing, or an empty text), a text, a number, an object with the key "answer" or
            "text" (as in VQAv2's annotations), or a list, tuple or array of these. The object may hold a list
            under its key (older versions of the datasets library make one of a list of objects). A whole
            number is written without a fraction, since a column of them becomes one of floats as soon as a
            value is missing. What is missing within a list is left out.
        what: of the column, for errors.

    Raises:
        M3ScoreError: anything else. The message shows the value.
    """
    if type(value) is tuple and all(type(one) is str for one in value):
        return value
    held = _of_object(_unwrapped(value), what)
    if is_missing(held) or (isinstance(held, str) and held == ""):
        return ()
    items = held if isinstance(held, list | tuple) else (held,)
    texts = (_of_object(_unwrapped(one), what) for one in items)
    return tuple(_text(one, value, what) for one in texts if not is_missing(one))


def read_options(value: Any) -> tuple[str, ...]:
    """The texts of options A, B, C ...: as read_texts, but for a gap among them, which would shift letters.

    Raises:
        M3ScoreError: a missing option before one that is there; anything that read_texts refuses.
    """
    held = _unwrapped(value)
    if isinstance(held, list | tuple):
        missing = [is_missing(one) for one in held]
        count = len(held) - missing[::-1].index(False) if False in missing else 0
        if any(missing[:count]):
            raise M3ScoreError(f"an option is missing among {_shown(value)}.")
    return read_texts(value, "options")


def _of_object(value: Any, what: str) -> Any:
    """What an object holds as its text; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    key = next((key for key in _TEXT_KEYS if key in value), None)
    if key is None:
        raise _not_understood(value, what)
    return _unwrapped(value[key])


def _text(one: Any, whole: Any, what: str) -> str:
    text = plain_text(one)
    if text is None:
        raise _not_understood(whole, what)
    return text


def plain_text(value: Any) -> str | None:
    """A text as it is, a number as one would write it (2014.0 is "2014"); None for anything else."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        return None
    whole = value == int(value) and not (isinstance(value, float) and abs(value) > _EXACT)
    return str(int(value)) if whole else str(value)


def _unwrapped(value: Any) -> Any:
    """What numpy or pandas holds, as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _not_understood(value: Any, what: str) -> M3ScoreError:
    keys = " or ".join(map(repr, _TEXT_KEYS))
    return M3ScoreError(
        f"{what!r} has to hold a text, a number, an object with {keys}, or a list of these, not "
        f"{_shown(value)}."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
