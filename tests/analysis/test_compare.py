"""m3score compare: correlations, what moved, what only one table has, ratings, the picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from m3score import M3ScoreError
from m3score.analysis.compare import compare, match_paths
from m3score.cli.main import app
from m3score.tables.io import write_scores

RANDOM = np.random.default_rng(5)
FIRST = pd.DataFrame({"path": [f"in/{i}.png" for i in range(60)], "complexity": RANDOM.random(60).round(1)})
SECOND = FIRST.assign(complexity=(FIRST["complexity"] + RANDOM.normal(0, 0.2, 60)).round(2))


def test_correlations_are_those_of_scipy_and_within_their_intervals() -> None:
    (pair,) = compare({"a": FIRST, "b": SECOND}, resamples=200).pairs
    x, y = FIRST["complexity"], SECOND["complexity"]
    assert pair.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert pair.kendall.value == pytest.approx(stats.kendalltau(x, y).statistic)
    for one in (pair.spearman, pair.kendall):
        assert one.low is not None and one.high is not None and one.value is not None
        assert -1 <= one.low < one.value < one.high <= 1
    again = compare({"a": FIRST, "b": SECOND}, resamples=200)
    assert (
        again.pairs[0] == pair and compare({"a": FIRST, "b": SECOND}, resamples=200, seed=1).pairs[0] != pair
    )


def test_formula_and_bootstrap_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from m3score.analysis import compare as comparing

    (drawn,) = compare({"a": FIRST, "b": SECOND}).pairs
    monkeypatch.setattr(comparing, "MOST_RESAMPLED", 10)
    (formula,) = compare({"a": FIRST, "b": SECOND}).pairs
    for one, other in ((drawn.spearman, formula.spearman), (drawn.kendall, formula.kendall)):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.12)


def test_what_moved_and_what_only_one_has() -> None:
    second = FIRST.assign(path="/data/" + FIRST["path"]).iloc[:-2].copy()
    second.loc[0, "complexity"] = 9.0
    second.loc[1, "complexity"] = math.nan
    found = compare({"a": FIRST, "b": second}, resamples=10)
    assert found.only == {"a": 3, "b": 0} and found.without == {"a": 0, "b": 1}
    first = found.table.iloc[0]
    assert first["path"] == "in/0.png" and first["b_rank"] > 0.98 and first["moved"] > 0
    assert len(found.table) == 60 and found.pairs[0].images == 57


def test_tables_say_what_judged_them() -> None:
    """Ranks by vision and by answers may be compared; single values of them are different quantities."""
    seen = FIRST.assign(judged_by="vision", required_tokens=36, effective_tokens=20.0)
    asked = SECOND.assign(judged_by=["agreement", "right answers"] * 30, required_tokens=9, solved=True)
    asked.loc[:2, ["required_tokens", "solved"]] = [None, False]
    older = SECOND.assign(required_tokens=36, solved=True)
    guessed = SECOND.assign(predicted_tokens=9, judged_by=None, solved=None)
    tables = {"seen": seen, "asked": asked, "older": older, "guessed": guessed, "pixels": FIRST}
    found = compare(tables, resamples=10)
    judges = [("vision",), ("agreement", "right answers"), ("answers",), ("prediction",), ()]
    assert list(found.judged.values()) == judges and found.unlike
    assert found.unsolved == {"seen": 0, "asked": 3, "older": 0, "guessed": 0, "pixels": 0}
    assert found.label("seen") == "seen (vision)" and found.label("pixels") == "pixels"
    assert not compare({"asked": asked, "older": older}, resamples=10).unlike
    assert json.loads(json.dumps(found.to_dict()))["judged_by"]["asked"] == ["agreement", "right answers"]


def test_the_same_score_for_all_has_no_correlation() -> None:
    (pair,) = compare({"a": FIRST, "b": FIRST.assign(complexity=0.5)}).pairs
    assert pair.spearman.value is None and pair.kendall.low is None


def test_paths_match_by_their_end_only_where_one_fits() -> None:
    assert match_paths(["/d/in/a.png", "b.png", "c.png"], ["in/a.png", "x/b.png", "y/b.png"]) == {
        "/d/in/a.png": "in/a.png"
    }
    assert match_paths(["x/a.png", "y/a.png"], ["a.png"]) == {}
    assert match_paths(["a.png"], ["a.png"]) == {}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, table in {"a": FIRST, "b": SECOND, "c": FIRST}.items():
        write_scores(table, tmp_path / f"{name}.csv")
    rated = [f"{i}.png,{i % 7},{'art' if i % 2 else 'maps'}" for i in range(60)]
    (tmp_path / "people.csv").write_text("\n".join(["image,rating,category", *rated]) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_command(files: Path) -> None:
    pytest.importorskip("matplotlib")
    result = run("a.csv", "b.csv", "c.csv", "--ratings", "people.csv", "--plot", "p.png", "-o", "all.csv")
    assert result.exit_code == 0, result.stderr
    assert all(word in result.stdout for word in ("a - b", "b - c", "maps", "mean of categories", "in/"))
    assert (files / "p.png").read_bytes()[:4] == b"\x89PNG"
    moved = pd.read_csv("all.csv")
    assert {"a", "b", "c", "a_rank", "rating", "category", "moved"} <= set(moved.columns) and len(moved) == 60
    facts = json.loads(run("a.csv", "--ratings", "people.csv", "--json").stdout)
    assert [pair["category"] for pair in facts["ratings"]] == ["art", "maps", "all"]
    assert facts["ratings"][0]["images"] == 30
    people = (files / "people.csv").read_text()
    for name, delimiter, called in (("semi.csv", ";", "semicolons"), ("tabs.csv", "\t", "tabs")):
        (files / name).write_text(people.replace(",", delimiter))
        other = run("a.csv", "--ratings", name, "--json")
        assert json.loads(other.stdout) == facts and f"{name}: has {called} between" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a.csv"], "two tables, or one and ratings"),
        (["a.csv", "b.csv", "--by", "beauty"], "a: the table has no column 'beauty'"),
        (["a.csv", "b.csv", "--plot", "p.gif"], ".png, .svg, .pdf"),
        (["a.csv", "b.csv", "--confidence", "95"], "between 0 and 1"),
        (["a.csv", "--ratings", "a.csv"], "rating"),
        (["a.csv", "none.csv"], "none.csv"),
    ],
)
def test_usage_errors(arguments: list[str], expected: str, files: Path) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and expected in " ".join(result.stderr.split())


def test_a_picture_that_is_rated_in_two_categories() -> None:
    """It counts in each with its rating there; averaged over both, the order within each would be another."""
    scores = pd.DataFrame({"path": ["a", "b", "c", "d"], "complexity": [0.1, 0.2, 0.3, 0.4]})
    rows = [("a", 1, "u"), ("b", 4, "u"), ("c", 5, "u"), ("b", 9, "v"), ("c", 3, "v"), ("d", 1, "v"),
            ("d", 3, "v"), ("a", 2, None), ("e", 5, "w")]  # fmt: skip
    ratings = pd.DataFrame(rows, columns=["image", "rating", "category"])
    found = compare({"m": scores}, ratings, resamples=10)
    assert [(pair.category, pair.images, pair.spearman.value) for pair in found.rated] == [
        ("u", 3, pytest.approx(1.0)),
        ("v", 3, pytest.approx(-1.0)),
        ("all", 4, pytest.approx(stats.spearmanr([1, 2, 3, 4], [1.5, 6.5, 4, 2]).statistic)),
    ]
    table = found.table.set_index("path")
    assert table["rating"].to_dict() == {"a": 1.5, "b": 6.5, "c": 4.0, "d": 2.0}
    assert table["category"].to_dict() == {"a": "u; all", "b": "u; v", "c": "u; v", "d": "v"}


def test_no_image_in_common() -> None:
    with pytest.raises(M3ScoreError, match="no image"):
        compare({"a": FIRST, "b": FIRST.assign(path=[f"{i}.jpg" for i in range(60)])})
