"""A run over many inputs: goes on where an earlier one stopped, shows its progress, leaves its tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from m3score.cli.console import INTERRUPTED, SOME_FAILED, plain
from m3score.common.errors import M3ScoreError
from m3score.common.profiling import stage

if TYPE_CHECKING:
    from m3score.cli.search import Search
    from m3score.data.discover import FoundImage
    from m3score.runs.collector import Collector
    from m3score.runs.journal import Journal
    from m3score.runs.tally import Tally
    from m3score.tables.schema import TableKind

ROUNDS = 3
"""How often an input is looked at that is replaced again and again while it is being looked at."""


@dataclass(frozen=True)
class Target:
    """Where a run's tables go, and what is in them."""

    out: Path | None
    format: str | None
    kind: TableKind
    columns: tuple[str, ...]
    """Of the table, beside those that every table of its kind has."""
    ladder: tuple[int, ...]
    ranked: bool
    """Sorted by complexity and with a rank; else in the order of the inputs."""
    traces: Path | None = None


class Run:
    """What a run has produced so far, whole or interrupted.

    Args:
        journal: open; closed, or if all is done removed, in the end.
        search: the inputs.
        console: where progress and notices go.
        block: see Collector.
        on_skip: called with every input that an earlier run did.
    """

    def __init__(
        self,
        journal: Journal,
        search: Search,
        console: Console,
        *,
        block: int = 1,
        on_skip: Callable[[FoundImage], None] | None = None,
    ) -> None:
        from m3score.runs.collector import Collector

        self.journal = journal
        self.search = search
        self.console = console
        self.seconds = 0.0
        self.interrupted = False
        self._advance: Callable[..., None] = lambda **_: None
        self._on_skip = on_skip or (lambda item: None)
        self.collector: Collector = Collector(journal, block=block, on_skip=self._skipped)

    def go(
        self,
        found: Iterator[FoundImage],
        stream: Callable[[Iterator[FoundImage]], Any],
        keep: Callable[[Any], None],
        target: Target,
        verb: str = "Ranking",
    ) -> Tally:
        """Do what is not done yet, until the end or Ctrl-C, and write the tables.

        Args:
            found: the inputs.
            stream: a generator of one result per input, in order.
            keep: hands a result's row to `collector.keep`.
            target: what to write. Whatever stops the run, the rows so far are written too.
            verb: what is being done.

        Raises:
            M3ScoreError: the journal or a table cannot be written; what is done is kept.
        """
        from m3score.tables.io import remove_leftovers

        for path in (target.out, target.traces):
            if path is not None and not self.journal.anonymous:  # the lock is held: nobody is writing there
                remove_leftovers(path)
        if self.journal.rows:
            place = "" if self.journal.path is None else f" ({plain(self.journal.path)})"
            block = self.collector.block
            again = "" if block == 1 else f" An unfinished group of {block} images is done again as a whole."
            rows = f"{self.journal.rows:,} rows{place}"
            self.console.print(f"Going on where an earlier run stopped: {rows}.{again}")
        try:
            try:
                self._work(found, stream, keep, verb)
            except BaseException:
                if self.made and not self.journal.broken:
                    with suppress(M3ScoreError):  # the first error is the one to tell
                        self._write(target)
                raise
            self.journal.sync()
            with stage("write"):
                tally = self._write(target)
            if not self.interrupted:
                self.forget()
            return tally
        finally:
            self.close()

    @property
    def made(self) -> int:
        """Inputs that this run, and no earlier one, did."""
        return self.collector.made

    def rows(self) -> Iterator[dict[str, Any]]:
        """The table's rows so far, in the order of the inputs."""
        return self.collector.rows()

    def forget(self) -> None:
        """All is done and written: no journal is needed any more."""
        self.journal.remove()

    def close(self) -> None:
        """Release what is open."""
        self.collector.close()
        self.journal.close()

    def _work(
        self,
        found: Iterator[FoundImage],
        stream: Callable[[Iterator[FoundImage]], Any],
        keep: Callable[[Any], None],
        verb: str,
    ) -> None:
        self._through(self.collector, found, stream, keep, verb, self._count())

    def _through(
        self,
        collector: Collector,
        found: Iterator[FoundImage],
        stream: Callable[[Iterator[FoundImage]], Any],
        keep: Callable[[Any], None],
        verb: str,
        count: Callable[[], int | None] | None,
    ) -> None:
        from m3score.cli.progress import progress

        begun = time.monotonic()
        try:
            with progress(self.console, count, verb) as self._advance:
                for number in range(ROUNDS):
                    items = collector.changed() if number else collector.to_do(found)
                    with closing(stream(items)) as results:
                        for result in results:
                            keep(result)
                            if number == 0:
                                self._advance()
        except KeyboardInterrupt:
            self.interrupted = True
        self.seconds += time.monotonic() - begun

    def _count(self) -> Callable[[], int | None] | None:
        return None if "-" in self.search.paths else self.search.count

    def _skipped(self, item: FoundImage) -> None:
        self._on_skip(item)
        self._advance(worked=False)

    def _write(self, target: Target) -> Tally:
        from m3score.runs.collector import ranked_rows
        from m3score.runs.tally import Tally
        from m3score.tables.io import write_rows
        from m3score.tables.schema import TRACES

        tally = Tally(target.ladder)
        rows = self.rows()
        if target.ranked:
            rows = ranked_rows(rows, folder=None if self.journal.anonymous else str(self.journal.path.parent))
        note: Any = None if self.journal.anonymous else self.journal.wrote
        write: Mapping[str, Any] = {"format": target.format, "before_rename": note}
        if self.interrupted and not self.made and note:
            tally.count(rows)  # nothing is new: what an earlier run left is at least as much
            return tally
        try:
            write_rows(tally.passing(rows), target.out or "-", target.kind, target.columns, **write)
        finally:  # a full disk under one file may have room for the other elsewhere
            if target.traces is not None:
                write_rows(self.collector.traces(), target.traces, TRACES, before_rename=note)
        return tally

    # ---- what is said in the end

    def show(self, tally: Tally, model: str) -> bool:
        """Print a summary of a kind of its own, if this kind of run has one."""
        return False

    def tell(self, tally: Tally, done: str, what: str = "") -> None:
        """One line: how many images, how fast, and how many an earlier run had done."""
        from m3score.cli.progress import speed_text
        from m3score.cli.summary import show_skipped

        made = self.collector.made
        verb = "Interrupted after" if self.interrupted else done
        speed = speed_text(made / max(self.seconds, 1e-9))
        images = f"{tally.images:,} image{'' if tally.images == 1 else 's'}"
        if self.collector.skipped:
            images += f", of which {self.collector.skipped:,} were done before,"
        self.console.print(f"{verb} {images} in {self.seconds:.1f} s ({speed}){what}.")
        if again := self.collector.again:
            images = f"{again:,} image{' was' if again == 1 else 's were'} done again"
            group = f"with a group of {self.collector.block} that was not finished"
            self.console.print(f"{images}, {group}: so the numbers are those of an undisturbed run.")
        show_skipped(self.search.skipped, self.console)

    def leave(self, tally: Tally, out: Path | None) -> None:
        """Say where the table is and how to go on; exit codes 130 and 3."""
        if out is not None and str(out) != "-":
            rows = "the rows so far to " if self.interrupted else ""
            self.console.print(f"\nWrote {rows}{plain(out)}.")
        if self.interrupted:
            if not self.journal.anonymous:
                place = plain(self.journal.path)
                self.console.print(f"The same command goes on from here: {place} knows what is done.")
            raise typer.Exit(INTERRUPTED)
        if tally.failed:
            raise typer.Exit(SOME_FAILED)
