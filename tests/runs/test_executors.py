"""--engine ray, on a Ray cluster of two small machines that are processes here; one of them is killed.

The cluster is started once for this file: that takes Ray several seconds.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

import m3score
from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.data.item import ImageItem
from m3score.data.questions import Question
from m3score.runs.executors.block_store import BlockStore, blocks_folder
from m3score.runs.executors.ray_cluster import RayExecutor
from m3score.runs.executors.ray_worker import pack_items, unpack_items
from m3score.scoring.scorers.model import ModelOptions, ModelScorer
from tests.support.fakes import FakeAnswerer
from tests.support.predictors import small_predictor

MACHINE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines with a CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    pytest.importorskip("ray", reason='needs Ray: pip install "m3score[ray]"')
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        try:
            cluster.add_node(**MACHINE, include_dashboard=False)
            cluster.add_node(**MACHINE)
        except Exception as error:
            if "timed out during startup" in str(error):
                pytest.skip("this machine is too busy for Ray, which gives its parts 15 seconds to start")
            raise
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 small pictures, a broken one, and one whose name is not UTF-8."""
    folder = tmp_path_factory.mktemp("pictures")
    dice = np.random.default_rng(0)
    for number in range(99):
        side = 8 + number % 40
        Image.fromarray(dice.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    os.link(folder / "0.png", os.fsencode(folder) + b"/\xff.png")
    return folder


def rank(*arguments: object, exit_code: int = 0) -> str:
    """`m3score rank`; what it said."""
    done = CliRunner().invoke(app, ["rank", *map(str, arguments)])
    assert done.exit_code == exit_code, done.output
    return done.output


@pytest.fixture(scope="module")
def predicting(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A run with a predictor, and what it writes on this machine alone, in `local.csv`."""
    home = tmp_path_factory.mktemp("predicting")
    small_predictor().save(home / "made-up.predictor")
    run = [pictures, "--scorer", "predictor", "--predictor", home / "made-up.predictor"]
    rank(*run, "--out", home / "local.csv", exit_code=3)
    return [home / "local.csv", *run]


def test_same_table_as_local_though_a_machine_dies(
    cluster: Any, predicting: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3score.runs.executors.ray_cluster.MEASURED_AT_ONCE", 4)
    local, *run = predicting
    out = tmp_path / "scores.csv"
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if (done := len(list(blocks_folder(out).glob("*.parquet")))) >= 4:
                killed.append(done)
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        rank(*run, "--out", out, "--engine", "ray", "--address", cluster.address, exit_code=3)
    finally:
        killer.join()
    assert killed and killed[0] < 20, "the machine died in the middle of the run"
    assert out.read_bytes() == Path(str(local)).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.csv"], "nothing is left beside it"


def test_model_gives_the_same_tables(cluster: Any, pictures: Path, tmp_path: Path) -> None:
    """With one thread here too, as a worker with one CPU has: sums differ in the last bits with others."""
    import torch

    threads = torch.get_num_threads()
    run = [pictures, "--limit", "12", "--batch-size", "2", "--question", "What is it?"]
    for name, engine in (("local", []), ("ray", ["--engine", "ray", "--address", cluster.address])):
        torch.set_num_threads(1)
        try:
            rank(*run, *engine, "--out", tmp_path / f"{name}.csv", "--traces", tmp_path / f"{name}.jsonl")
        finally:
            torch.set_num_threads(threads)
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()


def test_blocks_of_an_earlier_run_are_not_done_again(
    cluster: Any, predicting: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks are done but the journal is empty, as when the collecting process is killed early."""
    local, *run = predicting
    out = tmp_path / "scores.csv"
    on_cluster = [*run, "--out", out, "--engine", "ray", "--address", cluster.address]
    monkeypatch.setattr(BlockStore, "remove", lambda self: None)
    rank(*on_cluster, exit_code=3)
    out.unlink()
    monkeypatch.setattr(
        "m3score.runs.executors.ray_stream.RayStream._start",
        lambda self: pytest.fail("there is nothing to do"),
    )
    rank(*on_cluster, exit_code=3)
    assert out.read_bytes() == Path(str(local)).read_bytes()


# ---- without a cluster --------------------------------------------------------------------------------


def test_block_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    items = [ImageItem(str(tmp_path / "a.png"), "a.png"), ImageItem("b.png", "b.png", content=b"2")]
    done = BlockStore(tmp_path / "scores.csv", {"--question": None})
    name = done.name_of(items)
    assert not done.earlier(name, 2)
    done.write(name, ['{"error": null}', '{"row": {"error": null}}'])
    written = (done.folder / f"{name}.parquet").read_bytes()
    done.write(name, ['{"error": null}', '{"row": {"error": null}}'])
    assert [path.read_bytes() for path in done.folder.iterdir()] == [written], "written twice, there once"
    assert done.earlier(name, 2) and not done.earlier(name, 3)
    (done.folder / f"{name}.parquet").write_bytes(written[:-9])
    assert not done.earlier(name, 2), "torn"
    done.write(name, ['{"error": "died", "transient": true}', '{"row": {"error": null}}'])
    assert not done.earlier(name, 2), "that may pass"
    done.write(name, ['{"error": "took longer than the limit"}', '{"row": {"error": null}}'])
    assert done.earlier(name, 2), "words decide nothing"

    os.utime(tmp_path / "a.png", ns=(1, 1))
    assert done.name_of(items) != name
    assert BlockStore(tmp_path / "scores.csv", {"--question": "?"}).name_of(items) != name
    BlockStore(tmp_path / "scores.csv", {}, overwrite=True)
    assert not list(done.folder.iterdir())


def test_inputs_arrive_as_they_were_sent() -> None:
    asked = Question("What?", answers=("a", "b"), options=("x",), metric=None)
    items = [
        ImageItem("a\udcff.png", "a\udcff.png", original="b"),
        ImageItem("c", "c", content=b"\0\xff", questions=(asked, Question("Who?"))),
        ImageItem("d", "d", error="no such file"),
    ]
    assert unpack_items(pack_items(items)) == items


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--address", "auto"], "go with --engine ray"),
        (["--engine", "ray", "--address", "ray://x:1"], "run the command on a machine of the cluster"),
        (["--engine", "ray", "--profile"], "--profile is for --engine local"),
    ],
)
def test_options_that_make_no_sense(options: list[str], told: str, pictures: Path) -> None:
    pytest.importorskip("ray", reason='needs Ray: pip install "m3score[ray]"')
    assert told in " ".join(rank(pictures, *options, exit_code=2).split())


def test_the_call_gives_the_same_table(cluster: Any, predicting: list[object], pictures: Path) -> None:
    """With each scorer that computes something else: nothing of it is bound to this machine."""
    _, _, _, _, _, predictor = predicting
    where: dict[str, Any] = {"engine": "ray", "address": cluster.address, "limit": 20}
    scorers: dict[str, dict[str, Any]] = {
        "edges": {},
        "predictor": {"predictor": str(predictor)},
        "cascade": {"predictor": str(predictor), "max_model_images": 2, "question": "What is it?"},
    }
    for scorer, options in scorers.items():
        here = m3score.rank(pictures, scorer=scorer, limit=20, **options)
        there = m3score.rank(pictures, scorer=scorer, **where, **options)
        pd.testing.assert_frame_equal(here, there, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": FakeAnswerer()}, "give its name, not a model"),
        ({"scorer": ModelScorer(ModelOptions(model=FakeAnswerer()))}, "needs a scorer's name or class"),
    ],
)
def test_what_is_only_here_is_refused(
    options: dict[str, Any], told: str, cluster: Any, pictures: Path
) -> None:
    with pytest.raises(M3ScoreError, match=told):
        m3score.rank(pictures, engine="ray", address=cluster.address, **options)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_wrong_address_is_one_sentence(address: str, pictures: Path) -> None:
    pytest.importorskip("ray", reason='needs Ray: pip install "m3score[ray]"')
    said = rank(pictures, "--engine", "ray", "--address", address, exit_code=2)
    assert "no Ray cluster answers there" in " ".join(said.split()) and "Traceback" not in said


def test_without_ray_the_pip_line_is_told(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = rank(pictures, "--engine", "ray", exit_code=2)
    assert 'pip install "m3score[ray]"' in " ".join(said.split())
    with pytest.raises(M3ScoreError, match="needs Ray"), RayExecutor():
        pass
