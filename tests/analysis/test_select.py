"""m3score.select and m3score select: who is chosen, what is said of the others, copies and links."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import m3score
from m3score.analysis.export import ExportMode, common_folder, export_images
from m3score.analysis.select import how_many, select_rows
from m3score.cli.main import app
from m3score.tables.compact import read_compact
from m3score.tables.io import read_scores, write_scores
from m3score.tables.schema import SCORES, conform
from tests.data.test_extract import picture, write_parquet, write_shard

LADDER = (1, 9, 36, 144, 576)


def scores(tokens: list[int | None], **more: Any) -> pd.DataFrame:
    """A score table, most complex first; tokens None = unsolved, 0 = failed."""
    rows = []
    for number, needed in enumerate(tokens):
        row: dict[str, Any] = {
            "path": f"in/{number:03}.png",
            **{f"agreement_{t}": 1.0 for t in LADDER},
            **more,
        }
        if needed == 0:
            row["error"] = "not an image"
        else:
            row |= {"complexity": 1 - number / 1000, "required_tokens": needed, "solved": needed is not None}
        rows.append(row)
    return conform(rows, SCORES)


MIXED = scores([None, 576, 576, 144, 144, 36, 9, 9, 1, 0])
tables = st.lists(st.sampled_from([None, 0, *LADDER]), min_size=1, max_size=40).map(scores)


def numbers(table: pd.DataFrame) -> list[int]:
    return [int(path[3:6]) for path in table["path"]]


@pytest.mark.parametrize(
    ("criteria", "expected"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"unsolved": "include"}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"unsolved": "only"}, [0]),
        ({"unsolved": "only", "max": 0.9}, []),
        ({"min": 0.996, "max": 0.998}, [2, 3, 4]),
        ({"by": "required", "max": 9}, [6, 7, 8]),
        ({"by": "required", "min": 576, "unsolved": "include"}, [0, 1, 2]),
        ({"top": 2}, [1, 2]),
        ({"top": 2, "unsolved": "include"}, [0, 1]),
        ({"bottom": 2}, [8, 7]),
        ({"bottom": "25%"}, [8, 7]),
        ({"by": "required_tokens", "top": 1}, [1]),
        ({"per_level": 9}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"token_budget": 19}, [6, 7, 8]),
        ({"token_budget": 0.5}, []),
        ({"top": 3, "token_budget": 700}, [1]),
        ({"top": 3, "token_budget": 700, "unsolved": "include"}, [0]),
        ({"max": 0.9, "top": 3}, []),
    ],
)
def test_who_is_chosen(criteria: dict[str, Any], expected: list[int]) -> None:
    assert numbers(m3score.select(MIXED, **criteria)) == expected


def test_the_account_of_the_others() -> None:
    found = select_rows(MIXED, per_level=1, token_budget=1e4)
    assert (found.counted, found.without_value, found.unsolved, found.tokens) == (
        "required_tokens",
        1,
        1,
        766,
    )
    assert found.per_level == dict.fromkeys(LADDER, 1)
    taken = select_rows(MIXED, unsolved="include")
    assert taken.tokens is None and taken.unsolved == 0 and taken.without_value == 1
    only = select_rows(MIXED, unsolved="only")
    assert only.unsolved == 0 and only.without_value == 0


def test_what_the_model_does_not_know_is_not_the_most_complex() -> None:
    """With right answers that no scale gives, complexity is 1: --top would take just these."""
    table = scores([None] * 60 + [576, 9])
    found = select_rows(table, top=5)
    assert numbers(table.iloc[found.positions]) == [60, 61] and found.unsolved == 60


@settings(deadline=None, max_examples=25)
@given(tables, st.integers(1, 5), st.integers(0, 9))
def test_every_level_has_its_share_and_draws_depend_on_seed_and_path_alone(
    table: pd.DataFrame, per_level: int, seed: int
) -> None:
    chosen = m3score.select(table, per_level=per_level, seed=seed)
    there = table["required_tokens"].value_counts()
    assert chosen["required_tokens"].value_counts().to_dict() == {
        t: min(n, per_level) for t, n in there.items()
    }
    more = m3score.select(table, per_level=per_level + 1, seed=seed)
    assert set(chosen["path"]) <= set(more["path"])
    shuffled = m3score.select(table.sample(frac=1, random_state=seed), per_level=per_level, seed=seed)
    assert set(shuffled["path"]) == set(chosen["path"])


@settings(deadline=None, max_examples=25)
@given(tables, st.integers(1, 2000))
def test_a_budget_is_kept_and_no_more_images_would_fit(table: pd.DataFrame, budget: int) -> None:
    chosen = m3score.select(table, token_budget=budget)
    costs = np.sort(table["required_tokens"].dropna().to_numpy(int))
    assert chosen["required_tokens"].sum() <= budget
    assert len(chosen) == int((np.cumsum(costs) <= budget).sum())
    by_turns = m3score.select(table, token_budget=budget, per_level=2)
    assert by_turns["required_tokens"].sum() <= budget


def test_seeds_draw_otherwise() -> None:
    table = scores([9] * 60)
    draws = {tuple(m3score.select(table, sample=10, seed=seed)["path"]) for seed in range(5)}
    assert len(draws) == 5 and all(len(draw) == 10 for draw in draws)


def test_predicted_tokens_are_levels_where_a_predictor_scored() -> None:
    table = scores([None] * 6).assign(predicted_tokens=[1, 1, 9, 9, 36, 36], solved=None)
    found = select_rows(table, per_level=1)
    assert found.counted == "predicted_tokens" and found.per_level == {1: 1, 9: 1, 36: 1}


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({"by": "beauty"}, "no column 'beauty'"),
        ({"unsolved": "maybe"}, "exclude, include, only"),
        ({"by": "path"}, "holds no numbers"),
        ({"top": 1, "per_level": 1}, "top and per_level exclude each other"),
        ({"top": "150%"}, "top needs a number such as 100"),
        ({"bottom": 0}, "bottom needs"),
        ({"per_level": 0}, "at least 1"),
        ({"token_budget": -1}, "more than 0"),
        ({"token_budget": float("nan")}, "more than 0"),
    ],
)
def test_criteria_that_make_no_sense(criteria: dict[str, Any], message: str) -> None:
    with pytest.raises(m3score.M3ScoreError, match=message):
        m3score.select(MIXED, **criteria)


def test_a_column_that_is_no_ladder() -> None:
    with pytest.raises(m3score.M3ScoreError, match="no ladder"):
        m3score.select(scores([9] * 99), per_level=1, level="complexity")
    with pytest.raises(m3score.M3ScoreError, match="name another one"):
        m3score.select(pd.DataFrame({"path": ["a"], "complexity": [0.5]}), per_level=1)
    with pytest.raises(m3score.M3ScoreError, match="--level"):
        m3score.select(scores([9]).assign(required_tokens=None, solved=None), per_level=1)


def test_shares_round_up() -> None:
    assert [how_many("10%", n, "top") for n in (0, 1, 10, 11)] == [0, 1, 1, 2]
    assert how_many("7%", 100, "top") == 7  # 7 * 100 / 100 is a little more than 7 in binary


# --- files ------------------------------------------------------------------------------------------------

NAMES = ["nan", "NULL", "=cmd()", "'=x", "'", "a,b", 'q"q', "line\nbreak", "", "ü", "\\xff", "1e5"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_compact_tables_are_the_same_tables(suffix: str, tmp_path: Path) -> None:
    rows = [
        {
            "path": name,
            "complexity": 1 / 3,
            "solved": None if i % 2 else True,
            "error": None,
            "note": name or None,
        }
        for i, name in enumerate(NAMES)
    ]
    write_scores(rows, tmp_path / f"s.{suffix}")
    quick, slow = read_compact(tmp_path / f"s.{suffix}", SCORES), read_scores(tmp_path / f"s.{suffix}")
    assert quick["path"].fillna("").tolist() == NAMES == slow["path"].tolist()
    assert quick["complexity"].tolist() == slow["complexity"].tolist()
    assert quick["solved"].fillna(False).tolist() == slow["solved"].fillna(False).tolist()
    assert quick["error"].isna().all() and len(quick["note"]) == len(slow["note"])


def test_errors_of_compact_reading_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("path,complexity\na.png,0.5\nb.png,much\n")
    with pytest.raises(m3score.M3ScoreError, match=r"s\.csv, line 3: column 'complexity'"):
        read_compact(tmp_path / "s.csv", SCORES)
    (tmp_path / "t.csv").write_text("file,score\na.png,0.5\n")
    with pytest.raises(m3score.M3ScoreError, match="missing: path, complexity"):
        read_compact(tmp_path / "t.csv", SCORES)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in/a/1.png, in/b/1.png, in/2.png, and s.csv with these and one that is missing."""
    for name in ("a/1.png", "b/1.png", "2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    names = ("in/a/1.png", "in/b/1.png", "in/2.png", "in/gone.png")
    table = scores([9, 9, 1, 36]).assign(path=names)
    write_scores(table, tmp_path / "s.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["select", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("option", ["--copy-to", "--link-to"])
def test_equal_names_stay_apart_and_a_second_run_goes_on(option: str, images: Path) -> None:
    result = run("s.csv", option, "out")
    assert result.exit_code == 3 and "in/gone.png: no such file" in result.stderr and result.stdout == ""
    assert files(images / "out") == {"a/1.png": "a/1.png", "b/1.png": "b/1.png", "2.png": "2.png"}
    assert (images / "out/2.png").is_symlink() is (option == "--link-to")
    (images / "out/2.png").unlink()
    again = run("s.csv", option, "out", "--out", "t.csv")
    assert "1 " in again.stderr and "2 were there already" in again.stderr
    assert len(files(images / "out")) == 3
    placed = read_scores("t.csv")
    assert [isinstance(p, str) and os.path.exists(p) for p in placed["placed"]] == [True, True, True, False]


def test_nothing_is_ever_overwritten(images: Path) -> None:
    (images / "out").mkdir()
    (images / "out" / "2.png").write_text("mine")
    assert run("s.csv", "--by", "required", "--bottom", 2, "--copy-to", "out").exit_code == 0
    found = files(images / "out")
    assert found.pop("2.png") == "mine" and sorted(found.values()) == ["2.png", "a/1.png"]
    assert run("s.csv", "--by", "required", "--bottom", 2, "--copy-to", "out").exit_code == 0
    assert len(files(images / "out")) == 3


def test_a_failed_copy_leaves_nothing_behind(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    def full(source: str, target: Path) -> None:
        Path(target).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy2", full)
    (one,) = export_images(["in/2.png"], "out", ExportMode.copy)
    assert one.error == "no space left on device" and files(images / "out") == {}


def test_names_that_are_no_text_and_places_beyond_the_folder(images: Path) -> None:
    raw = os.fsencode(images / "in") + b"/\xff.png"
    Path(os.fsdecode(raw)).write_text("odd")
    results = list(
        export_images(
            ["in/\\xff.png", "in/../in/2.png", "in"], "out", ExportMode.copy, base=common_folder(["in/x"])
        )
    )
    assert [result.error for result in results] == [None, None, "not a file"]
    assert sorted(files(images / "out").values()) == ["2.png", "odd"]
    assert all(str(images / "out") in os.path.abspath(r.target) for r in results[:2] if r.target)


def test_members_of_shards_and_rows_are_copied_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "s.tar", ["a.png", "b/c.png", "a.png"])
    write_parquet(tmp_path / "t.parquet", 4)
    (tmp_path / "x.png").write_bytes(picture(9))
    pq.write_table(pa.table({"path": ["x.png"]}), tmp_path / "u.parquet")
    paths = ["s.tar/a.png", "s.tar/b/c.png", "s.tar/a.png#2", "t.parquet/3", "u.parquet/0", "x.png#2"]
    write_scores(scores([9] * 8).assign(path=[*paths, "s.tar/no.png", "gone.tar/1.png"]), tmp_path / "s.csv")
    result = run("s.csv", "--copy-to", "out", "--out", "t.csv")
    assert result.exit_code == 3 and "6 copied to out" in result.stderr
    assert "s.tar/no.png: not in there any more" in result.stderr
    assert "gone.tar/1.png: gone.tar, which it lies in, is gone" in result.stderr
    expected = dict(zip(paths, [0, 1, 2, 3, 9, 9], strict=True))
    placed = read_scores("t.csv").set_index("path")["placed"]
    levels = {path: Image.open(placed[path]).getpixel((0, 0)) for path in paths}
    assert {path: level[0] for path, level in levels.items()} == expected  # type: ignore[index]
    assert (tmp_path / "out/t.parquet/3.png").is_file() and (tmp_path / "out/s.tar/a.png").is_file()
    assert "0 copied to out, 6 were there already" in run("s.csv", "--copy-to", "out").stderr


def test_links_cannot_lead_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "s.tar", ["a.png"])
    (tmp_path / "x.png").write_bytes(picture(9))
    pq.write_table(pa.table({"path": ["x.png"]}), tmp_path / "u.parquet")
    write_scores(scores([9, 9]).assign(path=["s.tar/a.png", "u.parquet/0"]), tmp_path / "s.csv")
    result = run("s.csv", "--link-to", "out")
    assert result.exit_code == 3 and "s.tar/a.png: lies in another file" in result.stderr
    assert (tmp_path / "out/u.parquet/0.png").samefile(tmp_path / "x.png")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", "a", "b.png", "", "."]), min_size=1, max_size=6))
def test_no_member_leaves_the_folder(tmp_path: Path, parts: list[str]) -> None:
    name = "/".join([*parts, "x.png"])
    (tmp_path / "deep").mkdir(exist_ok=True)
    shard = write_shard(tmp_path / "deep" / "s.tar", [name])
    base = common_folder([f"{shard}/{name}"])
    for placed in export_images([f"{shard}/{name}"], tmp_path / "deep" / "out", ExportMode.copy, base=base):
        assert placed.target is None or Path(placed.target).resolve().is_relative_to(
            tmp_path / "deep" / "out"
        )


def test_lists_and_tables(images: Path) -> None:
    assert run("s.csv", "--bottom", 1, "--format", "list").stdout == "in/gone.png\n"
    assert run("s.csv", "--by", "required", "--bottom", 1).stdout.splitlines()[1].startswith(",in/2.png,")
    assert run("s.csv", "--per-level", 1, "-o", "l.txt").exit_code == 0
    assert len(Path("l.txt").read_text().splitlines()) == 3
    assert run("s.csv", "-o", "l.txt").exit_code == 2
    assert run("s.csv", "-o", "all.parquet").exit_code == 0 and len(read_scores("all.parquet")) == 4
    said = run("s.csv", "--token-budget", 12, "-q", "-o", "-")
    assert said.stderr == "" and len(said.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["s.csv", "--by", "beauty"], "no column 'beauty'"),
        (["s.csv", "--top", "x"], "top needs a number"),
        (["s.csv", "--top", "1", "--per-level", "2"], "--top and --per-level exclude each other"),
        (["s.csv", "--fetch"], "go with --copy-to"),
        (["s.csv", "--copy-to", "a", "--link-to", "b"], "exclude each other"),
        (["s.csv", "--copy-to", "in/2.png"], "in/2.png"),
        (["s.csv", "-o", "x.xlsx"], "allowed: .csv"),
    ],
)
def test_usage_errors(arguments: list[str], expected: str, images: Path) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and expected in result.stderr and "Traceback" not in result.stderr
