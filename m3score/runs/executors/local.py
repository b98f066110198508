"""The executor of this machine: the scorer is made here, and its own worker processes open the images."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3score.runs.executors.base import ScorerFacts, ScorerJob, Stream

if TYPE_CHECKING:
    from m3score.data.item import ImageItem
    from m3score.scoring.base import Result


class LocalExecutor:
    """Everything in this process and its worker processes."""

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def open(self, job: ScorerJob) -> LocalScorer:
        """See Executor."""
        return LocalScorer(job)


class LocalScorer:
    """A scorer in this process."""

    def __init__(self, job: ScorerJob) -> None:
        self.job = job
        self.scorer = job.make()
        self.facts = ScorerFacts.of(self.scorer)
        self.block = self.facts.block
        self.model: Any = getattr(self.scorer, "model", None)

    def identity(self) -> Mapping[str, Any]:
        """See ScorerHandle."""
        return self.scorer.identity()

    def stream_for(
        self, out: Path | None, run: Mapping[str, Any], seen: Callable[[ImageItem], None], *, anew: bool
    ) -> Stream:
        """See ScorerHandle."""

        def stream(items: Iterable[ImageItem]) -> Generator[Result, None, None]:
            yield from self.scorer.stream(items, limits=self.job.limits, workers=self.job.workers)

        return stream

    def costs(self) -> Sequence[str]:
        """See ScorerHandle."""
        told: Callable[[], Sequence[str]] | None = getattr(self.scorer, "costs", None)
        return told() if told else ()

    def forget(self) -> None:
        """See ScorerHandle; here the journal holds all there is."""

    def close(self) -> None:
        """See ScorerHandle."""
