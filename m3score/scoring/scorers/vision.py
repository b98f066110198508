"""The scorer `vision`: how many distinct visual tokens a picture has, or how many it takes to read it.

No question is asked; the definition stands in m3score/models/vision/complexity.py. Importing this imports no
torch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.models.fingerprint import calibration_identity
from m3score.models.vision.prepare import Prepared, preparation, prepare
from m3score.scoring.base import BLOCK_BATCHES, Scored, open_batches, score_batches
from m3score.scoring.oracle import ladder_text
from m3score.scoring.scorers.model import LoadedOptions
from m3score.scoring.scorers.model_stream import images_at_once

COLUMNS = ("distinct_tokens", "reading_tokens", "letter_height")


def kept_columns(ladder: Iterable[int]) -> tuple[str, ...]:
    """Names of the columns that hold the share of variance that pooling to each coarser scale keeps."""
    return tuple(f"kept_{tokens}" for tokens in sorted(ladder)[:-1])


@dataclass(frozen=True)
class VisionOptions(LoadedOptions):
    """Options of the scorer `vision`."""


class VisionScorer:
    """One pass of a model's vision tower, and the reader."""

    Options: ClassVar[type[VisionOptions]] = VisionOptions
    traced: ClassVar[bool] = False

    def __init__(self, options: VisionOptions) -> None:
        self.options = options
        self.model: Any = options.load()
        if not hasattr(self.model, "vision_score"):
            raise M3ScoreError("this model has no vision tower to look with: give a question.")
        self.name = str(options.model if isinstance(options.model, str) else self.model.name)
        self._meter = self.model.vision_meter
        self.ladder: tuple[int, ...] = tuple(self.model.vision_ladder)
        self.columns = (*COLUMNS, *kept_columns(self.ladder))
        self.batch_size = images_at_once(self.model, options.batch_size)
        self.block = BLOCK_BATCHES * self.batch_size
        self.label = f"with {self.name} on {self.model.device}"

    def identity(self) -> Mapping[str, Any]:
        """The model's weights, and the version of what is measured."""
        from m3score.models.vision.complexity import VERSION

        return {
            "version": VERSION,
            "--model": calibration_identity(self.model),
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
            prepare=partial(prepare, shape=self.model.vision_shape),
            preparation=preparation(self.model.vision_shape),
        )
        yield from score_batches(opened, self._rows)

    def _rows(self, images: Sequence[Prepared]) -> list[dict[str, Any]]:
        facts = {"model": self.name, "ladder": ladder_text(self.ladder), "error": None}
        return [{**score.to_row(), **facts} for score in self._meter.score(images)]
