"""A picture as the model sees it: in a square of cells, at a few sizes, cheaply.

Knows numpy and Pillow. M3 pads a picture to a square and cuts it into 24 patches a side; here a cell has 12
pixels a side. The picture's edges are continued to fill the square, for a border in another colour would be
detail that the picture lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

CELLS = 24
"""Cells a side of the finest grid: M3's patches."""
SIDE = 288
"""Pixels a side of the square: halves and thirds lead down to 24, 12, 6, 3, 1; near the 336 of M3's tower."""
COARSE = 72
"""Pixels a side at which colours and regions are looked at."""


@dataclass(frozen=True, eq=False)
class Square:
    """A picture in its square."""

    rows: slice
    columns: slice
    """Which pixels of the square show the picture."""
    luma: np.ndarray
    """uint8 (288, 288)."""
    colour: np.ndarray
    """uint8 (3, 72, 72): Y, Cb, Cr."""

    @classmethod
    def of(cls, image: Image.Image) -> Square:
        """Lay an RGB (or RGBX) picture of any size into the square, keeping its aspect ratio."""
        image = _shrunk(image, SIDE)
        longest = max(image.size)
        width, height = (max(1, round(length * SIDE / longest)) for length in image.size)
        left, top = (SIDE - width) // 2, (SIDE - height) // 2
        square = slice(top, top + height), slice(left, left + width)
        luma = _filled(np.asarray(_resized(image.convert("L"), (width, height))), square, SIDE)
        rows, columns = (coarser(part, SIDE // COARSE) for part in square)
        small = _resized(_shrunk(image, COARSE), (columns.stop - columns.start, rows.stop - rows.start))
        planes = np.asarray(small.convert("RGB").convert("YCbCr")).transpose(2, 0, 1)
        return cls(*square, luma, _filled(planes, (rows, columns), COARSE))

    def shown(self, side: int) -> tuple[slice, slice]:
        """The rows and columns that show the picture when the square has `side` pixels or cells a side."""
        return coarser(self.rows, SIDE // side), coarser(self.columns, SIDE // side)

    @cached_property
    def weights(self) -> np.ndarray:
        """float32 (24, 24): which share of each cell shows the picture."""
        shares = []
        for part in (self.rows, self.columns):
            line = np.zeros(SIDE, np.float32)
            line[part] = 1
            shares.append(line.reshape(CELLS, -1).mean(1))
        return np.outer(*shares)

    def levels(self) -> dict[int, np.ndarray]:
        """The luminance minus 128 as float32 (side, side), at sides 144, 72, 36."""
        pairs = np.add(self.luma[::2], self.luma[1::2], dtype=np.uint16)
        quads = pairs[:, ::2] + pairs[:, 1::2]
        levels = {144: quads * np.float32(0.25) - np.float32(128)}  # minus 128: small squares, exact sums
        for side in (72, 36):
            levels[side] = pooled(levels[2 * side], side)
        return levels


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Averaged over blocks to at least `side` pixels: far cheaper than resampling, and here as good."""
    factor = max(image.size) // side
    return image.reduce(factor) if factor > 1 else image


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size == size:
        return image
    # Hamming is as cheap as bilinear and nearly as sharp as bicubic, but it is made for shrinking.
    enlarges = size[0] > image.width or size[1] > image.height
    return image.resize(size, Image.Resampling.BICUBIC if enlarges else Image.Resampling.HAMMING)


def _filled(pixels: np.ndarray, place: tuple[slice, slice], side: int) -> np.ndarray:
    """Pixels (..., h, w) at their place in a square, the outermost rows and columns continued."""
    rows, columns = place
    square = np.empty((*pixels.shape[:-2], side, side), np.uint8)
    square[..., rows, columns] = pixels
    square[..., : rows.start, columns] = pixels[..., :1, :]
    square[..., rows.stop :, columns] = pixels[..., -1:, :]
    square[..., : columns.start] = square[..., columns.start, None]
    square[..., columns.stop :] = square[..., columns.stop - 1, None]
    return square


def coarser(part: slice, step: int) -> slice:
    """The blocks of `step` pixels that hold any of a slice."""
    return slice(part.start // step, -(-part.stop // step))


def pooled(values: np.ndarray, side: int) -> np.ndarray:
    """Float32 (..., n, n) averaged over blocks to (..., side, side); side divides n."""
    size = values.shape[-1]
    step = size // side
    if size <= 2 * CELLS:  # small: one call of numpy is what counts
        blocks = values.reshape(*values.shape[:-2], side, step, side, step)
        return np.add.reduce(blocks, axis=(-3, -1)) / np.float32(step**2)
    if step > 3:
        sums = np.add.reduce(values.reshape(*values.shape[:-2], side, step, size), axis=-2)
        return np.add.reduce(sums.reshape(*values.shape[:-2], side, side, step), axis=-1) / np.float32(
            step**2
        )
    rows = sum((values[..., k::step, :] for k in range(1, step)), start=values[..., ::step, :])
    total = sum((rows[..., k::step] for k in range(1, step)), start=rows[..., ::step])
    return total / np.float32(step**2)
