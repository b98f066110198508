"""The wheel has everything that a checkout has, and works where it is installed alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("m3score", "cli", "calibration")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")


def _modules() -> dict[str, str]:
    """Folder -> dotted name, of every folder with Python files. Folders that are reached by a link once."""
    found = {}
    for top in SOURCES:
        for folder, _, names in os.walk(ROOT / top):  # does not follow links
            if any(name.endswith(".py") for name in names):
                parts = Path(folder).relative_to(ROOT).parts
                found["/".join(parts)] = ".".join(parts if top == "m3score" else ("m3score", *parts))
    return found


def test_pyproject_lists_every_package() -> None:
    """setuptools leaves a folder that is not listed out of the wheel, and says nothing."""
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(_modules().values())
    assert len(listed) == len(set(listed))


def test_every_folder_of_modules_has_an_init() -> None:
    assert [folder for folder in _modules() if not (ROOT / folder / "__init__.py").is_file()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without network: building leaves folders beside the sources."""
    pytest.importorskip("setuptools", "77")
    source, out = tmp_path_factory.mktemp("source") / "m3score", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


def _pip(*words: str) -> None:
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    if words[0] == "wheel":
        options.append("--no-build-isolation")
    done = subprocess.run([sys.executable, "-m", "pip", *words, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_every_file(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = set()
    for top in SOURCES:
        for folder, folders, names in os.walk(ROOT / top):
            folders[:] = [name for name in folders if name != "__pycache__"]
            parts = Path(folder).relative_to(ROOT).parts
            inside = "/".join(parts if top == "m3score" else ("m3score", *parts))
            wanted |= {f"{inside}/{name}" for name in names}
    assert packed == {name for name in wanted if not os.path.islink(ROOT / name)}


@pytest.mark.slow
def test_the_installed_wheel_ranks(wheel: Path, tmp_path: Path) -> None:
    """In an empty folder, with nothing of the checkout to be found; only the dependencies are shared."""
    site = tmp_path / "site"
    _pip("install", "--target", str(site), str(wheel))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    where = [sys.executable, "-c", "import m3score.cli.main as main; print(main.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site)
    command = [str(site / "bin" / "m3score"), "rank", "examples", "--out", "scores.csv"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == len(list((ROOT / "examples").glob("*.png")))
    assert table["complexity"].between(0, 1).all() and table["error"].isna().all()
