"""Scorers beside the model: measures of pixels, and compare --scorers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3score.scoring.scorers.pixel import BASELINES, baseline, grey_entropy
from tests.support.fakes import NOISE, PLAIN
from tests.support.runs import invoke as run


def test_importing_scorers_imports_no_torch() -> None:
    """Nor making their options: a mistake in those is said at once."""
    code = (
        "import sys\nfrom m3score.scoring.registry import BUILT_IN, options_class\n"
        "for name in BUILT_IN: options_class(name)\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- measures of pixels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
def test_plain_is_zero_and_noise_is_more(name: str) -> None:
    value, size = baseline(name, PLAIN)
    assert 0 <= value < 0.001 and size == (320, 200)
    assert 0.1 < baseline(name, NOISE)[0] <= 1


@pytest.mark.parametrize("name", BASELINES)
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_measures_are_shares_at_any_size(name: str, size: tuple[int, int], seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    value, measured = baseline(name, pixels)
    assert 0 <= value <= 1 and measured == (size[1], size[0])


def test_measures_by_hand() -> None:
    two = np.zeros((256, 256, 3), np.uint8)
    two[:, 128:] = 255
    assert grey_entropy(Image.fromarray(two)) == pytest.approx(1 / 8)
    edges, _ = baseline("edges", two)
    assert 2 / 256 <= edges <= 6 / 256  # one upright edge, a few pixels wide
    assert baseline("edges", np.repeat(np.repeat(two, 3, 0), 3, 1))[0] == pytest.approx(edges, abs=3 / 256)


@pytest.mark.parametrize("name", BASELINES)
def test_rank_by_measures(name: str, pictures: Path) -> None:
    done = run("rank", pictures, "--scorer", name, "--out", "scores.csv")
    assert done.exit_code == 3 and "1 input failed" in done.stderr
    table = pd.read_csv("scores.csv")
    assert [Path(path).stem for path in table["path"]] == ["noise", "half", "plain", "broken"]
    assert list(table["rank"])[:3] == [1, 2, 3] and table["complexity"].iloc[2] < 0.001
    assert "Pillow" in table["error"].iloc[3] and table["width"].iloc[0] == 320


def test_options_that_a_scorer_has_not_are_refused(pictures: Path) -> None:
    for arguments, named in (
        (["--scorer", "jpeg", "--question", "why?"], "--question"),
        (["--scorer", "cat"], "--cat-llm"),
        (["--scorer", "alit", "--alit-model", "nowhere"], "--alit-model"),
        (["--scorer", "cat", "--cat-llm", "no where"], "neither a folder nor a hub id"),
    ):
        done = run("rank", pictures, *arguments)
        assert done.exit_code == 2 and named in " ".join(done.stderr.split()), done.stderr


# ---- compare --scorers ----------------------------------------------------------------------------------


def test_compare_scores_what_is_missing(pictures: Path) -> None:
    people = [
        "path,rating,category",
        *(f"{name}.png,{place},a" for place, name in enumerate(["plain", "half", "noise"])),
    ]
    Path("people.csv").write_text("\n".join(people) + "\n")
    asked = ["compare", pictures, "--scorers", "jpeg,edges", "--ratings", "people.csv", "--keep", "kept"]
    done = run(*asked)
    assert done.exit_code == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "jpeg - edges" in shown and "Spearman, per category" in shown and "1.00" in shown
    before = {path.name: path.stat().st_mtime_ns for path in Path("kept").iterdir()}
    assert set(before) == {"jpeg.csv", "edges.csv"}
    again = run(*asked[:3], "jpeg,edges,entropy", *asked[4:], "--json")
    assert [pair["spearman"]["value"] for pair in json.loads(again.stdout)["pairs"]] == pytest.approx(
        [1, 1, 1]
    )
    assert "taken from" in again.stderr
    assert all((Path("kept") / name).stat().st_mtime_ns == time for name, time in before.items())


def test_compare_with_the_model_beside(pictures: Path) -> None:
    done = run("compare", pictures, "--scorers", "model,jpeg", "--out", "all.csv", "--keep", "kept")
    assert done.exit_code == 0, done.stderr
    table = pd.read_csv("all.csv").dropna(subset=["model"])
    assert len(table) == 3 and {"model", "jpeg", "model_rank", "moved"} <= set(table.columns)
    assert "agreement_576" in pd.read_csv("kept/model.csv").columns


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--scorers", "jpeg,beauty"], "no scorer 'beauty'; there are vision, model,"),
        (["--scorers", "jpeg"], "needs two scorers, or one and --ratings"),
        (["--scorers", ","], "needs names"),
        (["--keep", "kept"], "--keep goes with --scorers"),
    ],
)
def test_compare_usage_errors(arguments: list[str], expected: str, pictures: Path) -> None:
    done = run("compare", pictures, *arguments)
    assert done.exit_code == 2 and expected in " ".join(done.stderr.split())
