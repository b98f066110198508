"""Where the work of a run is done: the interface that this machine and a cluster have in common.

A job says which scorer is wanted; an executor makes it ready, wherever that is, and gives a handle to it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from m3score.common.limits import Limits

if TYPE_CHECKING:
    from m3score.data.item import ImageItem
    from m3score.scoring.base import Result, Scorer, ScorerOptions

Stream: TypeAlias = "Callable[[Iterable[ImageItem]], Generator[Result, None, None]]"
"""One result per input, in order."""


@dataclass(frozen=True)
class ScorerJob:
    """A scorer that is wanted. Can be sent to another machine if `scorer` is a class."""

    scorer: Any
    """A scorer's class, or a scorer that is made already."""
    options: ScorerOptions
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    traces: bool = False
    """Whether the trace rows are wanted."""
    identity: Mapping[str, Any] | None = None
    """That every machine has to find; None before that is known."""

    def make(self) -> Scorer:
        """The scorer, with whatever it loads. M3ScoreError where this machine lacks what it takes."""
        made: Scorer = self.scorer(self.options) if isinstance(self.scorer, type) else self.scorer
        return made

    @property
    def loads(self) -> str:
        """What takes a while to make, for people."""
        model = getattr(self.options, "model", None)
        named = model if isinstance(model, str) else getattr(self.scorer, "__name__", "the scorer")
        return str(named)


@dataclass(frozen=True)
class ScorerFacts:
    """What a run has to know about a scorer; see Scorer."""

    columns: tuple[str, ...]
    ladder: tuple[int, ...]
    block: int
    label: str
    name: str
    """Of its model, if it has one."""

    @classmethod
    def of(cls, scorer: Scorer) -> ScorerFacts:
        """What a scorer that is here says of itself."""
        return cls(
            tuple(scorer.columns),
            tuple(scorer.ladder),
            int(scorer.block),
            str(scorer.label),
            str(getattr(scorer, "name", "")),
        )


class ScorerHandle(Protocol):
    """A scorer that is ready, here or elsewhere."""

    facts: ScorerFacts
    block: int
    """Inputs that a run which goes on does again together."""
    model: Any
    """The loaded model, where there is one and it is here."""

    def identity(self) -> Mapping[str, Any]:
        """What its numbers depend on; see Scorer."""

    def stream_for(
        self, out: Path | None, run: Mapping[str, Any], seen: Callable[[ImageItem], None], *, anew: bool
    ) -> Stream:
        """What scores the inputs of a run.

        Args:
            out, run, anew: as for open_journal, which has to have locked the output before.
            seen: called with every input that is sent to another machine.
        """

    def costs(self) -> Sequence[str]:
        """What the run cost where that is counted, in sentences for people."""

    def forget(self) -> None:
        """The run is complete and its table in place: nothing needs to be kept for the next one."""

    def close(self) -> None:
        """Release what is open. What is done lies where the next run finds it."""


class Executor(Protocol):
    """Does the work of runs. A context manager: what it holds is released in the end."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exception: object) -> None: ...

    def open(self, job: ScorerJob) -> ScorerHandle:
        """Make a scorer ready. M3ScoreError where that can't be done."""
