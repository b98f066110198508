"""The complexity of pictures without a question, by a model's vision tower and the bundled reader.

    m3score.load_model("m3-tiny").vision_meter.score(["photo.jpg"])[0].complexity

Puts the parts of this folder together; what the numbers mean stands in complexity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import chain
from typing import Protocol

import torch
from PIL import Image

from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.models.inference.batching import MemoryGuard
from m3score.models.m3.preprocess import Tiles
from m3score.models.m3.tower import in_threads
from m3score.models.vision.complexity import VisionScore, score_pictures
from m3score.models.vision.prepare import Prepared, Shape, prepare, stretched_tiles
from m3score.models.vision.reader import read
from m3score.models.vision.whitening import Encode, Reference, Whitening, whitening_of

_OWN_DRAWINGS = "m3score.calibration.drawings.unasked.reference"
"""Whoever draws lives above this room, so it is known by name, and only if drawings are needed."""
_IN_A_THREAD = 4
"""Pictures that a thread of a CPU takes from pixels to score; fewer are slower, more take more memory."""


class Looker(Protocol):
    """What a model offers whose vision tower is to look at pictures."""

    name: str
    looks_in_threads: bool
    """Whether threads of a CPU may call `patch_features` at the same time."""

    @property
    def device(self) -> torch.device: ...

    @property
    def vision_shape(self) -> Shape:
        """What the tower looks at."""
        ...

    @property
    def vision_ladder(self) -> tuple[int, ...]:
        """Tokens per grid to which the tower's features are pooled, coarsest first."""
        ...

    def images_per_pass(self) -> int:
        """Pictures that the tower is given at once."""
        ...

    def patch_features(self, images: Sequence[Tiles]) -> list[torch.Tensor]:
        """Per picture (grids, tokens, width): features in square grids, row by row."""
        ...


class VisionMeter:
    """Scores pictures without a question."""

    def __init__(self, model: Looker, weights: str, reference: Callable[[], Reference] | None = None) -> None:
        """
        Args:
            model: whose vision tower looks.
            weights: a hash of the model's weights. The statistics over drawings that belong to them are
                bundled, kept from an earlier time, or worked out now: for a small model on a CPU that takes
                minutes.
            reference: the drawings; by default m3score's own.
        """
        self.model = model
        self._whitening = whitening_of(model.name, weights, encoder(model), reference or _own_reference).to(
            model.device
        )
        self._guard = MemoryGuard()

    @property
    def whitening(self) -> Whitening:
        """The model's statistics."""
        return self._whitening

    def score(self, images: Sequence[ImageSource | Prepared]) -> list[VisionScore]:
        """One score each, in order. Raises M3ScoreError for a picture that can't be read."""
        ready = [
            image if isinstance(image, Prepared) else prepare(open_image(image), self.model.vision_shape)
            for image in images
        ]
        return self._guard.map(self._score, ready, self.model.images_per_pass())

    def _score(self, images: Sequence[Prepared]) -> list[VisionScore]:
        if self.model.device.type != "cpu" or not self.model.looks_in_threads:
            return self._together(images)
        parts = [images[start : start + _IN_A_THREAD] for start in range(0, len(images), _IN_A_THREAD)]
        return list(chain.from_iterable(in_threads(self._together, parts)))

    def _together(self, images: Sequence[Prepared]) -> list[VisionScore]:
        features = self.model.patch_features([image.tiles for image in images])
        readings = read([image.luminance for image in images])
        return score_pictures(features, readings, self._whitening, self.model.vision_ladder)


def encoder(model: Looker) -> Encode:
    """A model's vision tower, as whitening.py wants it."""

    def encode(images: Sequence[Image.Image]) -> torch.Tensor:
        tiles = [stretched_tiles(image, model.vision_shape) for image in images]
        return torch.cat(model.patch_features(tiles)).float()

    return encode


def _own_reference() -> Reference:
    made: Reference = import_module(_OWN_DRAWINGS).reference()
    return made
