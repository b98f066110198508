"""Entries of recipes and other declarations, checked by pydantic: one clear sentence per fault.

Declare an entry as a `pydantic.dataclasses.dataclass` with `config=STRICT`, and make it with `checked`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, ValidationError

from m3score.common.errors import M3ScoreError

STRICT = ConfigDict(strict=True, extra="forbid")
"""No unknown keys, and no conversions but from whole numbers to floats."""

Entry = TypeVar("Entry")
Item = TypeVar("Item")


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


List = Annotated[tuple[Item, ...], BeforeValidator(_as_tuple)]
"""A list in the file, a tuple in Python."""

_TYPES = {
    "int_type": "of type int",
    "float_type": "of type float",
    "string_type": "of type str",
    "bool_type": "of type bool",
    "tuple_type": "a list",
    "dataclass_exact_type": "a table",
}


def checked(kind: type[Entry], values: Mapping[str, Any], source: str) -> Entry:
    """An entry made of `values`.

    Args:
        kind: a pydantic dataclass.
        values: by field name, as the file has them.
        source: the file, and where in it; the sentence begins with this.

    Raises:
        M3ScoreError: an unknown or missing key, or a value that is not allowed.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise M3ScoreError(f"{source}: {_sentence(kind, error.errors(include_url=False))}") from None


def _sentence(kind: Any, faults: Sequence[Any]) -> str:
    """Of the first fault, but unknown keys come first: a key that is missing may be misspelt."""
    names = {fault["type"]: ".".join(map(str, fault["loc"])) for fault in reversed(faults)}
    if unknown := names.get("unexpected_keyword_argument"):
        return f"unknown key {unknown!r}; allowed: {', '.join(sorted(kind.__pydantic_fields__))}."
    if "missing" in names:
        lacking = sorted(str(fault["loc"][0]) for fault in faults if fault["type"] == "missing")
        return f"lacks {', '.join(lacking)}."
    name = ".".join(map(str, faults[0]["loc"]))
    return f"{name} is {faults[0]['input']!r}; {_wanted(faults[0])}."


def _wanted(fault: Any) -> str:
    context = fault.get("ctx", {})
    if fault["type"] in _TYPES:
        return f"it must be {_TYPES[fault['type']]}"
    if fault["type"] == "greater_than_equal":
        return f"it must be at least {context['ge']}" if context["ge"] else "it can't be negative"
    if fault["type"] == "less_than":
        return f"it must be less than {context['lt']:g}"
    if fault["type"] == "literal_error":
        return f"it must be {context['expected']}"
    if fault["type"] == "value_error":
        return str(context["error"])
    return f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
