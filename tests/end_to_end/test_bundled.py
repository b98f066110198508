"""The bundled model: what its card promises, on drawings that training never saw."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import m3score
from m3score.calibration.benchmarks.evaluate import EVALUATION_SEED, evaluate_drawn
from m3score.calibration.drawings.drawing import draw
from m3score.cli.main import app
from m3score.data.metrics import grade
from m3score.routing.predict import predict_many
from m3score.tables.io import read_scores, read_traces

FOLDER = Path(str(resources.files("m3score") / "assets" / "m3-tiny"))
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model():
    return m3score.load_model("m3-tiny", device="cpu")


def test_it_is_small_safe_and_explained():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jsonl", ".md"}
    card = (FOLDER / "README.md").read_text()
    assert "| all |" in card and "Limits" in card


def test_it_has_the_ladder_of_the_paper(model):
    assert model.ladder == (1, 9, 36, 144, 576)
    image = model.encode(EXAMPLES / "sign.png")
    assert [model.visual_token_count(image, tokens) for tokens in model.ladder] == [1, 9, 36, 144, 576]


def test_it_has_learnt(model):
    table = evaluate_drawn(model, 250, seed=EVALUATION_SEED + 1).by_task()
    accuracy = table.drop(columns="questions").loc["all"]
    assert accuracy[576] >= 62
    assert accuracy[576] > accuracy[1] + 10


def test_it_reads_large_signs(model):
    drawings = [draw(EVALUATION_SEED + 3, index, "sign") for index in range(120)]
    large = [drawing for drawing in drawings if drawing.questions[0].detail["height"] >= 40]
    answers = model.answer([d.image for d in large], [d.questions[0].question for d in large])
    right = [
        grade("exact_match", a, [d.questions[0].answer]).correct for a, d in zip(answers, large, strict=True)
    ]
    assert sum(right) >= 0.85 * len(large)


def test_a_busy_picture_is_more_complex_than_an_empty_one(model):
    empty, crowd = m3score.score([EXAMPLES / "empty.png", EXAMPLES / "crowd.png"], model=model)
    assert empty.complexity < crowd.complexity
    foreseen = m3score.predict_complexity([EXAMPLES / "empty.png", EXAMPLES / "crowd.png"])
    assert foreseen[0] < foreseen[1]


def test_answers_do_not_depend_on_the_batch(model):
    drawings = [draw(EVALUATION_SEED + 2, index) for index in range(6)]
    images = [drawing.image for drawing in drawings]
    questions = [drawing.questions[0].question for drawing in drawings]
    together = model.answer(images, questions, tokens=144)
    assert together == [
        model.answer(image, question, tokens=144) for image, question in zip(images, questions, strict=True)
    ]


def test_answers_that_were_cut_are_counted_in_the_summary(tmp_path: Path) -> None:
    """No answer ends with its first token, since the end is a token of its own."""
    asked = ["rank", str(EXAMPLES / "sign.png"), "--scorer", "model", "--traces", str(tmp_path / "t.csv")]
    cut = CliRunner().invoke(app, [*asked, "--max-new-tokens", "1", "--out", str(tmp_path / "s.csv")])
    assert "1 image has answers that were cut at the most tokens" in " ".join(cut.stderr.split())
    assert read_traces(tmp_path / "t.csv")["cut"].all()
    assert read_scores(tmp_path / "s.csv")["cut_questions"].tolist() == [1]
    whole = CliRunner().invoke(app, [*asked, "--overwrite", "--out", str(tmp_path / "s.csv")])
    assert whole.exit_code == 0 and "that were cut" not in whole.stderr
    assert not read_traces(tmp_path / "t.csv")["cut"].any()
    assert read_scores(tmp_path / "s.csv")["cut_questions"].tolist() == [0]


def test_what_shows_nothing_is_predicted_to_be_the_simplest():
    """The pitch: a blank wall needs one token. No rule says so, the regressors have learnt it."""
    blank = [
        Image.new("RGB", size, colour)
        for size in ((640, 480), (90, 400), (2000, 1500), (40, 40))
        for colour in ("black", "#e8d8b0", "teal")
    ]
    found = m3score.predict_complexity([EXAMPLES / "empty.png", *blank])
    assert max(found) < math.log(2) / math.log(576)  # fewer than two tokens
    usual = [image for image in blank if image.size != (90, 400)]  # no drawing is so narrow
    for row in predict_many([EXAMPLES / "empty.png", *usual], "How many shapes are there?"):
        assert row.certified and row.tokens is not None and row.tokens <= 36
    assert m3score.predict_complexity(EXAMPLES / "sunset.png") > 0.3
