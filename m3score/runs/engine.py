"""The engine: carries out a run over many inputs, whatever scores them and wherever that is done.

Goes on where an earlier run stopped, keeps every row as soon as it is made, and leaves its tables, whole or
as far as they came. `m3score.rank`, `m3score rank` and `m3score predict` are this code.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.common.profiling import stage
from m3score.data.item import ImageItem
from m3score.runs.executors.base import Executor, ScorerFacts, ScorerHandle, ScorerJob, Stream
from m3score.runs.executors.local import LocalExecutor
from m3score.runs.progress import Count, Watcher
from m3score.runs.request import Request
from m3score.runs.resume.collector import Collector, ranked_rows
from m3score.runs.resume.journal import Journal, keeps_journal, open_journal
from m3score.runs.tally import Tally
from m3score.tables.io import remove_leftovers, write_rows
from m3score.tables.schema import TRACES

logger = logging.getLogger(__name__)

ROUNDS = 3
"""How often an input is looked at that is replaced again and again while it is being looked at."""

ENGINES = ("local", "ray")


@dataclass
class Outcome:
    """What a run came to."""

    facts: ScorerFacts
    tally: Tally
    """Counts, sums and a few rows of the table."""
    interrupted: bool
    seconds: float
    made: int
    """Inputs that this run, and no earlier one, did."""
    resumed: int
    """Inputs that an earlier run did."""
    again: int
    """Of those made, inputs that an earlier run did too, with a group of `block` that was not finished."""
    block: int
    passes: int
    """Over the inputs; `made` and `resumed` count each."""
    unused: Sequence[str]
    """Images that the options say something about and that were not among the inputs."""
    skipped: Mapping[str, int]
    """Files that were not taken for images, by suffix."""
    costs: Sequence[str] = ()
    """What the server of the model counted, in sentences for people."""
    notes: Sequence[str] = ()
    """What a run of its own kind has to say, for people."""
    left: int = 0
    """Images that an earlier run did and that are not among the inputs. The journal keeps their rows."""
    journal: Path | None = None
    """Where the next run finds what was done; None where nothing is to be gone on with."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The table, where it went to no file."""
    model: Any = None
    """The loaded model, where there is one in this process."""


def executor_of(
    engine: str, *, address: str | None = None, num_gpus: float | None = None, workers: int | None = None
) -> Executor:
    """The executor by its name in ENGINES; M3ScoreError if there is none, or options make no sense."""
    if engine == "ray":
        from m3score.runs.executors.ray_cluster import RayExecutor

        return RayExecutor(address, workers=workers, num_gpus=num_gpus)
    if engine != "local":
        raise M3ScoreError(f"unknown engine {engine!r}; allowed: {', '.join(ENGINES)}.")
    if address is not None or num_gpus is not None:
        raise M3ScoreError("--address and --num-gpus go with --engine ray.")
    return LocalExecutor()


def run(request: Request, executor: Executor, watcher: Watcher | None = None) -> Outcome:
    """Carry out a run.

    Args:
        request: what is wanted.
        executor: entered.
        watcher: is told what happens.

    Raises:
        M3ScoreError: there is nothing to do, the scorer can't be made, or the journal or a table can't be
            written; what is done is kept.
    """
    kind = getattr(request.scorer, "Run", Run)  # a scorer of several passes brings its own
    with closing(kind(request, executor, watcher or Watcher())) as one:
        outcome: Outcome = one.go()
        return outcome


def iterate(request: Request, executor: Executor) -> Iterator[dict[str, Any]]:
    """Rows as they are made, in the order of the inputs; nothing is kept. Arguments are those of `run`."""
    kind = getattr(request.scorer, "Run", Run)
    with closing(kind(request, executor, Watcher())) as one:
        yield from one.iterate()


class Run:
    """A run, whole or interrupted.

    Args:
        request: what is wanted.
        executor: where the scorer works.
        watcher: is told what happens.
    """

    passes = 1

    def __init__(self, request: Request, executor: Executor, watcher: Watcher) -> None:
        self.request = request
        self.watcher = watcher
        self.seconds = 0.0
        self.interrupted = False
        self._opened: list[Any] = []
        self._handles: list[ScorerHandle] = []
        if self.passes > 1:
            request.inputs.keep_stdin()
        self._found = request.inputs.begin()
        try:
            self._prepare(executor)
        except BaseException:
            self.close()
            raise

    # ---- what sorts of run may do otherwise

    def _prepare(self, executor: Executor) -> None:
        """Make ready all that the run needs."""
        request = self.request
        self.handle = self._open(executor, ScorerJob(
            request.scorer, request.options, request.limits, request.workers,
            traces=request.target.traces is not None,
        ))  # fmt: skip
        self.depends_on = self._depends_on(request.command, self.handle)
        self.journal = self._journal(request.target.out, self.depends_on)
        self.collector = self._collector(self.journal, self.handle.block)

    @property
    def facts(self) -> ScorerFacts:
        """Of the scorer, with the columns of the table."""
        return self.handle.facts

    def _work(self) -> None:
        """Do what is not done yet."""
        out, verb = self.request.target.out, "Ranking" if self.request.target.ranked else "Predicting"
        stream = self._stream(self.handle, out, self.depends_on)
        self._through(self.collector, self._found, stream, verb, self.request.inputs.count)

    @property
    def made(self) -> int:
        """Inputs that this run, and no earlier one, did."""
        return self.collector.made

    @property
    def resumed(self) -> int:
        """Inputs that an earlier run did."""
        return self.collector.skipped

    def rows(self) -> Iterator[dict[str, Any]]:
        """The table's rows so far, in the order of the inputs."""
        return self.collector.rows()

    def notes(self, tally: Tally) -> Sequence[str]:
        """What this run has to say, in sentences."""
        return ()

    def _left(self) -> int:
        """Images that an earlier run did and that nobody asked for this time."""
        return self.journal.unasked()

    def _forget(self) -> None:
        """All is done and written: no journal is needed any more."""
        for handle in self._handles:
            handle.forget()
        self.journal.remove()

    # ---- the course of every run

    def go(self) -> Outcome:
        """Do what is not done yet, until the end or Ctrl-C, and write the tables."""
        target, kept = self.request.target, not self.journal.anonymous
        for path in (target.out, target.traces):
            if path is not None and kept:  # the lock is held: nobody is writing there
                remove_leftovers(path)
        if self.journal.rows:
            block = self.collector.block
            again = "" if block == 1 else f" An unfinished group of {block} images is done again as a whole."
            known = f"{self.journal.rows:,} rows ({self.journal.path})"
            self.watcher.say(f"Going on where an earlier run stopped: {known}.{again}")
        try:
            self._work()
        except BaseException:
            if self.made and not self.journal.broken:
                with suppress(M3ScoreError):  # the first error is the one to tell
                    self._write()
            raise
        self.journal.sync()
        with stage("write"):
            tally, rows = self._write()
        left = 0 if self.interrupted or not kept else self._left()
        if not self.interrupted and not left:
            self._forget()
        return Outcome(
            facts=self.facts,
            tally=tally,
            interrupted=self.interrupted,
            seconds=self.seconds,
            made=self.made,
            resumed=self.resumed,
            again=self.collector.again,
            block=self.collector.block,
            passes=self.passes,
            unused=self.request.options.unused(),
            skipped=dict(self.request.inputs.skipped),
            costs=self.handle.costs(),
            notes=self.notes(tally),
            left=left,
            journal=self.journal.path if kept and (self.interrupted or left) else None,
            rows=rows,
            model=self.handle.model,
        )

    def iterate(self) -> Iterator[dict[str, Any]]:
        """Rows as they are made, in the order of the inputs."""
        stream = self._stream(self.handle, None, self.depends_on)
        with closing(stream(self._found)) as results:
            for result in results:
                yield result.to_row()

    def close(self) -> None:
        """Release what is open. A journal that was not removed stays for the next run."""
        while self._opened:
            self._opened.pop().close()

    def _through(
        self,
        collector: Collector,
        found: Iterable[ImageItem],
        stream: Stream,
        verb: str,
        count: Count | None,
    ) -> None:
        """One pass over the inputs, until its end or Ctrl-C."""
        traces = self.request.target.traces is not None
        begun = time.monotonic()
        try:
            with self.watcher.phase(verb, count):
                for number in range(ROUNDS):
                    items = collector.changed() if number else collector.to_do(found)
                    with closing(stream(items)) as results:
                        for result in results:
                            traced = result.trace_rows() if traces else ()
                            collector.keep(result.to_row(), traced, transient=result.transient)
                            if number == 0:
                                self.watcher.advance(result)
        except KeyboardInterrupt:
            self.interrupted = True
        self.seconds += time.monotonic() - begun

    def _write(self) -> tuple[Tally, list[dict[str, Any]]]:
        target, facts = self.request.target, self.facts
        tally, kept = Tally(facts.ladder), not self.journal.anonymous
        rows = self.rows()
        if target.ranked:
            rows = ranked_rows(rows, folder=str(self.journal.path.parent) if kept else None)
        if target.out is None:
            return tally, self._in_memory(tally.passing(rows))
        note: Any = self.journal.wrote if kept else None
        if self.interrupted and not self.made and kept:
            tally.count(rows)  # nothing is new: what an earlier run left is at least as much
            return tally, []
        try:
            write_rows(
                tally.passing(rows), target.out, target.kind, facts.columns,
                format=target.format, before_rename=note,
            )  # fmt: skip
        finally:  # a full disk under one file may have room for the other elsewhere
            self._write_traces(note)
        return tally, []

    def _in_memory(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = list(rows)
        self._write_traces(None)
        return kept

    def _write_traces(self, note: Any) -> None:
        if self.request.target.traces is not None:
            write_rows(self.collector.traces(), self.request.target.traces, TRACES, before_rename=note)

    # ---- parts that sorts of run are made of

    def _open(self, executor: Executor, job: ScorerJob) -> ScorerHandle:
        with self.watcher.preparing(f"Loading {job.loads} ..."):
            handle = executor.open(job)
        self._opened.append(handle)
        self._handles.append(handle)
        return handle

    def _depends_on(self, command: str, handle: ScorerHandle) -> dict[str, Any]:
        """All that rows depend on, by the option that says it."""
        request, limits = self.request, self.request.limits
        identity = dict(handle.identity()) if keeps_journal(request.target.out) else {}
        traces = {"--traces": request.target.traces is not None} if _traced(request.scorer) else {}
        return {
            "command": command,
            **json.loads(json.dumps(identity, default=str)),  # whatever a scorer of others says
            **traces,
            "--max-pixels": limits.max_pixels,
            "--max-bytes": [limits.max_bytes, limits.max_embedded_bytes],
        }

    def _journal(self, out: Path | None, depends_on: Mapping[str, Any]) -> Journal:
        journal = open_journal(out, depends_on, overwrite=self.request.anew)
        self._opened.append(journal)
        return journal

    def _collector(self, journal: Journal, block: int) -> Collector:
        collector = Collector(journal, block=block, on_skip=self._skipped)
        self._opened.append(collector)
        return collector

    def _stream(self, handle: ScorerHandle, out: Path | None, depends_on: Mapping[str, Any]) -> Stream:
        return handle.stream_for(out, depends_on, self.request.options.seen, anew=self.request.anew)

    def _skipped(self, item: ImageItem) -> None:
        self.request.options.seen(item)
        self.watcher.advance(None)


def _traced(scorer: Any) -> bool:
    return bool(getattr(scorer, "traced", False))
