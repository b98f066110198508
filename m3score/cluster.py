"""Many machines at once: blocks of inputs to the workers of a Ray cluster, results back in order.

Ray Data moves the blocks, keeps one worker per CPU or GPU busy, and gives the blocks of a worker or machine
that died to others. It can't read from a generator in this process by itself: one task, on this machine,
takes the blocks from a queue that is filled here, only a few more than there are workers for, however many
inputs there are.

Ray Data's own checkpoints are not used: they need inputs and outputs in files that all machines share, and
hold the ids of all that is done in memory. FinishedBlocks does their work.
"""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from m3score import wire
from m3score.errors import M3ScoreError
from m3score.finished import FinishedBlocks
from m3score.found import FoundImage
from m3score.questions import Question

if TYPE_CHECKING:
    import pyarrow as pa

    from m3score.jobs import Job, ModelFacts, ModelJob

PREDICTED_AT_ONCE = 256
"""Inputs in a block for a predictor: half a second of work, so that little is lost with a machine."""

_BEGIN = "begin"

AHEAD = 4
"""Blocks per worker that are on their way, or done and waiting for an earlier one."""

ATTEMPTS = 5
"""How often a block is tried whose worker dies each time."""


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

        look = ray.remote(_facts).options(num_cpus=1, num_gpus=self._gpus(job), max_retries=ATTEMPTS)
        with _told(self._needs(job)):
            self._check_room(job)
            return ray.get(look.remote(job, _here()))

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
            M3ScoreError: the cluster can't do it, or a worker failed again and again on a block. Finished
                blocks are kept.
        """
        blocks = _blocks(items, block)
        waiting: deque[tuple[str, int]] = deque()
        line = _Line(self, job)
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
        if gpus := self._gpus(job):
            rooms.append(there.get("GPU", 0.0) / gpus)
        return max(1, int(min(rooms)))

    def _gpus(self, job: Job) -> float:
        import ray

        if self._num_gpus is not None:
            return self._num_gpus
        device = getattr(job, "loading", {}).get("device", "cpu")
        return 1.0 if device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0.0) >= 1 else 0.0

    def _needs(self, job: Job) -> str:
        gpus = self._gpus(job)
        return f"1 CPU{f' and {gpus:g} GPU' if gpus else ''} per worker"

    def _check_room(self, job: Job) -> None:
        import ray

        wanted, nodes = self._gpus(job), [node for node in ray.nodes() if node["Alive"]]
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
            reason = " ".join(str(error).split())[:200]
            raise M3ScoreError(
                f"--address {place}: no Ray cluster answers there ({reason}); ray start --head begins one."
            ) from None
    try:
        yield Cluster(workers, num_gpus)
    finally:
        ray.shutdown()


# ---- one run of Ray Data ------------------------------------------------------------------------------


class _Line:
    """Blocks in, finished blocks out; started with the first block."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self._cluster, self._job = cluster, job
        room = cluster.room(job)
        self._actors = min(room, cluster._workers or room), cluster._workers or room
        self.workers = self._actors[1]
        self.missing: set[str] = set()
        """Blocks that went in and did not come out yet."""
        self._queue: Any = None
        self._results: Iterator[Any] | None = None
        self._came: list[tuple[str, list[str]]] = []

    def put(self, name: str, items: Sequence[FoundImage]) -> None:
        if self._queue is None:
            self._start()
        self.missing.add(name)
        with _told(""):
            self._queue.put((name, _packed(items)))

    def end(self) -> None:
        """There are no more blocks."""
        if self._queue is not None:
            self._queue.put(None)

    def get(self) -> tuple[str, list[str]]:
        """Whichever block is finished next."""
        with _told(self._cluster._needs(self._job)):
            while not self._came:
                table = next(self._results, None) if self._results is not None else None
                if table is None:
                    raise M3ScoreError("the cluster lost a block; start the command again to go on.")
                self._came += zip(table["name"].to_pylist(), table["results"].to_pylist(), strict=True)
        name, results = self._came.pop()
        self.missing.discard(name)
        return name, results

    def close(self) -> None:
        results, self._results = self._results, None
        with suppress(Exception):
            if results is not None:
                results.close()  # type: ignore[attr-defined]
        with suppress(Exception):
            if self._queue is not None:
                self._queue.shutdown(force=True)

    def _start(self) -> None:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
        from ray.util.queue import Queue

        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": _this_node()})
        self._queue.put(_BEGIN)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.enable_auto_log_stats = False
        context.target_max_block_size = 1  # what is read goes on at once, one row at a time
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        blocks = ray.data.read_datasource(
            _source(self._queue),
            override_num_blocks=1,
            num_cpus=0,
        )
        smallest, largest = self._actors
        finished = blocks.map_batches(
            _Worker,
            fn_constructor_args=(self._job, _here()),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=smallest, max_size=largest),
            num_cpus=1,
            num_gpus=self._cluster._gpus(self._job) or None,
            max_restarts=-1,
            max_task_retries=ATTEMPTS,
        )
        self._results = iter(
            finished.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        )


def _source(queue: Any) -> Any:
    """A Ray data source of what comes out of a queue, until that is None."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Blocks(Datasource):
        @property
        def supports_distributed_reads(self) -> bool:
            return False  # it runs on this machine, beside the queue, and lives as long

        def get_name(self) -> str:
            return "Blocks"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda: _taken(queue), unknown)]

    return Blocks()


def _taken(queue: Any) -> Iterator[pa.Table]:
    import pyarrow as pa

    if queue.get() != _BEGIN:  # Ray started this task again, but what it gave out then is not here any more
        raise M3ScoreError("the process that hands out blocks died; start the command again to go on.")
    while (block := queue.get()) is not None:
        name, items = block
        yield pa.table({"name": [name], "items": pa.array([items], pa.large_binary())})


class _Worker:
    """In an actor: a model or predictor that stays loaded, and the blocks that come by."""

    def __init__(self, job: Job, here: tuple[str, str]) -> None:
        _settle(here)
        self._work = job.load()

    def __call__(self, blocks: pa.Table) -> pa.Table:
        import pyarrow as pa

        results = [
            [json.dumps(one, default=_plain) for one in self._work(_unpacked(items.as_buffer()))]
            for items in blocks["items"]
        ]
        texts = pa.array(results, pa.list_(pa.large_string()))
        return pa.table({"name": blocks["name"], "results": texts})


def _facts(job: ModelJob, here: tuple[str, str]) -> ModelFacts:
    _settle(here)
    return job.facts()


def _here() -> tuple[str, str]:
    from m3score import __version__

    return __version__, os.getcwd()


def _settle(here: tuple[str, str]) -> None:
    """On another machine: the same program, in the same folder."""
    from m3score import __version__

    version, folder = here
    node = os.uname().nodename if hasattr(os, "uname") else "a machine of the cluster"
    if version != __version__:
        raise M3ScoreError(f"{node} has m3score {__version__}, this machine {version}: install the same one.")
    try:
        os.chdir(folder)
    except OSError:
        raise M3ScoreError(
            f"{node} has no folder {folder}: the machines of a cluster need the same folders, such as a "
            "network share."
        ) from None


# ---- blocks on their way ------------------------------------------------------------------------------


def _blocks(items: Iterable[FoundImage], size: int) -> Iterator[list[FoundImage]]:
    found = iter(items)
    while block := list(islice(found, size)):
        yield block


def _packed(items: Sequence[FoundImage]) -> bytes:
    fields = [
        (
            item.path,
            item.relative,
            item.error,
            item.content,
            [asdict(question) for question in item.questions],
            item.original,
        )
        for item in items
    ]
    pipe = io.BytesIO()
    wire.send(pipe, wire.pack(fields))
    return pipe.getvalue()


def _unpacked(data: Any) -> list[FoundImage]:
    items = []
    for *fields, questions, original in wire.receive(io.BytesIO(data), len(data)):
        asked = (
            Question(**{**one, "answers": tuple(one["answers"]), "options": tuple(one["options"])})
            for one in questions
        )
        items.append(replace(FoundImage(*fields, original=original), questions=tuple(asked)))
    return items


def _plain(value: Any) -> Any:
    return value.item()  # a number of numpy


# ---- small parts --------------------------------------------------------------------------------------


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError:
        raise M3ScoreError('--engine ray needs Ray: pip install "m3score[ray]".') from None
    return ray


def _this_node() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


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


@contextmanager
def _told(needs: str) -> Iterator[None]:
    """Turns what goes wrong on another machine into the sentence that the user reads."""
    import ray.exceptions

    try:
        yield
    except M3ScoreError as error:
        raise _root(error) from None
    except ray.exceptions.RayError as error:
        raise _root(error) from None


def _root(error: BaseException) -> M3ScoreError:
    """What a worker raised, without Ray's account of how it came here."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if type(seen) is M3ScoreError:
            return seen
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    first = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), "")
    return M3ScoreError(
        f"the cluster failed ({type(error).__name__}: {first.strip()[:300]}); what is done is kept."
    )
