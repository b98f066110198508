"""Scorers by name: the built-in ones, and those that installed packages bring.

A package brings one by an entry point of the group `m3score.scorers`, whose name is that of the scorer and
whose value is a class with the protocol base.Scorer. Classes are imported when they are asked for.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from m3score.common.errors import M3ScoreError, one_line

GROUP = "m3score.scorers"

BUILT_IN = {
    "vision": "m3score.scoring.scorers.vision:VisionScorer",
    "model": "m3score.scoring.scorers.model:ModelScorer",
    "predictor": "m3score.routing.scorer:PredictorScorer",
    "cascade": "m3score.runs.cascade_run:Cascade",
    "jpeg": "m3score.scoring.scorers.pixel:JpegScorer",
    "edges": "m3score.scoring.scorers.pixel:EdgesScorer",
    "entropy": "m3score.scoring.scorers.pixel:EntropyScorer",
    "cat": "m3score.scoring.scorers.cat:CatScorer",
    "alit": "m3score.scoring.scorers.alit:AlitScorer",
}
"""Where each class is. Those of rooms above this one are known here by name only."""

ScorerClass: TypeAlias = "type[Any]"
"""A class with the protocol base.Scorer."""


def scorer_names() -> tuple[str, ...]:
    """All names: built-in ones in their order, then those of installed packages."""
    return (*BUILT_IN, *sorted(set(_installed()) - set(BUILT_IN)))


def find_scorer(name: str) -> ScorerClass:
    """The class of a scorer. M3ScoreError if there is none of that name, or it can't be imported."""
    if name in BUILT_IN:
        from m3score.scoring.base import load_object

        return load_object(BUILT_IN[name])
    brought = _installed().get(name)
    if brought is None:
        close = difflib.get_close_matches(name, scorer_names(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise M3ScoreError(f"no scorer {name!r}; there are {', '.join(scorer_names())}.{hint}")
    try:
        found = brought.load()
    except Exception as error:  # whatever a package of somebody else's does when it is imported
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise M3ScoreError(f"the scorer {name!r} ({brought.value}) can't be imported ({reason}).") from error
    missing = [part for part in ("identity", "stream") if not callable(getattr(found, part, None))]
    if missing:
        raise M3ScoreError(
            f"the scorer {name!r} ({brought.value}) is none: it lacks {' and '.join(missing)}; see "
            "m3score.scoring.base.Scorer."
        )
    return found


def _installed() -> dict[str, Any]:
    """Entry points of installed packages by name."""
    from importlib.metadata import entry_points

    return {found.name: found for found in entry_points(group=GROUP)}


# ---- options --------------------------------------------------------------------------------------------


def make_options(
    name: str, given: Mapping[str, Any], spelled: Callable[[str], str] = lambda field: field
) -> Any:
    """The options of a scorer, of its own options class.

    Args:
        name: of the scorer.
        given: values by the names of that class's fields; texts are read as what the field holds.
        spelled: how a field is called where the values come from.

    Raises:
        M3ScoreError: the scorer knows no such option, or not such a value.
    """
    kind = options_class(name)
    known = option_names(name)
    unknown = [option for option in given if option not in known]
    if unknown:
        several = " and ".join(map(spelled, unknown))
        has = f"it takes {', '.join(map(spelled, sorted(known)))}" if known else "it takes no options"
        owners = [other for other in BUILT_IN if set(unknown) <= set(option_names(other))]
        hint = f" {several} is for the scorers {', '.join(owners)}." if owners else ""
        raise M3ScoreError(f"the scorer {name} has no {several}; {has}.{hint}")
    hints = get_type_hints(kind)
    values = {option: _read(value, hints[option], spelled(option)) for option, value in given.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a field without a default
        raise M3ScoreError(f"the scorer {name}: {one_line(error)}.") from None


def option_names(name: str) -> tuple[str, ...]:
    """The options of a scorer: the fields of its options class."""
    return tuple(field.name for field in fields(options_class(name)))


def options_class(name: str) -> type[Any]:
    """The options class of a scorer."""
    from m3score.scoring.base import ScorerOptions

    return getattr(find_scorer(name), "Options", ScorerOptions)


def _read(value: Any, hint: Any, name: str) -> Any:
    """A value that came as text, as what its field holds; anything else as it is."""
    if not isinstance(value, str):
        return value
    kinds = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if any(kind in (str, Any) or (get_origin(kind) is Literal and value in get_args(kind)) for kind in kinds):
        return value
    for kind in kinds:
        if kind is bool and value.lower() in ("true", "false", "1", "0"):
            return value.lower() in ("true", "1")
        if kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None))
    raise M3ScoreError(f"{name} needs a value of type {wanted}, not {value!r}.")
