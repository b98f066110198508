"""m3score evaluate and calibrate, killed: what was answered in time is kept, and is not asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from m3score.calibration.predictor.labelling.collect import IMAGES_PER_SHARD
from m3score.calibration.predictor.labelling.collection import open_collection
from tests.support.fakes import grey

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")

ROOT = Path(__file__).parents[2]
IMAGES = 60
SCRIPT = """
import os, time
from m3score.calibration.predictor.labelling import collect
from m3score.cli.main import main
from m3score.models import loading
from tests.support.fakes import FakeAnswerer

class Model(FakeAnswerer):
    def answer_ladder(self, images, questions, **options):
        time.sleep(float(os.environ["SECONDS_PER_IMAGE"]) * len(images))
        with open(os.environ["ASKED"], "a") as file:
            file.write("x" * len(images))
        return super().answer_ladder(images, questions, **options)

collect.SECONDS_PER_SHARD = 0.2
loading.load_model = lambda name, **options: Model()
main()
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(IMAGES):
        grey(4 * number, (20, 16)).save(folder / f"{number:02}.png")
    asked = [
        {"image": f"{number:02}.png", "question": "How many?", "answers": ["36 is needed"]}
        for number in range(IMAGES)
    ]
    (folder / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder


def command(name: str, photos: Path, work: Path) -> tuple[list[object], Path]:
    """Its words, and where its labels will lie."""
    more = ["--work", work, "--batch-size", 2, "-q"]
    if name == "evaluate":
        out = work.with_suffix(".csv")
        return [
            name,
            photos / "asked.jsonl",
            "--out",
            out,
            "--overwrite",
            *more,
        ], work / "m3-tiny/photos-asked"
    return [name, photos, "--questions", photos / "asked.jsonl", "--collect-only", *more], work


def start(words: list[object], asked: Path, seconds_per_image: float = 0.0) -> subprocess.Popen[bytes]:
    own = {"ASKED": str(asked), "SECONDS_PER_IMAGE": str(seconds_per_image), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *map(str, words)], env={**os.environ, **own})


@pytest.mark.parametrize("name", ["evaluate", "calibrate"])
def test_killed_twice(name: str, photos: Path, tmp_path: Path) -> None:
    words, folder = command(name, photos, tmp_path / "killed")
    asked = tmp_path / "asked"
    shards = 0
    for _ in range(2):
        process = start(words, asked, seconds_per_image=0.03)
        until = time.monotonic() + 60
        while len(list(folder.glob("traces-*.parquet"))) <= shards and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
        shards = len(list(folder.glob("traces-*.parquet")))
    kept = len(open_collection(folder).done())
    assert 16 <= kept < IMAGES < IMAGES_PER_SHARD, "two shards that were written for their age"
    asked.unlink()
    assert start(words, asked).wait() == 0
    assert asked.stat().st_size == IMAGES - kept
    whole, undisturbed = command(name, photos, tmp_path / "whole")
    assert start(whole, asked).wait() == 0
    by = ["image", "tokens"]
    killed, unkilled = (open_collection(one).traces() for one in (folder, undisturbed))
    pd.testing.assert_frame_equal(
        killed.sort_values(by, ignore_index=True), unkilled.sort_values(by, ignore_index=True)
    )
    if name == "evaluate":
        results = [(tmp_path / f"{one}.csv").read_bytes() for one in ("killed", "whole")]
        assert results[0] == results[1]
