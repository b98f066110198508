"""What the vision tower and the reader are handed of a picture. Knows no torch: worker processes run it.

A picture is stretched to the shape that the tower looks at: an M3 model's tiles, or one square. It is not
padded, as it is for an answer: the border between a picture and its padding would count as something to see,
so that a blank picture would be no blank one any more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from m3score.images.sandbox import Preparation
from m3score.models.m3.config import M3Config
from m3score.models.m3.preprocess import Tiles, best_canvas, preprocess, tiles_from_worker

if TYPE_CHECKING:
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


Shape = M3Config | int
"""What the tower looks at: the tiles of an M3 model, or a square of so many pixels a side, which the model's
own processor prepares further."""


def prepare(image: Image.Image | Prepared, shape: Shape) -> Prepared:
    """An RGB picture for a tower that looks at this shape; what is prepared already as it is."""
    if isinstance(image, Prepared):
        return image
    return Prepared(stretched_tiles(image, shape), luminance(image))


def stretched_tiles(image: Image.Image, shape: Shape) -> Tiles:
    """A picture stretched to a square, or to the canvas of several tiles that fits it best.

    For a shape that is a number of pixels the values are bytes, (1, side, side, 3).
    """
    if isinstance(shape, int):
        square = image.resize((shape, shape), Image.Resampling.BICUBIC, reducing_gap=3.0)
        return Tiles(np.asarray(square)[None], image.size, None)
    config = shape
    size = (config.image_size, config.image_size)
    if config.image_aspect_ratio == "anyres":
        size = best_canvas(image.size, config.image_grid_pinpoints)
    stretched = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    return replace(preprocess(stretched, config), size=image.size)


def luminance(image: Image.Image, longest: int = LONGEST) -> np.ndarray:
    """What the reader looks at: uint8 (height, width), at most `longest` a side, never enlarged."""
    largest = max(image.size)
    grey = image.convert("L")
    if largest > longest:
        width, height = (max(1, round(side * longest / largest)) for side in image.size)
        grey = grey.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
    return np.asarray(grey)


def preparation(shape: Shape) -> Preparation:
    """`prepare`, to run in worker processes: what it makes is smaller to send than large pictures."""
    return Preparation(_in_worker, (shape if isinstance(shape, int) else asdict(shape),), _from_worker)


def _in_worker(image: Image.Image, shape: dict[str, Any] | int) -> tuple[Any, ...]:
    prepared = prepare(image, shape if isinstance(shape, int) else M3Config(**shape))
    tiles = prepared.tiles
    return tiles.pixel_values, tiles.size, tiles.tiles, prepared.luminance


def _from_worker(fields: tuple[Any, ...]) -> Prepared:
    return Prepared(tiles_from_worker(fields[:-1]), fields[-1])
