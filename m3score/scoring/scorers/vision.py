"""The scorer `vision`: how many distinct visual tokens a picture has, or how many it takes to read it.

No question is asked; the definition stands in m3score/models/vision/complexity.py. Importing this imports no
torch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.models.vision.prepare import Prepared, preparation, prepare
from m3score.scoring.base import BLOCK_BATCHES, Scored, ScorerOptions, open_batches, score_batches
from m3score.scoring.scorers.model import identity_of, loaded_model
from m3score.scoring.scorers.model_stream import check_batch_size, images_at_once

COLUMNS = ("distinct_tokens", "reading_tokens", "letter_height")


def kept_columns(ladder: Iterable[int]) -> tuple[str, ...]:
    """Names of the columns that hold the share of variance that pooling to each coarser scale keeps."""
    return tuple(f"kept_{tokens}" for tokens in sorted(ladder)[:-1])


@dataclass(frozen=True)
class VisionOptions(ScorerOptions):
    """Options of the scorer `vision`."""

    model: Any = "m3-tiny"
    """What load_model takes (a bundled model, a hub id, a folder), or a loaded model."""
    batch_size: int | Literal["auto"] = "auto"
    """Images that the model is given at once; "auto" is 32 on a GPU and 8 elsewhere."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)

    def check_portable(self) -> None:
        """See ScorerOptions."""
        if not isinstance(self.model, str):
            raise M3ScoreError("--engine ray loads the model on every machine: give its name, not a model.")

    def loading(self) -> dict[str, Any]:
        """Arguments of load_model beside the name."""
        return {name: getattr(self, name) for name in ("device", "dtype", "quantize", "revision")}


class VisionScorer:
    """One pass of a model's vision tower, and the reader."""

    Options: ClassVar[type[VisionOptions]] = VisionOptions
    traced: ClassVar[bool] = False

    def __init__(self, options: VisionOptions) -> None:
        self.options = options
        self.model: Any = loaded_model(options.model, options.loading())
        if not hasattr(self.model, "vision_score"):
            raise M3ScoreError("this model has no vision tower to look with: give a question.")
        self.name = str(options.model if isinstance(options.model, str) else self.model.name)
        self._meter = self.model.vision_meter
        self.ladder: tuple[int, ...] = tuple(self.model.ladder)
        self.columns = (*COLUMNS, *kept_columns(self.ladder))
        self.batch_size = images_at_once(self.model, options.batch_size)
        self.block = BLOCK_BATCHES * self.batch_size
        self.label = f"with {self.name} on {self.model.device}"

    def identity(self) -> Mapping[str, Any]:
        """The model's weights, and the version of what is measured."""
        from m3score.models.vision.complexity import VERSION

        return {
            "version": VERSION,
            "--model": identity_of(self.name, self.options.revision),
            "--device": str(self.model.device).partition(":")[0],
            "--dtype": str(self.model.dtype),
            "--quantize": self.options.quantize,
        }

    def stream(
        self, items: Iterable[ImageItem], *, limits: Limits, workers: int | None = None
    ) -> Generator[Scored, None, None]:
        """See Scorer. Pictures are opened and preprocessed in worker processes, a few ahead of the tower."""
        opened = open_batches(
            items,
            self.batch_size,
            limits=limits,
            workers=workers,
            prepare=partial(prepare, config=self.model.config),
            preparation=preparation(self.model.config),
        )
        yield from score_batches(opened, self._rows)

    def _rows(self, images: Sequence[Prepared]) -> list[dict[str, Any]]:
        return [{**score.to_row(), "error": None} for score in self._meter.score(images)]
