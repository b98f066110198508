"""What a terminal shows: help with examples, its reference, completion, colours, the end of a ranking."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from m3score.cli.main import COMMANDS as LISTED
from m3score.cli.main import load_command
from m3score.cli.summary import show_extremes, show_summary
from m3score.cli.tables import print_table, screen
from m3score.routing.decision import BUDGET
from m3score.runs.tally import Tally
from tests.support.reports import LADDER, looked_rows, score_rows

ROOT = Path(__file__).parents[2]
INSTALLED = Path(sys.executable).with_name("m3score")
COMMANDS: dict[str, Any] = {name: load_command(name) for name in LISTED}
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3|4|9|10)\d")


def _options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_can_be_typed(name: str) -> None:
    epilog = re.sub(r"\[/?\w*\]", "", COMMANDS[name].epilog or "")
    assert "Example" in epilog
    examples = [
        part for part in re.split(r"\n|\||Examples?:|\. ", epilog) if part.strip().startswith("m3score")
    ]
    own = [shlex.split(example) for example in examples]
    assert any(words[1] == name for words in own)
    for words in own:
        assert {word for word in words if word.startswith("--")} <= _options(COMMANDS[words[1]]), words


def test_the_list_of_commands_says_what_they_say_themselves() -> None:
    for name, words in LISTED.items():
        assert " ".join(COMMANDS[name].help.split()).startswith(words)


@pytest.mark.skipif(
    not (INSTALLED.exists() and shutil.which("bash")), reason="needs bash and pip install -e ."
)
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["m3score", "sel"], {"select"}),
        (["m3score", "select", "--per"], {"--per-level"}),
        (["m3score", "rank", "--rule", ""], {"stays", "first"}),
    ],
)
def test_bash_completes(typed: list[str], offered: set[str]) -> None:
    script = (
        'eval "$(m3score --show-completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "_m3score_completion m3score; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    path = f"{INSTALLED.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", *typed],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
    )
    assert set(done.stdout.split()) == offered, done.stderr


def _said(terminal: bool, **changes: str) -> str:
    """The error that a wrong command prints, on a terminal or not."""
    kept = ("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
    env = {**{k: v for k, v in os.environ.items() if k not in kept}, "TERM": "xterm-256color", **changes}
    command = [sys.executable, "-m", "m3score", "select", "x.csv", "--copy-to", "a", "--link-to", "b"]
    if not terminal:
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True).stderr
    ours, theirs = os.openpty()
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=theirs, stderr=theirs, stdin=theirs) as process:
        process.wait(timeout=60)
        os.close(theirs)
        said = os.read(ours, 10_000).decode()
        os.close(ours)
    return said


@pytest.mark.skipif(os.name == "nt", reason="terminals of POSIX")
@pytest.mark.parametrize(
    ("terminal", "changes", "coloured"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_only_where_they_are_wanted(terminal: bool, changes: dict[str, str], coloured: bool) -> None:
    said = _said(terminal, **changes)
    assert "exclude each other" in said
    assert bool(COLOUR.search(said)) is coloured
    if not (terminal or changes):
        assert "\x1b" not in said


def _row(number: int, **more: Any) -> dict[str, Any]:
    return {"path": f"{number}.png", "complexity": 1 - number / 100, "required_tokens": 576, **more}


def _shown(first: list[dict[str, Any]], last: list[dict[str, Any]]) -> str:
    screen = io.StringIO()
    show_extremes(first, last, Console(file=screen, width=80))
    return screen.getvalue()


def test_a_ranking_ends_with_its_extremes() -> None:
    rows = [_row(number) for number in range(20)]
    rows[0]["path"] = "[red]\x1b[31m.png"
    rows[18] |= {"required_tokens": None, "predicted_tokens": 36}
    rows[19] |= {"required_tokens": None, "solved": False}
    shown = _shown(rows[:5], rows[-5:])
    assert [int(name) for name in re.findall(r"(\d+)\.png", shown)] == [1, 2, 3, 4, 19, 18, 17, 16, 15]
    assert "[red]\\x1b[31m.png" in shown and "unsolved" in shown and "36 (predicted)" in shown


def test_no_image_is_shown_as_both_extremes() -> None:
    rows = [_row(number) for number in range(7)]
    assert re.findall(r"(\d)\.png", _shown(rows[:5], rows[-5:])) == list("0123465")
    assert "Simplest" not in _shown(rows[:3], rows[:3])
    assert _shown([], []) == ""


# ---- one leading number ----------------------------------------------------------------------------


def _summary(rows: list[dict[str, Any]]) -> str:
    """The closing summary of a table, as one line."""
    screen, tally = io.StringIO(), Tally(LADDER)
    tally.count(sorted(rows, key=lambda row: -row["complexity"]))
    show_summary(tally, Console(file=screen, width=200), rule="stays")
    return " ".join(screen.getvalue().split())


def test_why_predictions_are_the_finest_scale() -> None:
    row = {"path": "a", "complexity": 0.5, "predicted_tokens": 576, "certified": False}
    other = {**row, "predicted_tokens": 36, "reason": "frames are looked at one by one"}
    said = _summary([{**row, "reason": f"unlike the others (p = {p})"} for p in (0.01, 0.02)] + [other])
    assert "2 of 3 got the finest scale: unlike the others." in said and "frames" not in said
    budget = {**row, "reason": BUDGET}
    assert "got the finest scale" not in _summary([budget])


def test_without_a_question_effective_tokens_lead_and_complexity_is_their_logarithm() -> None:
    said = _summary(looked_rows(9))  # complexities 0, 1/9 ... 8/9; the one in the middle is 4/9
    assert "no question was asked" in said and "Images by the scale that holds their effective tokens" in said
    assert "Median 17 effective tokens of 576: complexity 0.444, the logarithm of effective tokens" in said
    assert "complexity effective tokens path" in said and "tokens needed" not in said
    assert f"0.889 {576 ** (8 / 9):.0f} " in said


def test_where_a_model_was_asked_tokens_needed_lead_and_effective_tokens_are_silent() -> None:
    """Means of effective tokens beside "38% need 576" said two things with one word."""
    rows = [row | {"judged_by": "agreement"} for row in score_rows(30) if row["solved"]]
    said = _summary(rows)
    assert (
        "fewest visual tokens per grid with which the answers stay what the model says with all 576" in said
    )
    assert "Median 36 tokens needed, mean 153.2, of 576." in said  # (1 + 9 + 36 + 144 + 576) / 5
    assert "how far answers change with fewer tokens" in said and "effective" not in said
    assert "complexity tokens needed path" in said
    right = _summary([row | {"judged_by": "right answers"} for row in rows])
    assert "with which the answers are right." in right and "the logarithm of tokens needed" in right


def test_what_the_model_does_not_know_is_not_called_complex() -> None:
    rows = [row | {"judged_by": "right answers"} for row in score_rows(30)]
    for row in rows:
        row["complexity"] = row["complexity"] if row["solved"] else 1.0
    said = _summary(rows)
    assert "5 images of 30 are unsolved" in said and "left out of these figures" in said
    assert "Median 36 tokens needed, mean 153.2" in said
    extremes = said.partition("Most complex")[2]
    assert "1.000" not in extremes and "unsolved" not in extremes
    nothing = _summary([row for row in rows if not row["solved"]])
    assert "5 images of 5 are unsolved" in nothing and "Most complex" not in nothing


def test_rows_that_were_judged_by_different_things_have_no_common_mean() -> None:
    said = _summary([*looked_rows(3), *(row | {"judged_by": "agreement"} for row in score_rows(3))])
    assert (
        "Judged by different things (agreement, vision)" in said
        and "Mean" not in said
        and "Median" not in said
    )


LONG = "a-very-long-name-of-a-score-table-of-photographs"


@pytest.mark.parametrize("width", [80, 60, None])
def test_tables_are_cut_nowhere(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a terminal names are folded, and figures are in one piece; in a pipe nothing is broken."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: width is not None)
    monkeypatch.setenv("COLUMNS", str(width or 80))
    on = screen()
    table = Table()
    table.add_column("path")
    for heading in ("asks the model", "95% interval", "GPU-hours", "journal GB"):
        table.add_column(heading, justify="right")
    table.add_row(LONG, "1,000,000,000", "-1.00 to 1.00", "123,456,789", "0.0803")
    print_table(table, on)
    shown = capsys.readouterr().out
    for figure in ("1,000,000,000", "-1.00 to 1.00", "123,456,789", "0.0803", "GPU-hours"):
        assert figure in shown, shown
    letters = "".join(cells[1].strip() for line in shown.splitlines() if len(cells := line.split("│")) > 2)
    assert LONG in letters and "…" not in shown
    assert width is not None or LONG in shown


def test_plan_in_a_pipe_breaks_no_line(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "m3score", "plan", "--sample", str(tmp_path), "--images", "1e12"]
    env = {**os.environ, "COLUMNS": "40", "TERM": "dumb"}
    done = subprocess.run([*command, "--seconds", "0.2"], cwd=ROOT, env=env, capture_output=True, text=True)
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.strip()}
    assert rows["model"][1] == "1,000,000,000,000" and len(rows["model"]) == 7, done.stdout + done.stderr
    assert "Measured: predictor" in done.stdout and "bytes per row of the journal." in done.stdout
