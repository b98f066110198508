"""The executor of many machines: blocks of inputs to the workers of a Ray cluster, results back in order.

Only a few more blocks than there are workers for are on their way (ray_stream.py), however many inputs there
are, and finished ones lie in files (block_store.py) until it is their turn.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError, one_line
from m3score.runs.executors.base import ScorerFacts, ScorerHandle, ScorerJob, Stream
from m3score.runs.executors.block_store import BlockStore
from m3score.runs.executors.ray_stream import ATTEMPTS, RayStream
from m3score.runs.executors.ray_worker import driver_env, facts_there, translate_ray_errors
from m3score.scoring.base import Scored

if TYPE_CHECKING:
    from m3score.data.item import ImageItem

MEASURED_AT_ONCE = 256
"""Inputs in a block for a scorer that computes each by itself: half a second of a predictor's work, so that
little is lost with a machine."""

OPENERS = 2
"""Processes that open images for each worker with a model."""

CONNECT_SECONDS = 10.0
"""After so long, nobody answers at an address."""

AHEAD = 4
"""Blocks per worker that are on their way, or done and waiting for an earlier one."""


class RayExecutor:
    """The machines of a Ray cluster, connected while this is entered.

    Args:
        address: of the cluster's head, HOST:PORT; "auto" for the one that this machine is part of. None:
            what RAY_ADDRESS says, or a cluster of this machine alone, which ends with the run.
        workers: scorers at once, at most; by default as many as the cluster has room for now.
        num_gpus: GPUs for each worker; by default one, if the cluster has any and the scorer wants one.

    Raises:
        M3ScoreError: on entering; Ray is not installed, or there is no cluster at the address.
    """

    def __init__(
        self, address: str | None = None, *, workers: int | None = None, num_gpus: float | None = None
    ) -> None:
        self._address = address
        self._workers = workers
        self._num_gpus = num_gpus
        self._ours = False

    def __enter__(self) -> RayExecutor:
        ray = _ray()
        if not ray.is_initialized():  # else the cluster is the caller's
            _connect(ray, self._address)
            self._ours = True
        return self

    def __exit__(self, *exception: object) -> None:
        if self._ours:
            _ray().shutdown()
            self._ours = False

    def open(self, job: ScorerJob) -> ScorerHandle:
        """See Executor. The scorer is made on a machine of the cluster to see what it is."""
        import ray

        if not isinstance(job.scorer, type):
            raise M3ScoreError("--engine ray needs a scorer's name or class, not one that is made already.")
        job.options.check_portable()
        job = replace(job, workers=OPENERS)
        look = ray.remote(facts_there).options(num_cpus=1, num_gpus=self.gpus(job), max_retries=ATTEMPTS)
        self._check_gpus(job)
        with translate_ray_errors():
            facts, identity = ray.get(look.remote(job, driver_env()))
        if facts.block == 1:
            job = replace(job, workers=1)
        return RemoteScorer(self, replace(job, identity=identity), facts)

    # ---- what there is

    def room(self, job: ScorerJob) -> int:
        """How many workers there are to be: by default as many as the cluster has room for now; at least one,
        which may have to wait."""
        import ray

        if self._workers is not None:
            return self._workers
        there = ray.cluster_resources()
        rooms = [there.get("CPU", 0.0)]
        if gpus := self.gpus(job):
            rooms.append(there.get("GPU", 0.0) / gpus)
        return max(1, int(min(rooms)))

    def gpus(self, job: ScorerJob) -> float:
        """GPUs for each worker."""
        import ray

        if self._num_gpus is not None:
            return self._num_gpus
        device = getattr(job.options, "device", "cpu")
        return 1.0 if device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0.0) >= 1 else 0.0

    def _check_gpus(self, job: ScorerJob) -> None:
        import ray

        wanted, nodes = self.gpus(job), [node for node in ray.nodes() if node["Alive"]]
        if wanted and not any(node["Resources"].get("GPU", 0.0) >= wanted for node in nodes):
            raise M3ScoreError(f"--num-gpus: no machine of the cluster has {wanted:g} GPU.")


class RemoteScorer:
    """A scorer on the machines of a cluster."""

    model = None

    def __init__(self, executor: RayExecutor, job: ScorerJob, facts: ScorerFacts) -> None:
        self.facts = facts
        self.block = facts.block if facts.block > 1 else MEASURED_AT_ONCE
        self._executor = executor
        self._job = job
        self._store: BlockStore | None = None

    def identity(self) -> Mapping[str, Any]:
        """See ScorerHandle."""
        return self._job.identity or {}

    def stream_for(
        self, out: Path | None, run: Mapping[str, Any], seen: Callable[[ImageItem], None], *, anew: bool
    ) -> Stream:
        """See ScorerHandle. Finished blocks lie beside the output until the run is complete."""
        store = self._store = BlockStore(out, run, overwrite=anew)
        return lambda items: self._stream(items, store, seen)

    def costs(self) -> Sequence[str]:
        """See ScorerHandle; what the workers' servers count is not gathered."""
        return ()

    def forget(self) -> None:
        """See ScorerHandle."""
        if self._store is not None:
            self._store.remove()

    def close(self) -> None:
        """See ScorerHandle."""
        if self._store is not None:
            self._store.close()

    def _stream(
        self, items: Iterable[ImageItem], store: BlockStore, seen: Callable[[ImageItem], None]
    ) -> Generator[Scored, None, None]:
        """Results in order, though blocks are finished in any."""
        blocks = _blocks(items, self.block)
        waiting: deque[tuple[str, int]] = deque()
        executor, job = self._executor, self._job
        stream = RayStream(job, executor.room(job), executor.gpus(job))
        with closing(stream):
            while True:
                while len(waiting) < AHEAD * (stream.workers + 1) and (chunk := next(blocks, None)):
                    for item in chunk:
                        seen(item)
                    name = store.name_of(chunk)
                    waiting.append((name, len(chunk)))
                    if not store.earlier(name, len(chunk)) and name not in stream.missing:
                        stream.put(name, chunk)
                if not waiting:
                    return
                name, count = waiting.popleft()
                while name in stream.missing:
                    store.write(*stream.get())
                results = store.read(name, count)
                if results is None:
                    raise M3ScoreError(f"{store.folder}: a finished block vanished; start the command again.")
                yield from (Scored(**result) for result in results)


def _blocks(items: Iterable[ImageItem], size: int) -> Iterator[list[ImageItem]]:
    found = iter(items)
    while block := list(islice(found, size)):
        yield block


# ---- the connection -------------------------------------------------------------------------------------


def _connect(ray: Any, address: str | None) -> None:
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
            with _stderr_silenced():
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


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else lines of its C++ parts come on stderr
    try:
        import ray
    except ImportError:
        raise M3ScoreError('--engine ray needs Ray: pip install "m3score[ray]".') from None
    return ray


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Ray's C++ parts say on file descriptor 2 that they were told to be silent."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


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
