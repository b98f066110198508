"""The `vision` complexity of pictures, by a model's vision tower and the bundled reader.

    scorer = VisionScorer(m3score.load_model("m3-tiny"))
    scorer.score(["photo.jpg"])[0].complexity

Knows models and pictures; what the numbers mean stands in vision.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from m3score.images.decode import ImageSource, open_image
from m3score.models.fingerprint import fingerprint
from m3score.models.inference.batching import MemoryGuard
from m3score.models.m3.tower import vision_features
from m3score.models.reader import Reading, read
from m3score.models.whitening import Encode, Reference, Whitening, whitening_of
from m3score.scoring.vision import VisionScore, score_pictures

if TYPE_CHECKING:
    from m3score.models.m3.model import M3Model
    from m3score.models.m3.preprocess import Size, Tiles

_TILES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture that is ready for the vision tower, and what there is to read in it."""

    tiles: Tiles
    reading: Reading

    @property
    def size(self) -> Size:
        """(width, height) of the picture in pixels."""
        return self.tiles.size


class VisionScorer:
    """Scores pictures without a question."""

    def __init__(self, model: M3Model, reference: Callable[[], Reference] | None = None) -> None:
        """
        Args:
            model: whose vision tower looks. Its statistics over drawings are bundled, kept from an earlier
                time, or worked out now: that takes seconds on a GPU and minutes on a CPU.
            reference: the drawings; by default m3score's own.
        """
        self.model = model
        self._whitening = whitening_of(
            model.name, fingerprint(model.name), encoder(model), reference or _own_reference
        ).to(model.device)
        self._guard = MemoryGuard()

    @property
    def whitening(self) -> Whitening:
        """The model's statistics."""
        return self._whitening

    def prepare(self, image: ImageSource) -> Prepared:
        """All that can be done before the vision tower runs; safe to call from several threads."""
        opened = open_image(image)
        return Prepared(self.model.tiles(opened), read([opened])[0])

    def score(self, images: Sequence[ImageSource | Prepared]) -> list[VisionScore]:
        """One score each, in order. Raises M3ScoreError for a picture that can't be read."""
        ready = [image if isinstance(image, Prepared) else self.prepare(image) for image in images]
        return self._guard.map(self._score, ready, max(1, _TILES_AT_ONCE // self.model.most_tiles()))

    def _score(self, images: Sequence[Prepared]) -> list[VisionScore]:
        features = vision_features(self.model, [image.tiles for image in images])
        return score_pictures(
            features, [image.reading for image in images], self._whitening, self.model.ladder
        )


def encoder(model: M3Model) -> Encode:
    """A model's vision tower, as models/whitening.py wants it."""

    def encode(images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.cat(vision_features(model, [model.tiles(image) for image in images])).float()

    return encode


def _own_reference() -> Reference:
    from m3score.calibration.drawings.reference import reference

    return reference()
