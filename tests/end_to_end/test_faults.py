"""Runs that are killed, interrupted, starved: no row lost, none twice, the table of an undisturbed run."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m3score.runs.resume.journal import journal_path
from tests.support.fakes import grey
from tests.support.runs import kill_when, records, run

NO_ROOM = "cannot write (No space left on device)."
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images and two that can't be read."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(40):
        grey(number * 6).save(folder / f"{number:02}.png")
    (folder / "05b.png").write_bytes(b"x")
    (folder / "33b.png").write_bytes(b"")
    return folder


def command(folder: Path, out: Path, *more: object) -> list[Any]:
    traces = out.with_name("t" + out.suffix)
    return ["rank", folder, "--question", "What?", "--batch-size", 2, "--traces", traces, "--out", out, *more]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    out = tmp_path_factory.mktemp("whole") / "s.csv"
    assert run(*command(folder, out))[0] == 3
    assert sorted(os.listdir(out.parent)) == ["s.csv", "t.csv"]
    return out.read_bytes(), out.with_name("t.csv").read_bytes()


def test_killed_again_and_again(folder: Path, tmp_path: Path, undisturbed: tuple[bytes, bytes]) -> None:
    out = tmp_path / "s.csv"
    traces = out.with_name("t.csv")
    for moment in (
        lambda: records(out) > 1,
        lambda: records(out) > 14,
        lambda: traces.exists() or any(name.endswith(".tmp") for name in os.listdir(tmp_path)),
    ):
        kill_when(moment, *command(folder, out), seconds_per_batch=0.03)
        assert not out.exists() or out.read_bytes() == undisturbed[0]
    if journal_path(out).exists():  # the last kill may have come too late
        code, said = run(*command(folder, out))
        assert code == 3 and "Going on where an earlier run stopped" in said and "were done before" in said
    assert (out.read_bytes(), traces.read_bytes()) == undisturbed
    assert sorted(os.listdir(tmp_path)) == ["s.csv", "t.csv"]


def test_interrupted_then_another_option_then_the_same(
    folder: Path, tmp_path: Path, undisturbed: tuple[bytes, bytes]
) -> None:
    out = tmp_path / "s.csv"
    code = kill_when(
        lambda: records(out) > 9, *command(folder, out), seconds_per_batch=0.05, with_signal=signal.SIGTERM
    )
    assert code == 130 and 9 <= len(out.read_text().splitlines()) < 40  # the rows so far
    code, said = run(*command(folder, out, "--rule", "first"))
    assert code == 2 and '--rule was "stays" then and is "first" now' in said and "Traceback" not in said
    assert run(*command(folder, out))[0] == 3
    assert (out.read_bytes(), out.with_name("t.csv").read_bytes()) == undisturbed


def test_what_is_done_again_is_said(folder: Path, tmp_path: Path) -> None:
    """Groups of 8 here: what an earlier run did of an unfinished one is done again, and that is no secret."""
    out = tmp_path / "s.csv"
    kill_when(lambda: records(out) >= 1 + 13, *command(folder, out), seconds_per_batch=0.3)
    done = records(out) - 1
    code, said = run(*command(folder, out))
    assert code == 3 and 13 <= done < 24
    assert f"{done} rows" in said and "An unfinished group of 8 images is done again as a whole." in said
    assert f"of which {done // 8 * 8} were done before" in said
    again = f"{done % 8} images were done again, with a group of 8 that was not finished"
    assert again in said or done % 8 < 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a disk that is always full")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rank", "--scorer", "jpeg", "--quiet"], f"stdout: {NO_ROOM}"),
        (
            ["rank", "--format", "parquet", "--scorer", "jpeg"],
            f"stdout: {NO_ROOM}",
        ),
        (["--help"], NO_ROOM),
        (["info"], NO_ROOM),
    ],
)
def test_a_full_disk_behind_stdout(folder: Path, arguments: list[Any], told: str) -> None:
    paths = [folder] if "rank" in arguments else []
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "m3score", *arguments, *paths],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 4 and done.stderr.strip().splitlines()[-1] == f"error: {told}"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    line = f"{sys.executable} -m m3score rank {folder} --scorer jpeg --quiet | true"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_a_full_disk(folder: Path, tmp_path: Path, undisturbed: tuple[bytes, bytes]) -> None:
    out = tmp_path / "s.csv"

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    code, said = run(*command(folder, out), preexec_fn=little)
    assert (
        code == 4
        and "cannot write (File too large); what is done is kept" in said
        and "Traceback" not in said
    )
    assert records(out) > 2
    code, said = run(*command(folder, out, "--overwrite"))
    assert code == 3 and "Going on" not in said
    assert (out.read_bytes(), out.with_name("t.csv").read_bytes()) == undisturbed
