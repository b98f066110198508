"""README and docs are true: examples print what is shown, commands and files exist, pictures are current."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from PIL import Image
from typer.main import get_command

import m3score
from m3score.calibration.benchmarks.task_data import load_own
from m3score.cli.main import COMMANDS, app
from tools import draw_ladder, draw_rooms, write_outputs

ROOT = Path(__file__).parents[2]
_WRITTEN = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "m3score" / "assets").glob("*/README.md")),
]
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in _WRITTEN}
LARGEST_README = 8 * 1024


def _blocks(language: str, *, without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(page, content) of every block of a language."""
    return [
        (name, block)
        for name, text in PAGES.items()
        if name not in without
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def _commands() -> list[tuple[str, str]]:
    """(page, words after m3score) of every command in a bash block."""
    lines = [(page, line) for page, block in _blocks("bash") for line in block.splitlines()]
    parts = [(page, part) for page, line in lines for part in re.split(r"&&|\|(?!\w)", line.split(" #")[0])]
    found = [(page, re.search(r"(?:^|[ /])m3score (.+)", part)) for page, part in parts]
    return [(page, match[1]) for page, match in found if match]


# ---- examples ---------------------------------------------------------------------------------------------

# test_curation.py runs the recipes, and the script that pushes to the hub.
PYTHON = [
    (page, block)
    for page, block in _blocks("python", without=("docs/recipes.md",))
    if "push_to_hub" not in block
]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the examples as the working folder; data sets are cached elsewhere."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with write_outputs.scratch_folder():
        yield


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[page for page, _ in PYTHON])
def test_the_python_runs(page: str, block: str, scratch: None) -> None:
    Path("example.py").write_text(block)
    runpy.run_path("example.py", run_name="example")


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if write_outputs.has_outputs(text)])
def test_examples_print_what_is_shown(page: str, scratch: None) -> None:
    assert write_outputs.with_outputs(PAGES[page]) == PAGES[page], "run python tools/write_outputs.py"


@pytest.mark.parametrize(
    ("shown", "now", "alike"),
    [
        ("b 0.77", "b 0.78", True),
        ("b 0.77", "b 0.79", False),
        ("b 0.7", "b 0.77", False),
        ("b 274", "b 275", False),
        ("a 0.77", "b 0.77", False),
    ],
)
def test_only_last_digits_may_differ(shown: str, now: str, alike: bool) -> None:
    assert write_outputs.same(shown, now) is alike


def test_wrong_output_is_noticed(scratch: None) -> None:
    page = "```console\n$ m3score --version\nm3score none\n```\n\n```pycon\n>>> 1 + 1\n3\n```\n"
    assert "none" not in write_outputs.with_outputs(page)
    assert ">>> 1 + 1\n2\n" in write_outputs.with_outputs(page)


def test_the_table_of_questions_is_read_as_the_page_says(scratch: None) -> None:
    (name, content) = re.findall(r'```csv title="(.+?)"\n(.*?)```', PAGES["docs/evaluation.md"], re.DOTALL)[0]
    Path(name).write_text(content)
    asked = [q.question for entry in load_own(name, None, None).entries for q in entry.questions]
    assert [one.metric for one in asked] == [None, None, None, "contains"]
    assert [len(one.options) for one in asked] == [0, 0, 3, 0]


# ---- commands and files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_and_their_options_exist(page: str, line: str) -> None:
    words = [word for word in shlex.split(line) if not word.startswith(">")]
    if words[0] == "--version":
        return
    command = get_command(app).get_command(None, words[0])  # type: ignore[attr-defined]
    assert command is not None
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    named = re.findall(r"(?<![\w/.])((?:[\w-]+/)+[\w.-]+\.(?:py|toml|yaml))\b", PAGES[page])
    own = [name for name in named if (ROOT / name.split("/")[0]).is_dir() or _room(name).parent.is_dir()]
    assert [name for name in own if not ((ROOT / name).exists() or _room(name).exists())] == []


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_are_run_exist(page: str) -> None:
    modules = re.findall(r"python -m (m3score[\w.]*)", PAGES[page])
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def _room(name: str) -> Path:
    return ROOT / "m3score" / name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", PAGES[page]) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_fits_on_two_screens_and_lists_every_command() -> None:
    text = PAGES["README.md"]
    assert len(text.encode()) <= LARGEST_README
    assert set(re.findall(r"\]\(docs/commands/([\w-]+)\.md\)", text)) == set(COMMANDS)


def test_ci_runs_what_the_readme_says() -> None:
    blocks = [block for page, block in _blocks("bash") if page == "README.md"]
    tests = next(line for block in blocks for line in block.splitlines() if "pytest" in line)
    script = (ROOT / ".ci/run").read_text()
    for part in tests.split("&&"):
        assert part.strip() in script


# ---- what is generated ------------------------------------------------------------------------------------


def test_the_pages_of_the_commands_are_what_help_says() -> None:
    done = subprocess.run(
        [sys.executable, "tools/write_command_pages.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "40", "M3SCORE_MODEL": "mine"},
    )
    assert done.returncode == 0, done.stderr


def test_the_picture_shows_what_the_model_answers() -> None:
    with Image.open(draw_ladder.FILE) as picture:
        shown = json.loads(picture.info["answers"])
    assert shown == draw_ladder.answers(), "run python tools/draw_ladder.py"


def test_the_picture_and_the_table_of_rooms_are_those_of_the_contract() -> None:
    assert draw_rooms.FILE.read_text() == draw_rooms.drawing(), "run python tools/draw_rooms.py"
    assert re.findall(r"^\| `(\w+)` \|", PAGES["docs/architecture.md"], re.MULTILINE) == draw_rooms.layers()


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    site = ["--quiet", "--site-dir", str(tmp_path / "site")]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *site]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in COMMANDS:
        assert (tmp_path / "site" / "commands" / name / "index.html").is_file()
    python = (tmp_path / "site" / "api" / "index.html").read_text()
    shown = {name.rpartition(".")[2] for name in re.findall(r'id="(m3score[\w.]+)"', python)}
    assert shown >= {name for name in m3score.__all__ if name != "__version__"}
