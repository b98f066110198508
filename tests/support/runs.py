"""Runs of the command in processes of their own, with a model that needs no time or with a real one, to be
killed at will."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m3score.runs.resume.journal import journal_path

ROOT = Path(__file__).parents[2]

_SCRIPT = """
import os, sys, time
from m3score.scoring.scorers import model as scorer
from m3score.cli.main import main
from tests.support.fakes import FakeAnswerer

class Model(FakeAnswerer):
    def answer_ladder(self, *arguments, **options):
        time.sleep(float(os.environ["SECONDS_PER_BATCH"]))
        return super().answer_ladder(*arguments, **options)

scorer.loaded_model = lambda model, loading: Model()
main()
"""


def start(*arguments: object, seconds_per_batch: float | None = 0.0, **options: Any) -> subprocess.Popen[str]:
    """`m3score ARGUMENTS` with a fake model; with the real one if it is given no seconds."""
    how = ["-m", "m3score"] if seconds_per_batch is None else ["-c", _SCRIPT]
    return subprocess.Popen(
        [sys.executable, *how, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SECONDS_PER_BATCH": str(seconds_per_batch), "PYTHONPATH": str(ROOT)},
        **options,
    )


def run(*arguments: object, **options: Any) -> tuple[int, str]:
    """Its exit code and what it said on stderr."""
    process = start(*arguments, **options)
    _, said = process.communicate(timeout=600)
    return process.returncode, said


def invoke(*arguments: object) -> Any:
    """The command in this process: click's result, of a run that may end but not break."""
    from typer.testing import CliRunner

    from m3score.cli.main import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def kill_when(
    condition: Callable[[], bool],
    *arguments: object,
    seconds_per_batch: float = 0.0,
    with_signal: int = signal.SIGKILL,
) -> int:
    """Start the command and kill it as soon as the condition holds; its exit code."""
    process = start(*arguments, seconds_per_batch=seconds_per_batch)
    until = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(with_signal)
    process.communicate(timeout=60)
    return process.returncode


def records(out: Path) -> int:
    """Lines in the journal of an output."""
    try:
        return journal_path(out).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
