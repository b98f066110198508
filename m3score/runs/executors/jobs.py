"""What a machine of a cluster does with inputs: load a model or predictor once, then score block after block.

Knows no cluster; that is ray_cluster.py. A job is sent to the machines, results come back as plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import FoundImage

if TYPE_CHECKING:
    from m3score.data.loader import QuestionBook
    from m3score.routing.predictor import Predictor

Work = Callable[[Sequence[FoundImage]], list[dict[str, Any]]]
"""One JSON-ready result per input, in order."""


class Job(Protocol):
    """Something to be done with every input, on any machine."""

    def load(self) -> Work:
        """Get ready, once per worker. M3ScoreError where the machine lacks what it takes."""

    def result(self, data: dict[str, Any]) -> Any:
        """What the local engine would have made in place of this data."""


@dataclass(frozen=True)
class ModelFacts:
    """What a run has to know about a model that is loaded elsewhere."""

    ladder: tuple[int, ...]
    device: str
    dtype: str
    identity: str
    """Of its weights; see identity_of."""


@dataclass(frozen=True)
class RankedElsewhere:
    """A RankedImage as it comes back: its rows."""

    row: dict[str, Any]
    traces: list[dict[str, Any]]
    transient: bool = False

    def to_row(self) -> dict[str, Any]:
        """See RankedImage.to_row."""
        return self.row

    def trace_rows(self) -> list[dict[str, Any]]:
        """See RankedImage.trace_rows."""
        return self.traces


@dataclass(frozen=True)
class ModelJob:
    """Ask a model at every scale."""

    model: str
    loading: Mapping[str, Any]
    """Arguments of load_model: device, dtype, quantize, revision."""
    book: QuestionBook
    how: Mapping[str, Any]
    """Arguments of rank_stream."""
    traces: bool
    """Whether the trace rows are wanted."""
    identity: str | None = None
    """Of the weights that every machine has to have; None before that is known."""

    def facts(self) -> ModelFacts:
        """Load the model, here, to see what it is."""
        model = self._loaded()
        identity = identity_of(self.model, self.loading.get("revision"))
        return ModelFacts(tuple(model.ladder), str(model.device), str(getattr(model, "dtype", "")), identity)

    def load(self) -> Work:
        """See Job."""
        from m3score.runs.ranking import RankedImage, rank_stream

        found = identity_of(self.model, self.loading.get("revision"))
        if self.identity is not None and found != self.identity:
            raise M3ScoreError(
                f"{self.model}: the machines of the cluster have different weights by that name."
            )
        model = self._loaded()

        def data(result: RankedImage) -> dict[str, Any]:
            traced = result.trace_rows() if self.traces else []
            return {"row": result.to_row(), "traces": traced, "transient": result.transient}

        def work(items: Sequence[FoundImage]) -> list[dict[str, Any]]:
            return [data(result) for result in rank_stream(items, model, self.book, **self.how)]

        return work

    def result(self, data: dict[str, Any]) -> RankedElsewhere:
        """See Job."""
        return RankedElsewhere(**data)

    def _loaded(self) -> Any:
        import m3score

        return m3score.load_model(self.model, **self.loading)


@dataclass(frozen=True)
class PredictorJob:
    """Foretell complexity from cheap features."""

    predictor: Predictor
    question: str | None = None
    limits: Limits = field(default_factory=Limits)
    frames: int | None = None

    def load(self) -> Work:
        """See Job."""
        from m3score.routing.predict import predict_many

        how: dict[str, Any] = {
            "max_drop": None,
            "predictor": self.predictor,
            "limits": self.limits,
            "frames": self.frames,
        }

        def work(items: Sequence[FoundImage]) -> list[dict[str, Any]]:
            return [asdict(one) for one in predict_many(items, self.question, workers=1, **how)]

        return work

    def result(self, data: dict[str, Any]) -> Any:
        """See Job."""
        from m3score.routing.predict import Prediction

        return Prediction(**data)


def identity_of(model: str, revision: str | None = None) -> str:
    """What the model's answers depend on: its weights, whatever it is called."""
    from m3score.models import hub
    from m3score.models.fingerprint import fingerprint

    try:
        return fingerprint(hub.locate(model, revision))
    except M3ScoreError:  # loaded by other means
        return model
