"""Blocks of inputs through Ray Data: in by a queue, out as they are finished, whatever dies on the way.

Ray Data can't read from a generator of this process by itself: one task, on this machine, takes the blocks
from a queue that is filled here. A block is one row on its way, a JSON header and bytes (protocol.py).
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from m3score.common.errors import M3ScoreError
from m3score.data.item import FoundImage
from m3score.data.questions import Question
from m3score.images import protocol

if TYPE_CHECKING:
    import pyarrow as pa

    from m3score.runs.executors.jobs import Job
    from m3score.runs.executors.ray_cluster import Cluster

TASKS_AHEAD = 2
"""Blocks that a worker has: one in work, and the next."""

ATTEMPTS = 5
"""How often in a row the cluster may fail before the run gives up."""

_BEGIN = "begin"
_OURS = f"{M3ScoreError.__module__}.{M3ScoreError.__qualname__}: "

logger = logging.getLogger(__name__)


class ClusterError(M3ScoreError):
    """A machine, a process or the network failed: not the job, as far as can be told."""


class Line:
    """Blocks in, finished blocks out; started with the first block, and again after a failure."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self._cluster, self._job = cluster, job
        self.workers = cluster.workers(job)
        self.missing: dict[str, bytes] = {}
        """Blocks that went in and did not come out yet."""
        self._numbers: dict[str, int] = {}
        """Of the missing ones, in the order in which they went in; without those that went in twice."""
        self._put = 0
        self._queue: Any = None
        self._results: Iterator[Any] | None = None
        self._came: list[tuple[str, list[str]]] = []
        self._ended = False
        self._failures = 0

    def put(self, name: str, items: Sequence[FoundImage]) -> None:
        if self._queue is None:
            self._start()
        self.missing[name] = _packed(items)
        self._put += 1
        self._numbers[name] = self._put
        with told():
            self._queue.put((name, self.missing[name]))

    def end(self) -> None:
        """There are no more blocks to come."""
        self._ended = True
        self._give_out_again(0)

    def get(self) -> tuple[str, list[str]]:
        """Whichever block is finished next."""
        while not self._came:
            try:
                with told():
                    table = next(cast("Iterator[Any]", self._results), None)
                if table is None:
                    raise ClusterError("the cluster lost a block")
            except ClusterError as error:
                self._failures += 1
                if self._failures > ATTEMPTS:
                    raise
                logger.warning("%s: its blocks are given out again.", error)
                self._start_again()
                continue
            self._came += zip(table["name"].to_pylist(), table["results"].to_pylist(), strict=True)
            self._failures = 0
        name, results = self._came.pop()
        self.missing.pop(name, None)
        self._give_out_again(self._numbers.pop(name, 0))
        return name, results

    def _give_out_again(self, number: int) -> None:
        """Late blocks, once: they may lie with a machine that died, and Ray waits until it is replaced.

        Late is what many others have overtaken, and in the end what is left when workers run out of work.
        Whichever copy comes first counts; the other is the same.
        """
        few = TASKS_AHEAD * self.workers
        if self._ended and len(self.missing) <= few:
            late = list(self._numbers)
        else:
            late = [name for name, before in self._numbers.items() if before < number - few]
        with told():
            for name in late:
                del self._numbers[name]
                self._queue.put((name, self.missing[name]))

    def _start_again(self) -> None:
        self.close()
        self._start()
        self._numbers.clear()
        with told():
            for name, packed in self.missing.items():
                self._queue.put((name, packed))

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
        finished = blocks.map_batches(
            _Worker,
            fn_constructor_args=(self._job, here_and_now()),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=min(self._cluster.room(self._job), self.workers),
                max_size=self.workers,
                max_tasks_in_flight_per_actor=TASKS_AHEAD,
            ),
            num_cpus=1,
            num_gpus=self._cluster.gpus(self._job) or None,
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
        settle(here)
        self._work = job.load()

    def __call__(self, blocks: pa.Table) -> pa.Table:
        import pyarrow as pa

        results = [
            [json.dumps(one, default=_plain) for one in self._work(_unpacked(items.as_buffer()))]
            for items in blocks["items"]
        ]
        texts = pa.array(results, pa.list_(pa.large_string()))
        return pa.table({"name": blocks["name"], "results": texts})


def here_and_now() -> tuple[str, str]:
    from m3score._version import __version__

    return __version__, os.getcwd()


def settle(here: tuple[str, str]) -> None:
    """On another machine: the same program, in the same folder."""
    from m3score._version import __version__

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
    protocol.send(pipe, protocol.pack(fields))
    return pipe.getvalue()


def _unpacked(data: Any) -> list[FoundImage]:
    return [
        FoundImage(path, relative, error, content, tuple(map(_question, asked)), original)
        for path, relative, error, content, asked, original in protocol.receive(io.BytesIO(data), len(data))
    ]


def _question(fields: dict[str, Any]) -> Question:
    several = {name: tuple(fields[name]) for name in ("answers", "options")}
    return Question(**{**fields, **several})


def _plain(value: Any) -> Any:
    return value.item()  # a number of numpy


def _this_node() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@contextmanager
def told() -> Iterator[None]:
    """Turns what goes wrong on another machine into the sentence that the user reads."""
    try:
        yield
    except Exception as error:  # Ray has a kind for each of its parts
        raise _root(error) from None


def _root(error: BaseException) -> M3ScoreError:
    """What a worker raised, without Ray's account of how it came here."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if type(seen) is M3ScoreError:
            return seen
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):  # an actor that can't start is told of in text only
        if line.startswith(_OURS):
            return M3ScoreError(line.removeprefix(_OURS))
    told = lines[-1][:300] if lines else "no reason given"
    return ClusterError(f"a part of the cluster failed ({type(error).__name__}: {told})")
