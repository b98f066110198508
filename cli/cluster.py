"""--engine ray: the same run, on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from m3score.cli.options import Engine
from m3score.common.errors import M3ScoreError
from m3score.runs.journal import journal_path

if TYPE_CHECKING:
    from m3score.common.limits import Limits
    from m3score.data.discover import FoundImage
    from m3score.data.loader import QuestionBook
    from m3score.routing.predictor import Predictor
    from m3score.runs.executors.jobs import Job, ModelFacts, ModelJob
    from m3score.runs.executors.ray_cluster import Cluster

DECODERS = 2
"""Processes that open images for each worker with a model."""

Stream = Callable[[Iterator["FoundImage"]], Generator[Any, None, None]]


@contextmanager
def cluster_for(
    engine: Engine, address: str | None, num_gpus: float | None, workers: int | None
) -> Iterator[Cluster | None]:
    """The cluster that the options of a command ask for; None for this machine alone.

    M3ScoreError if the options make no sense together, Ray is not installed, or there is no such cluster.
    """
    if engine is not Engine.ray:
        if address is not None or num_gpus is not None:
            raise M3ScoreError("--address and --num-gpus go with --engine ray.")
        yield None
        return
    from m3score.runs.executors.ray_cluster import connected

    with connected(address, workers=workers, num_gpus=num_gpus) as cluster:
        yield cluster


class Elsewhere:
    """A job that a cluster does in place of this machine."""

    def __init__(self, cluster: Cluster, job: Job, block: int = 0) -> None:
        self.cluster = cluster
        self.job = job
        self.block = block
        """Inputs that go to a worker together, where the job does not say."""

    def facts(self) -> ModelFacts:
        """What the model is that the job loads; from here on every worker has to have the same one."""
        job = cast("ModelJob", self.job)
        facts = self.cluster.facts(job)
        self.job = replace(job, identity=facts.identity)
        return facts

    @contextmanager
    def streaming(
        self,
        out: Path | None,
        depends_on: Mapping[str, Any],
        block: int,
        note: Callable[[FoundImage], None] = lambda item: None,
        *,
        overwrite: bool = False,
    ) -> Iterator[Stream]:
        """What to give to Run.go. Finished blocks lie beside the output until this ends and no more are due.

        Args:
            out, depends_on, overwrite: as for open_journal, which has to have locked the output before.
            block: inputs that go to a worker together.
            note: called with every input that is sent off.
        """
        from m3score.runs.block_store import FinishedBlocks

        done = FinishedBlocks(out, depends_on, overwrite=overwrite)

        def noted(items: Iterator[FoundImage]) -> Iterator[FoundImage]:
            for item in items:
                note(item)
                yield item

        try:
            yield lambda items: self.cluster.stream(noted(items), self.job, block, done)
        finally:
            if out is None or not journal_path(out).exists():
                done.remove()
            done.close()


def elsewhere_for(
    cluster: Cluster | None,
    model: str,
    loading: Mapping[str, Any],
    book: QuestionBook,
    how: Mapping[str, Any],
    *,
    traces: bool,
) -> Elsewhere | None:
    """A model's run on a cluster; None without one. The arguments are those of ModelJob."""
    if cluster is None:
        return None
    from m3score.runs.executors.jobs import ModelJob

    plain = {name: str(value) if isinstance(value, StrEnum) else value for name, value in loading.items()}
    return Elsewhere(cluster, ModelJob(model, plain, book, {**how, "workers": DECODERS}, traces))


def predictor_elsewhere(
    cluster: Cluster | None,
    predictor: Predictor,
    question: str | None,
    limits: Limits,
    frames: int | None = None,
) -> Elsewhere | None:
    """A predictor's run on a cluster; None without one. The arguments are those of PredictorJob."""
    if cluster is None:
        return None
    from m3score.runs.executors.jobs import PredictorJob
    from m3score.runs.executors.ray_cluster import PREDICTED_AT_ONCE

    return Elsewhere(cluster, PredictorJob(predictor, question, limits, frames), PREDICTED_AT_ONCE)
