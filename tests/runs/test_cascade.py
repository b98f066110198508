"""The cascade: within the budget, on one scale, and after a kill the table of an undisturbed run."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.runs.cascade import FEWEST, Budget, LinearMap, path_hash, plan
from m3score.runs.resume.journal import journal_path
from tests.support.fakes import FakeAnswerer
from tests.support.predictors import small_predictor
from tests.support.runs import kill_when, records, run, start


@pytest.mark.parametrize(
    ("share", "most", "images"),
    [
        *[("10%", None, 100), ("0.1", None, 100), (None, None, 100), ("0%", None, 0), ("100%", None, 1000)],
        *[(None, 7, 7), (None, 5000, 1000), ("0.05%", None, 1)],
    ],
)
def test_budget(share: str | None, most: int | None, images: int) -> None:
    assert Budget.of(share, most).images(1000) == images


@pytest.mark.parametrize(("share", "most"), [("101%", None), ("-1%", None), ("many", None), ("10%", 5)])
def test_no_budget(share: str | None, most: int | None) -> None:
    with pytest.raises(M3ScoreError, match="--budget"):
        Budget.of(share, most)


@given(st.integers(0, 300), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_plan_keeps_to_the_budget(n: int, most: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    hashes = np.array([path_hash(str(i)) for i in range(n)], np.uint64)
    complexity = np.where(dice.random(n) < 0.1, np.nan, dice.random(n))
    spread = dice.random(n)
    chosen = plan(hashes, complexity, spread, Budget(most=most))
    known = int((~np.isnan(complexity)).sum())
    assert len(chosen.chosen) == min(most, known) == len(set(chosen.chosen.tolist()))
    asked = np.array([str(i) in chosen for i in range(n)], bool)
    assert asked.sum() == len(chosen.chosen) and not np.isnan(complexity[asked]).any()
    by_spread = [i for i in range(n) if asked[i] and not chosen.prediction(int(hashes[i]))[1]]
    left = [i for i in range(n) if not asked[i] and not math.isnan(complexity[i])]
    if by_spread and left:
        assert spread[by_spread].min() >= spread[left].max()


def test_line_takes_away_bias_and_keeps_order() -> None:
    predicted = np.linspace(0.2, 0.6, 50)
    line = LinearMap.through(predicted, 0.5 * predicted + 0.3)
    assert line is not None
    assert [line.at(value) for value in (0.2, 0.6)] == pytest.approx([0.4, 0.6])
    assert LinearMap.through(predicted[: FEWEST - 1], predicted[: FEWEST - 1] / 2) is None
    backwards = LinearMap.through(predicted, 1 - predicted)
    assert backwards is not None and backwards.at(0.6) > backwards.at(0.2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures, one that can't be read, and a predictor."""
    home = tmp_path_factory.mktemp("cascade")
    (home / "in").mkdir()
    dice = np.random.default_rng(0)
    for i in range(60):
        noise = dice.integers(0, 1 + 4 * i, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(home / "in" / f"{i:02}.png")
    (home / "in" / "07b.png").write_bytes(b"x")
    small_predictor(with_question=False).save(home / "p.predictor")
    return home


def command(home: Path, out: Path, *more: object) -> list[Any]:
    how = [
        "--scorer",
        "cascade",
        "--predictor",
        home / "p.predictor",
        "--batch-size",
        2,
        "--question",
        "What?",
    ]
    return ["rank", home / "in", *how, "--max-model-images", 24, "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "s.csv"
    code, said = run(*command(home, out))
    assert code == 3 and "24 of 61 images" in said
    assert os.listdir(out.parent) == ["s.csv"]
    return out.read_bytes()


def test_table(home: Path, undisturbed: bytes) -> None:
    table = pd.read_csv(io.BytesIO(undisturbed))
    assert len(table) == 61 and table["path"].is_unique
    assert table["scorer"].value_counts().to_dict() == {"predictor": 36, "model": 24}
    assert table["complexity"].dropna().is_monotonic_decreasing
    by_model = table[table["scorer"] == "model"]
    assert by_model["agreement_576"].notna().all() and by_model["predicted_tokens"].notna().all()
    assert table[table["scorer"] == "predictor"]["agreement_576"].isna().all()
    assert table[table["scorer"].isna()]["error"].notna().all()


def test_where_the_model_failed_the_predictors_score_stays(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FakeAnswerer(fail=lambda image: np.asarray(image)[0, 0, 0] % 3 == 0)
    monkeypatch.setattr("m3score.models.loading.load_model", lambda *_, **__: model)
    result = CliRunner().invoke(app, [str(one) for one in command(home, tmp_path / "s.csv")])
    table = pd.read_csv(tmp_path / "s.csv")
    failed = 24 - (table["scorer"] == "model").sum()
    assert 0 < failed < 24 and f"The model failed on {failed} images" in result.output
    assert len(table) == 61 and table["complexity"].notna().sum() == 60


def test_killed_in_either_pass(home: Path, tmp_path: Path, undisturbed: bytes) -> None:
    out = tmp_path / "s.csv"
    first = out.with_name("s.csv.predictions")
    kill_when(lambda: records(first) > 20, *command(home, out), seconds_per_batch=0.05)
    assert journal_path(first).exists() and not out.exists()
    kill_when(lambda: records(out) > 9, *command(home, out), seconds_per_batch=0.05)
    assert journal_path(out).exists() and not out.exists()
    code, said = run(*command(home, out))
    assert code == 3 and "done before" in said
    assert out.read_bytes() == undisturbed
    assert os.listdir(tmp_path) == ["s.csv"]


def test_more_inputs_than_the_run_that_was_killed(home: Path, tmp_path: Path) -> None:
    """Other images may be the ones to ask the model about; those of before are still among the inputs."""
    out, few = tmp_path / "out" / "s.csv", tmp_path / "home"
    out.parent.mkdir()
    shutil.copytree(home, few)
    kill_when(lambda: records(out) > 15, *command(few, out), seconds_per_batch=0.05)
    for i, path in enumerate(sorted(few.glob("in/5*.png"))):
        shutil.copy(path, few / "in" / f"a{i}.png")
    code, said = run(*command(few, out))
    assert code == 3 and "not among these inputs" not in said
    assert os.listdir(out.parent) == ["s.csv"]


def test_a_list_on_stdin(home: Path, tmp_path: Path, undisturbed: bytes) -> None:
    out = tmp_path / "s.csv"
    names = "".join(f"{path}\n" for path in sorted((home / "in").iterdir()))
    arguments = [*command(home, out)]
    arguments[1] = "-"
    process = start(*arguments, stdin=subprocess.PIPE)
    process.communicate(names, timeout=120)
    assert out.read_bytes() == undisturbed


def test_other_budget_is_another_run(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    kill_when(lambda: records(out) > 3, *command(home, out), seconds_per_batch=0.05)
    arguments = command(home, out)
    arguments[arguments.index(24)] = 12
    code, said = run(*arguments)
    assert code == 2 and "--max-model-images was 24" in said
