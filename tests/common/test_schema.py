"""Entries of recipes and declarations: every fault is one sentence that names the key and what is allowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from m3score.common.errors import M3ScoreError
from m3score.common.schema import STRICT, List, checked


@dataclass(frozen=True, config=STRICT)
class Entry:
    name: str
    count: Annotated[int, Field(ge=1)]
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.5
    kind: Literal["a", "b"] = "a"
    scales: List[int] = ()


def test_whole_numbers_are_floats_too_and_lists_become_tuples() -> None:
    entry = checked(Entry, {"name": "x", "count": 2, "rate": 0, "scales": [1, 9]}, "f.toml")
    assert entry == Entry("x", 2, 0.0, "a", (1, 9)) and isinstance(entry.rate, float)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"names": 1}, "unknown key 'names'; allowed: count, kind, name, rate, scales."),
        ({"count": 0}, "count is 0; it must be at least 1."),
        ({"count": True}, "count is True; it must be of type int."),
        ({"count": 1.0}, "count is 1.0; it must be of type int."),
        ({"name": 3}, "name is 3; it must be of type str."),
        ({"rate": -1}, "rate is -1; it can't be negative."),
        ({"rate": 1}, "rate is 1; it must be less than 1."),
        ({"kind": "c"}, "kind is 'c'; it must be 'a' or 'b'."),
        ({"scales": 9}, "scales is 9; it must be a list."),
        ({"scales": [1, "x"]}, "scales.1 is 'x'; it must be of type int."),
    ],
)
def test_a_fault_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(M3ScoreError) as caught:
        checked(Entry, {"name": "x", "count": 2, **changes}, "f.toml")
    assert str(caught.value) == f"f.toml: {sentence}"


def test_missing_keys_are_named_together_but_unknown_ones_first() -> None:
    with pytest.raises(M3ScoreError, match=r"^f: lacks count, name\.$"):
        checked(Entry, {}, "f")
    with pytest.raises(M3ScoreError, match="unknown key 'nam'"):
        checked(Entry, {"nam": "x", "count": 1}, "f")
