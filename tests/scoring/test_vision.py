"""The scorer vision, and that it is what ranks where nothing is asked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

import m3score
from m3score.common.errors import M3ScoreError
from m3score.runs.ranking import default_scorer
from m3score.runs.request import Inputs
from m3score.scoring.scorers.vision import VisionScorer
from tests.support.fakes import SingleGrid

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = [EXAMPLES / name for name in ("crowd.png", "empty.png", "page_of_text.png")]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return m3score.rank([*PICTURES, EXAMPLES / "make_examples.py"])


def test_rank_without_a_question_looks(table: pd.DataFrame) -> None:
    scored = table[table["error"].isna()]
    assert [Path(path).name for path in scored["path"]] == ["page_of_text.png", "crowd.png", "empty.png"]
    assert set(scored["judged_by"]) == {"vision"}
    assert {"distinct_tokens", "reading_tokens", "letter_height", "kept_1", "kept_144"} <= set(table.columns)
    assert "kept_576" not in table.columns and "agreement_1" not in table.columns
    assert scored["required_tokens"].tolist()[-1] == 1


def test_what_cannot_be_opened_is_a_row(table: pd.DataFrame) -> None:
    assert table["error"].notna().sum() == 1


def test_rank_and_score_say_the_same(table: pd.DataFrame) -> None:
    model = m3score.load_model("m3-tiny")
    for path in PICTURES:
        (row,) = table[table["path"] == str(path)].to_dict("records")
        alone = m3score.score(path, model=model)
        assert row["complexity"] == pytest.approx(alone.complexity, abs=1e-4)
        assert row["required_tokens"] == alone.required_tokens


def test_with_a_question_the_model_answers() -> None:
    table = m3score.rank(PICTURES[:1], questions="How many dots are there?")
    assert "agreement_576" in table.columns and table["questions"].tolist() == [1]


def test_the_scorer_that_is_taken(tmp_path: Path) -> None:
    plain = Inputs([str(EXAMPLES)])
    assert default_scorer({}, plain) == default_scorer({"model": "m3-tiny"}, plain) == "vision"
    assert (
        default_scorer({"questions": "Why?"}, plain) == default_scorer({"question": ["a"]}, plain) == "model"
    )
    assert default_scorer({"model": SingleGrid()}, plain) == "model"
    assert default_scorer({}, Inputs(Image.new("RGB", (4, 4)))) == "vision"
    images = [{"bytes": PICTURES[0].read_bytes(), "path": "a.png"}]
    for columns, expected in (({}, "vision"), ({"question": ["Where?"]}, "model")):
        file = tmp_path / f"{expected}.parquet"
        pd.DataFrame({"image": images, **columns}).to_parquet(file)
        assert default_scorer({}, Inputs([str(file)])) == expected


def test_a_model_that_can_only_answer() -> None:
    with pytest.raises(M3ScoreError, match="no vision tower"):
        VisionScorer(VisionScorer.Options(model=SingleGrid()))
