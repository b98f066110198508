"""What a table's numbers are called: by what judged its rows."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from m3score.analysis.judged import (
    Mode,
    explain,
    explain_complexity,
    is_unsolved,
    judge_of,
    letters_text,
    mode_of,
    tokens_text,
)


@pytest.mark.parametrize(
    ("row", "judge"),
    [
        ({"judged_by": "vision", "required_tokens": 36}, "vision"),
        ({"judged_by": "agreement", "predicted_tokens": 9}, "agreement"),
        ({"judged_by": None, "required_tokens": 36, "solved": True}, "answers"),
        ({"required_tokens": pd.NA, "solved": False}, "answers"),
        ({"required_tokens": pd.NA, "solved": pd.NA, "predicted_tokens": 9}, "prediction"),
        ({"complexity": 0.5}, None),
    ],
)
def test_rows_tell_what_judged_them(row: dict[str, Any], judge: str | None) -> None:
    assert judge_of(row) == judge


@pytest.mark.parametrize(
    ("judges", "mode"),
    [
        (["vision"], Mode.vision),
        (["agreement", "right answers", "mixed", "answers"], Mode.answers),
        (["agreement", "prediction"], Mode.answers),
        (["prediction"], Mode.predicted),
        (["vision", "agreement"], Mode.several),
        ([None], Mode.other),
        ([], Mode.other),
    ],
)
def test_tables_have_one_leading_number(judges: list[str | None], mode: Mode) -> None:
    assert mode_of(judges) is mode


def test_what_was_measured_is_one_sentence() -> None:
    for judges in (
        ["vision"],
        ["agreement"],
        ["right answers"],
        ["mixed"],
        ["prediction"],
        ["vision", "mixed"],
    ):
        said = explain(judges, 576)
        assert said.endswith(".") and ". " not in said and len(said) < 200
        assert explain_complexity(judges, 576)
    assert explain([None], None) == ""


def test_unsolved_is_what_says_so_in_any_form() -> None:
    assert all(is_unsolved({"solved": one}) for one in (False, "False", "false", "0", 0))
    assert not any(is_unsolved({"solved": one}) for one in (True, "true", 1, None, pd.NA, float("nan")))


def test_numbers_of_tokens_and_letters_in_words() -> None:
    assert [tokens_text(one) for one in (1.0, 1.26, 9.94, 9.96, 343.1)] == ["1", "1.3", "9.9", "10", "343"]
    assert letters_text(None, 0) == letters_text(30.0, 0.4) == "no text to speak of"
    assert letters_text(4.2, 340) == "tiny letters (1/80 of the longest side)"
    words = [letters_text(height, 5).split()[0] for height in (6, 7, 13, 14, 41, 42, 200)]
    assert words == ["tiny", "small", "small", "medium", "medium", "large", "large"]
