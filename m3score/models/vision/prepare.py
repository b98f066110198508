"""What the vision tower and the reader are handed of a picture. Knows no torch: worker processes run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from m3score.images.sandbox import Preparation
from m3score.models.m3.preprocess import Tiles, tiles_from_worker, tiles_in_worker

if TYPE_CHECKING:
    from m3score.models.m3.config import M3Config
    from m3score.models.m3.ladder import Size

LONGEST = 1008
"""Pixels on the longest side that the reader looks at: three times the side of a LLaVA's tile."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture that is ready for the vision tower and for the reader."""

    tiles: Tiles
    luminance: np.ndarray
    """uint8 (height, width), see `luminance`."""

    @property
    def size(self) -> Size:
        """(width, height) of the picture in pixels."""
        return self.tiles.size


def prepare(image: Image.Image | Prepared, tiles: Callable[[Image.Image], Tiles]) -> Prepared:
    """A picture, preprocessed by a model's `tiles`; what is prepared already as it is."""
    if isinstance(image, Prepared):
        return image
    return Prepared(tiles(image), luminance(image))


def luminance(image: Image.Image, longest: int = LONGEST) -> np.ndarray:
    """What the reader looks at: uint8 (height, width), at most `longest` a side, never enlarged."""
    largest = max(image.size)
    grey = image.convert("L")
    if largest > longest:
        width, height = (max(1, round(side * longest / largest)) for side in image.size)
        grey = grey.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(grey)


def preparation(config: M3Config) -> Preparation:
    """`prepare`, to run in worker processes: what it makes is smaller to send than large pictures."""
    return Preparation(_in_worker, (asdict(config),), _from_worker)


def _in_worker(image: Image.Image, config: dict[str, Any]) -> tuple[Any, ...]:
    return (*tiles_in_worker(image, config), luminance(image))


def _from_worker(fields: tuple[Any, ...]) -> Prepared:
    return Prepared(tiles_from_worker(fields[:-1]), fields[-1])
