"""The README is true: its Python runs, its commands and options exist, CI runs its test command."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from m3score.cli.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands() -> list[list[str]]:
    lines = [line.split(" #")[0] for block in _blocks("bash") for line in block.splitlines()]
    parts = [part for line in lines for part in re.split(r"&&", line) if "m3score " in part]
    words = [shlex.split(part) for part in parts]
    return [line[next(i for i, w in enumerate(line) if w.endswith("m3score")) + 1 :] for line in words]


@pytest.mark.parametrize("block", [one for one in _blocks("python") if "push_to_hub" not in one])
def test_the_python_of_the_readme_runs(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_the_commands_of_the_readme_exist(words):
    group = get_command(app)
    command = group.get_command(None, words[0])  # type: ignore[attr-defined]
    assert command is not None
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word for word in words if word.startswith("--")} <= known


def test_ci_runs_what_the_readme_says():
    tests = next(line for block in _blocks("bash") for line in block.splitlines() if "pytest" in line)
    script = (ROOT / ".ci/run").read_text()
    for part in tests.split("&&"):
        assert part.strip() in script
