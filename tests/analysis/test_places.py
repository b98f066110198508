"""Where the pictures of a table are looked for: one rule for every command that reads one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from m3score.cli.main import app
from m3score.data.extract import finder
from tests.support.fakes import grey

ORDER = ("tables", "work", "elsewhere")
"""The table's folder, the working folder, and what --root names."""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The name of a score table with traces beside it, about pictures that lie nowhere any more."""
    for name in (*ORDER, "origin"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "origin")
    for i in range(3):
        put(tmp_path / "origin", i)
    words = [
        "rank",
        "in",
        "--question",
        "What?",
        "--out",
        "../tables/s.csv",
        "--traces",
        "../tables/t.parquet",
        "-q",
    ]
    assert CliRunner().invoke(app, words).exit_code == 0
    monkeypatch.chdir(tmp_path / "work")
    return Path("../tables/s.csv")


def put(folder: Path, number: int, level: int = 9) -> None:
    (folder / "in").mkdir(exist_ok=True)
    grey(level).save(folder / "in" / f"{number}.png")


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.split())


def test_the_order_of_the_places(table: Path, tmp_path: Path) -> None:
    find = finder(table.parent, "../elsewhere")
    assert find("in/0.png") == "in/0.png"  # it lies nowhere
    for place in reversed(ORDER):
        put(tmp_path / place, 0)
        assert os.path.samefile(find("in/0.png"), tmp_path / place / "in/0.png")
    assert find(str(tmp_path / "work")) == str(tmp_path / "work")


@pytest.mark.parametrize("place", ORDER)
def test_every_command_finds_them_in_each_place(table: Path, tmp_path: Path, place: str) -> None:
    traces = table.with_name("t.parquet")
    commands = [
        ("select", table, "--copy-to", "out", "--out", "placed.csv", "--overwrite"),
        ("report", table, "--out", "r.html", "--no-heat-maps", "--overwrite"),
        ("check-predictor", "m3-tiny", traces),
    ]
    gone = [run(*command, "--root", "../elsewhere") for command in commands]
    assert [code for code, _ in gone] == [3, 3, 2]
    assert "in the table's folder, in the working folder, and in --root" in gone[1][1]
    assert "in the table's folder, in the working folder, and in --root" in gone[2][1]
    for i in range(3):
        put(tmp_path / place, i)
    found = [run(*command, "--root", "../elsewhere") for command in commands]
    assert [code for code, _ in found[:2]] == [0, 0], found
    assert "drift:" in found[2][1]
    assert sorted(path.name for path in (tmp_path / "work" / "out").iterdir()) == ["0.png", "1.png", "2.png"]
    if place == "elsewhere":
        assert [run(*command)[0] for command in commands] == [3, 3, 2]


def test_the_page_of_a_run_shows_the_pictures_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, 0)
    (tmp_path / "tables" / "in").mkdir(parents=True)
    (tmp_path / "tables" / "in" / "0.png").write_bytes(b"another file of that name")
    words = ("rank", "in", "--scorer", "jpeg", "--out", "tables/s.csv", "--report", "tables/r.html", "-q")
    assert run(*words) == (0, "")
    assert "not an image" not in (tmp_path / "tables" / "r.html").read_text()
