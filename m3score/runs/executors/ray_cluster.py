"""Many machines at once: blocks of inputs to the workers of a Ray cluster, results back in order.

Ray Data moves the blocks, keeps one worker per CPU or GPU busy, and gives the blocks of a worker or machine
that died to others (ray_dispatch.py). Only a few more blocks than there are workers for are on their way,
however many inputs there are.

Ray Data's own checkpoints are not used: they need inputs and outputs in files that all machines share, and
hold the ids of all that is done in memory. FinishedBlocks does their work.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError, one_line
from m3score.data.item import FoundImage
from m3score.runs.block_store import FinishedBlocks
from m3score.runs.executors.ray_dispatch import ATTEMPTS, Line, here_and_now, settle, told

if TYPE_CHECKING:
    from m3score.runs.executors.jobs import Job, ModelFacts, ModelJob

PREDICTED_AT_ONCE = 256
"""Inputs in a block for a predictor: half a second of work, so that little is lost with a machine."""

CONNECT_SECONDS = 10.0
"""After so long, nobody answers at an address."""

AHEAD = 4
"""Blocks per worker that are on their way, or done and waiting for an earlier one."""


class Cluster:
    """A connection to a Ray cluster, for one run; `connected` makes one."""

    def __init__(self, workers: int | None = None, num_gpus: float | None = None) -> None:
        """
        Args:
            workers: at most so many; by default as many as the cluster has room for now.
            num_gpus: GPUs for each worker; by default one, if the cluster has any and there is a model.
        """
        self._workers = workers
        self._num_gpus = num_gpus

    def facts(self, job: ModelJob) -> ModelFacts:
        """What the model is, seen by a machine that is to run it."""
        import ray

        look = ray.remote(_facts).options(num_cpus=1, num_gpus=self.gpus(job), max_retries=ATTEMPTS)
        with told():
            self._check_room(job)
            return ray.get(look.remote(job, here_and_now()))

    def stream(
        self, items: Iterable[FoundImage], job: Job, block: int, done: FinishedBlocks
    ) -> Generator[Any, None, None]:
        """One result per input, in order, as `job.result` makes them.

        Args:
            items: taken a few blocks ahead of the results.
            job: what to do with them.
            block: inputs that go to a worker together.
            done: where finished blocks go, and those of earlier runs are.

        Raises:
            M3ScoreError: the cluster can't do it, or it failed again and again. Finished
                blocks are kept.
        """
        blocks = _blocks(items, block)
        waiting: deque[tuple[str, int]] = deque()
        line = Line(self, job)
        more = True
        with closing(line):
            while True:
                while more and len(waiting) < AHEAD * (line.workers + 1):
                    chunk = next(blocks, None)
                    if chunk is None:
                        more = False
                        line.end()
                        break
                    name = done.name_of(chunk)
                    waiting.append((name, len(chunk)))
                    if not done.earlier(name, len(chunk)):
                        line.put(name, chunk)
                if not waiting:
                    return
                name, count = waiting.popleft()
                while name in line.missing:
                    done.write(*line.get())
                results = done.read(name, count)
                if results is None:
                    raise M3ScoreError(f"{done.folder}: a finished block vanished; start the command again.")
                yield from map(job.result, results)

    # ---- what there is

    def room(self, job: Job) -> int:
        """How many workers the cluster has room for now; at least one, which may have to wait."""
        import ray

        there = ray.cluster_resources()
        rooms = [there.get("CPU", 0.0)]
        if gpus := self.gpus(job):
            rooms.append(there.get("GPU", 0.0) / gpus)
        return max(1, int(min(rooms)))

    def gpus(self, job: Job) -> float:
        import ray

        if self._num_gpus is not None:
            return self._num_gpus
        device = getattr(job, "loading", {}).get("device", "cpu")
        return 1.0 if device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0.0) >= 1 else 0.0

    def workers(self, job: Job) -> int:
        """How many workers there are to be, at most."""
        return self._workers or self.room(job)

    def _check_room(self, job: Job) -> None:
        import ray

        wanted, nodes = self.gpus(job), [node for node in ray.nodes() if node["Alive"]]
        if wanted and not any(node["Resources"].get("GPU", 0.0) >= wanted for node in nodes):
            raise M3ScoreError(f"--num-gpus: no machine of the cluster has {wanted:g} GPU.")


@contextmanager
def connected(
    address: str | None = None, *, workers: int | None = None, num_gpus: float | None = None
) -> Iterator[Cluster]:
    """Connect to a Ray cluster, or start one on this machine.

    Args:
        address: of the cluster's head, HOST:PORT; "auto" for the one that this machine is part of. None:
            what RAY_ADDRESS says, or a cluster of this machine alone, which ends with the run.
        workers, num_gpus: as for Cluster.

    Raises:
        M3ScoreError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _ray()
    if ray.is_initialized():  # the caller's
        yield Cluster(workers, num_gpus)
        return
    if address is not None and address.startswith("ray://"):
        raise M3ScoreError(
            f"--address {address}: run the command on a machine of the cluster, with HOST:PORT or auto."
        )
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    with _signals_kept():
        try:
            if place not in ("local", "auto"):  # Ray itself would try for minutes
                host, _, port = place.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
            ray.init(
                address=place,
                include_dashboard=None if place != "local" else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            with suppress(Exception):
                ray.shutdown()
            reason = one_line(error)
            raise M3ScoreError(
                f"--address {place}: no Ray cluster answers there ({reason}); ray start --head begins one."
            ) from None
    try:
        yield Cluster(workers, num_gpus)
    finally:
        ray.shutdown()


def _blocks(items: Iterable[FoundImage], size: int) -> Iterator[list[FoundImage]]:
    found = iter(items)
    while block := list(islice(found, size)):
        yield block


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise M3ScoreError('--engine ray needs Ray: pip install "m3score[ray]".') from None
    return ray


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own handler of SIGTERM in place; the run has one that keeps what was done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _facts(job: ModelJob, here: tuple[str, str]) -> ModelFacts:
    settle(here)
    return job.facts()
