"""Whoever watches a run: what is told while it goes on. Knows no terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from m3score.scoring.base import Result

logger = logging.getLogger(__name__)

Count = Callable[[], int | None]
"""Finds out how many inputs there are, which may take a while; None where only the end will tell."""


class Watcher:
    """Is told what a run does, in its thread. This one says notices to the log and nothing else."""

    def preparing(self, what: str) -> AbstractContextManager[Any]:
        """Something is made ready that may take a while, such as a model that is loaded."""
        return nullcontext()

    def phase(self, name: str, count: Count | None) -> AbstractContextManager[Any]:
        """A pass over the inputs; `count` is None where they can't be counted beforehand."""
        return nullcontext()

    def advance(self, result: Result | None) -> None:
        """One input more is done; by an earlier run, where there is no result."""

    def say(self, text: str) -> None:
        """A sentence for people."""
        logger.info("%s", text)


class Progress:
    """How far a run has come: what `on_progress` is called with. One object per pass, with new figures."""

    def __init__(self, phase: str, count: Count | None) -> None:
        self.phase = phase
        """What is being done, such as "Ranking"."""
        self.done = 0
        """Inputs so far in this pass, those of an earlier run included."""
        self.skipped = 0
        """Of these, those that an earlier run did."""
        self.row: dict[str, Any] | None = None
        """The newest row; None for an input that an earlier run did."""
        self._count = count

    def total(self) -> int | None:
        """How many inputs this pass will have; None where only the end will tell.

        Takes a look at all folders: call it once, in a thread of its own where there are very many.
        """
        return None if self._count is None else self._count()


class Callbacks(Watcher):
    """Calls functions of the caller.

    Args:
        on_progress: called after every input with a Progress.
        on_result: called with every new result.
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], object] | None = None,
        on_result: Callable[[Any], object] | None = None,
    ) -> None:
        self._on_progress = on_progress
        self._on_result = on_result
        self._now = Progress("", None)

    def phase(self, name: str, count: Count | None) -> AbstractContextManager[Any]:
        """See Watcher."""
        self._now = Progress(name, count)
        return nullcontext()

    def advance(self, result: Result | None) -> None:
        """See Watcher."""
        now = self._now
        now.done += 1
        now.skipped += result is None
        if self._on_result is not None and result is not None:
            self._on_result(result)
        if self._on_progress is not None:
            now.row = None if result is None else result.to_row()
            self._on_progress(now)
