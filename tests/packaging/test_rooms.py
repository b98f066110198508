"""The architecture holds: rooms import downwards, in no circle; each is small and says what it knows."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS: list[str] = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
ROOMS = [name for name in LAYERS if name not in ("cli", "calibration")]
MOST_FILES = 12
"""Beside __init__.py."""


def test_the_contracts_of_pyproject_are_kept() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, or nothing."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("m3score", cache_dir=None)
    arrows = {name: set(graph.find_modules_directly_imported_by(name)) for name in graph.modules}
    assert {"m3score.cli.main", "m3score.calibration.drawings.drawing"} <= arrows.keys()  # through the links
    assert sum(map(len, arrows.values())) > 400
    assert circle(arrows) == []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("room", LAYERS)
def test_a_room_says_what_it_knows(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / "m3score" / room / "__init__.py").read_text())) or ""
    sentences = re.findall(r"[^.]+[.](?=\s|$)", text)
    assert len(sentences) >= 2, f"m3score/{room}: two sentences, what it knows and what it does not"


def _folders() -> list[Path]:
    """Every folder of modules of the nine rooms."""
    return sorted({file.parent for room in ROOMS for file in (ROOT / "m3score" / room).rglob("*.py")})


@pytest.mark.parametrize("folder", _folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_room_has_few_files(folder: Path) -> None:
    files = sorted(file.name for file in folder.glob("*.py") if file.name != "__init__.py")
    assert len(files) <= MOST_FILES, files


def test_the_rooms_are_all_there_is() -> None:
    found = {path.parent.name for path in (ROOT / "m3score").glob("*/__init__.py")}
    assert found == set(LAYERS)
