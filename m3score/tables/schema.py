"""What the score and trace tables hold: their columns, the order of these, and the kind of each.

Knows frames, not files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pandas as pd

    Rows: TypeAlias = pd.DataFrame | Iterable[Any]
    """A frame, or rows: mappings, or values with to_dict()."""

_SCORE_KINDS = {
    "rank": "int",
    "path": "text",
    "complexity": "float",
    "effective_tokens": "float",
    "required_tokens": "int",
    "judged_by": "text?",
    "solved": "bool",
    "monotone": "bool",
    "questions": "int",
    "cut_questions": "int",
    "width": "int",
    "height": "int",
    "error": "text?",
}
_TRACE_KINDS = {
    "image": "text",
    "question_id": "int",
    "question": "text",
    "tokens": "int",
    "visual_tokens": "int",
    "answer": "text",
    "agreement": "float",
    "consistent": "bool",
    "metric": "text?",
    "metric_score": "float",
    "correct": "bool",
    "answer_logprob": "float",
    "cut": "bool",
    "references": "list",
    "options": "list",
    "model": "text",
    "width": "int",
    "height": "int",
    "agreement_from": "text?",
    "error": "text?",
}
SCORE_COLUMNS: tuple[str, ...] = tuple(_SCORE_KINDS)
"""Columns of a score table; one `agreement_T` for each T of the model's ladder follows `monotone`."""
TRACE_COLUMNS: tuple[str, ...] = tuple(_TRACE_KINDS)
"""Columns of a trace table: those of traces.TraceRow, and `error` for an image that could not be traced.

Where coarse answers were not asked for, `answer` is empty and `answer_logprob` absent in rows whose answer
is known only to differ from the finest scale's; `consistent` is then false. `cut` marks answers that reached
max_new_tokens; in a score table `cut_questions` counts the questions with one.
"""

_AGREEMENT = re.compile(r"agreement_(\d+)")
_SHARE = re.compile(r"(agreement|kept)_\d+")


@dataclass(frozen=True)
class TableKind:
    """Which columns a table has, of what kind (text, text? that may be absent, int, float, bool,
    list, json: an object, which is text but in jsonl)."""

    name: str
    kinds: Mapping[str, str]
    required: tuple[str, ...]
    optional: Mapping[str, str] = field(default_factory=dict)
    """Columns that only some such tables have: they stand behind the others, before `error`."""

    def kind(self, column: str) -> str:
        """The kind of a column: a scale's agreement is a float, other extra columns are left as they are."""
        known = self.kinds.get(column) or self.optional.get(column)
        return known or ("float" if _SHARE.fullmatch(column) else "any")


_SCORER_KINDS = {
    "scorer": "text?",
    "distinct_tokens": "float",
    "reading_tokens": "float",
    "letter_height": "float",
    "predicted_tokens": "int",
    "caption": "text",
    "cat_score": "float",
    "cat_compression": "int",
    "alit_tokens": "int",
    "alit_error": "float",
    "visual_tokens": "int",
    "model": "text?",
    "ladder": "text?",
    "agreement_from": "text?",
}
SCORES = TableKind("score table", _SCORE_KINDS, ("path", "complexity"), optional=_SCORER_KINDS)
PREDICTIONS = TableKind(
    "prediction table",
    {
        "path": "text",
        "predicted_tokens": "int",
        "complexity": "float",
        "certified": "bool",
        "promise": "text?",
        "reason": "text?",
        "error": "text?",
    },
    ("path", "predicted_tokens"),
    optional={"visual_tokens": "int", "request": "json"},
)
TRACES = TableKind(
    "trace table", _TRACE_KINDS, ("image", "question", "tokens", "answer", "agreement", "consistent")
)


def score_columns(ladder: Sequence[int]) -> tuple[str, ...]:
    """SCORE_COLUMNS with the agreement columns of a ladder."""
    return _ordered([*SCORE_COLUMNS, *(f"agreement_{tokens}" for tokens in ladder)], SCORES)


def _ordered(columns: Iterable[str], kind: TableKind) -> tuple[str, ...]:
    """The table's columns, agreements by scale behind `monotone`; then extra ones as given; `error` last."""
    given = list(dict.fromkeys(columns))
    scales = sorted((c for c in given if _AGREEMENT.fullmatch(c)), key=lambda c: int(c.partition("_")[2]))
    extra = [c for c in given if c not in kind.kinds and c not in scales]
    known = [c for c in kind.kinds if c != "error"]
    cut = known.index("monotone") + 1 if "monotone" in known else len(known)
    return (*known[:cut], *scales, *known[cut:], *extra, "error")


def conform(rows: Rows, kind: TableKind) -> pd.DataFrame:
    """A frame with all the table's columns, in their order and kinds, and text made printable."""
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        frame = rows
    else:
        items: Iterable[Any] = rows
        records = [item if isinstance(item, Mapping) else item.to_dict() for item in items]
        frame = pd.DataFrame(records, dtype=object)  # pandas must not look at texts before they are printable
    columns = {}
    for name in _ordered((str(column) for column in frame.columns), kind):
        values = list(frame[name]) if name in frame.columns else [None] * len(frame)
        try:
            columns[name] = _series([None if absent(v) else v for v in values], kind.kind(name))
        except ValueError as error:
            raise ValueError(f"column {name!r} {error}") from None
    return pd.DataFrame(columns)


_BOOLS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_WANTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list"}
_DTYPES = {"int": "Int64", "float": "float64", "bool": "boolean"}
_CASTS: dict[str, Callable[[Any], Any]] = {
    "int": lambda value: _whole(value),
    "float": lambda value: float(value),
    "bool": lambda value: _BOOLS[str(value).lower()],
    "text": lambda value: printable(str(value)),
    "text?": lambda value: printable(str(value)),
    "list": lambda value: _texts(value),
    "json": lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    "any": lambda value: printable(value) if isinstance(value, str) else value,
}


def _whole(value: Any) -> int:
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return int(value)  # exact, however long
    if float(value) != int(float(value)):
        raise ValueError
    return int(float(value)) if isinstance(value, str) else int(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, str | Mapping):
        raise ValueError
    return [printable(str(item)) for item in value]


def cast(value: Any, kind: str) -> Any:
    """A value that is not absent as its column's kind; ValueError that says what is wanted."""
    try:
        return _CASTS[kind](value)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"needs {_WANTED[kind]}, not {str(value)[:80]!r}") from None


def _series(values: list[Any], kind: str) -> pd.Series[Any]:
    import pandas as pd

    empty = {"text": "", "list": []}.get(kind)
    cast_values = [empty if value is None else cast(value, kind) for value in values]
    if kind == "any":
        return pd.Series(cast_values)
    return pd.Series(cast_values, dtype=_DTYPES.get(kind, "object"))


def absent(value: Any) -> bool:
    """None, NaN or pandas.NA (known by its name, so that pandas need not be imported)."""
    return (
        value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))
    )


def printable(text: str) -> str:
    r"""Text that every format can hold: bytes of a file name that are no UTF-8 are spelled out (\xff)."""
    try:
        raw = text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which no file name yields
        raw = text.encode(errors="surrogatepass")
    return raw.decode(errors="backslashreplace")
