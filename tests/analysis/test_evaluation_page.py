"""docs/evaluation.md is true: its table and command run, and its other commands exist."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from m3score.calibration.benchmarks.results import benchmark_result
from m3score.calibration.benchmarks.task_data import load_own
from m3score.cli.main import app
from m3score.tables.io import read_traces

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "examples" / "mine.csv").write_text(blocks("csv")[0])
    monkeypatch.chdir(tmp_path)
    (line,) = blocks("bash")[0].splitlines()
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    text = Path("results.md").read_text()
    assert "m3-tiny on 4 questions about 3 images" in text and re.search(r"needs \d+ tokens? per grid", text)
    assert Path("evaluations/m3-tiny/examples-mine/collection.json").exists()
    judged = benchmark_result(
        read_traces("traces.parquet"), load_own("examples/mine.csv", None, None), resamples=10
    )
    assert [
        q.question.metric for e in load_own("examples/mine.csv", None, None).entries for q in e.questions
    ] == [
        None,
        None,
        None,
        "contains",
    ]
    assert f"| 576 | 576 | {100 * judged.score(576).value:.1f} |" in text


@pytest.mark.parametrize(
    "line", [line for block in blocks("console") for line in block.splitlines() if line.startswith("m3score")]
)
def test_its_other_commands_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    command = get_command(app).get_command(None, words[0])  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
