"""References and options out of every form that tables, data sets and scripts hold them in."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from m3score.calibration.benchmarks.task_data import load_own
from m3score.calibration.predictor.labelling.sources import find_source
from m3score.common.errors import M3ScoreError
from m3score.data.discover import find_images
from m3score.data.questions import Question, read_questions
from m3score.data.references import read_options, read_texts
from m3score.runs.ranking import rank
from m3score.scoring.oracle import score
from tests.support.fakes import FakeAnswerer, grey

VOTES = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 10)] + [
    {"answer": "maroon", "answer_confidence": "no", "answer_id": 10}
]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("red", ("red",)), ("", ()), (None, ()), (math.nan, ()), (pd.NA, ()), (pd.NaT, ()),
        (np.float32("nan"), ()), ("None", ("None",)), ("nan", ("nan",)), (["None", None], ("None",)),
        (["red", "", "blue"], ("red", "", "blue")), ((), ()), ([None, math.nan], ()),
        (2014, ("2014",)), (2014.0, ("2014",)), (12.5, ("12.5",)), (1e5, ("100000",)), (-0.0, ("0",)),
        (1e22, ("1e+22",)), (Decimal("3.00"), ("3",)), (Decimal("3.10"), ("3.10",)),
        (np.int64(7), ("7",)), (np.array([1.0, 2.5]), ("1", "2.5")), (pd.Series(["a", "b"]), ("a", "b")),
        (VOTES, ("red",) * 9 + ("maroon",)), ({"answer": "red", "answer_id": 1}, ("red",)),
        ({"answer": ["red", None, "blue"], "answer_id": [1, 2, 3]}, ("red", "blue")),
        ({"text": ["May 1"], "answer_start": [3]}, ("May 1",)), ({"answer": None}, ()),
        ([{"answer": 3.0}, "4"], ("3", "4")),
    ],
)  # fmt: skip
def test_texts(value: Any, texts: tuple[str, ...]) -> None:
    assert read_texts(value) == texts
    assert Question("?", value).answers == texts


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "True"), ([True], r"\[True\]"), ({"label": "red"}, r"\{'label': 'red'\}"),
        ([["a"], ["b"]], r"\[\['a'\], \['b'\]\]"), (b"red", "b'red'"), (math.inf, "inf"),
        (pd.Timestamp("2014-01-01"), "2014"), ([{"label": "x" * 500}], r"x\.\.\."),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_shown(value: Any, shown: str) -> None:
    with pytest.raises(M3ScoreError, match=f"'answers' has to hold a text.*not .*{shown}"):
        read_texts(value)


def test_options_have_no_gaps() -> None:
    assert read_options(["One", "None", "Two", None, math.nan]) == ("One", "None", "Two")
    assert read_options([1.0, 2.0]) == ("1", "2") and read_options(None) == read_options([None]) == ()
    with pytest.raises(M3ScoreError, match="an option is missing among"):
        read_options(["One", None, "Two"])


# ---- the ways in --------------------------------------------------------------------------------------


def parquet(path: Path, answers: list[Any]) -> Path:
    grey(0).save(path.parent / "a.png")
    image = {"bytes": (path.parent / "a.png").read_bytes(), "path": None}
    rows = [{"image": image, "question": f"Number {i}?", "answers": one} for i, one in enumerate(answers)]
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


def test_votes_as_objects_are_right_through_rank(tmp_path: Path) -> None:
    votes = [{"answer": "1 is needed", "answer_id": i} for i in range(10)]
    table = rank(parquet(tmp_path / "votes.parquet", [votes]), model=FakeAnswerer())
    assert table["solved"].tolist() == [True] and table["required_tokens"].tolist() == [1]


def test_a_column_of_numbers_with_a_gap_through_rank_and_calibrate(tmp_path: Path) -> None:
    path = parquet(tmp_path / "years.parquet", [2014, None, 7])
    expected = [("2014",), (), ("7",)]
    assert [one.questions[0].answers for one in find_images(path)] == expected
    opened = [item.open() for item in find_source(str(path)).items()]
    assert [one.questions[0].answers for one in opened] == expected
    folder = tmp_path / "saved"
    datasets.Dataset.from_parquet(str(path)).save_to_disk(str(folder))
    opened = [item.open() for item in find_source(str(folder)).items()]
    assert [one.questions[0].answers for one in opened] == expected


def test_a_column_of_another_shape_is_an_error_of_each_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "odd.parquet", [{"label": "red"}, {"label": "blue"}])
    table = rank(path, model=FakeAnswerer())
    assert table["error"].str.contains("'answers' has to hold .* not {'label': '").all()
    (first, _) = (item.open() for item in find_source(str(path)).items())
    assert "not {'label': 'red'}" in (first.error or "")


def test_several_questions_want_several_answers(tmp_path: Path) -> None:
    grey(0).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    rows = [{"image": {"bytes": content, "path": None}, "question": ["One?", "Two?"], "answers": "ab"}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "two.parquet"))
    (found,) = find_images(tmp_path / "two.parquet")
    assert "2 questions need a list with the answers of each, not 'ab'" in (found.error or "")


def test_questions_files_and_own_benchmarks(tmp_path: Path) -> None:
    grey(0).save(tmp_path / "a.png")
    held: list[Any] = [12.0, 0, 1e5, VOTES, ["None"], "None", None]
    rows = [{"image": "a.png", "question": f"Number {i}?", "answers": one} for i, one in enumerate(held)]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    expected = [("12",), ("0",), ("100000",), ("red",) * 9 + ("maroon",), ("None",), ("None",)]
    assert [one.answers for one in read_questions(path)["a.png"]] == [*expected, ()]
    (entry,) = load_own(path, None, None).entries
    assert [one.question.answers for one in entry.questions] == expected


def test_python() -> None:
    votes: list[Any] = [{"answer": "1 is needed"}]
    scored = score(grey(0), model=FakeAnswerer(), questions="?", answers=votes)
    assert scored.required_tokens == 1 and scored.questions[0].judged_by == "correct"
    with pytest.raises(M3ScoreError, match="'answers' has to hold"):
        score(grey(0), model=FakeAnswerer(), questions="?", answers=[True])  # type: ignore[list-item]
