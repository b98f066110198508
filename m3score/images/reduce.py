"""Pictures as means of blocks of their pixels, and large JPEG files decoded in half the time.

Both change nothing but the time: what comes out hangs on the pixels alone, however the picture is handed in.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # no wheel for this machine: large JPEGs give the same, and take twice as long
    simplejpeg = None

_BACKWARD: dict[int, tuple[bool, bool]] = {
    2: (True, False),
    3: (True, True),
    4: (False, True),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}
"""Whether the stored columns, and the stored rows, run against those of the upright picture."""
SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations whose stored columns are the rows of the upright picture."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CELL = 32
"""Pixels a side of the cells in which a picture is looked at in its own size."""
CELLS_DOWN, CELLS_ACROSS = 8, 32
"""Cells at most. Twice as many rows of them told little more of 1,400 pictures, and took twice as long."""

QUICK = 1 << 17
"""Pixels of a JPEG from which it is worth another decoder's while."""


def quick_jpeg(image: Image.Image, file: IO[bytes]) -> Image.Image | None:
    """The whole of a colour JPEG file, mode RGBX: Pillow's own pixels in half the time.

    Both call libjpeg-turbo; simplejpeg spares a large picture Pillow's line by line. None where the file is
    something else, and where it is damaged: Pillow then says what is wrong, or makes the best of it.
    """
    if simplejpeg is None or image.format not in ("JPEG", "MPO") or image.mode != "RGB":
        return None
    file.seek(0)
    try:
        pixels = simplejpeg.decode_jpeg(file.read(), "RGBX")
    except ValueError:
        return None
    if pixels.shape[:2] != (image.height, image.width):
        return None
    return Image.frombuffer("RGBX", image.size, pixels, "raw", "RGBX", 0, 1)


def averaged(image: Image.Image, side: int | None, orientation: int = 1) -> Image.Image:
    """Means of square blocks of pixels, as many as leave the longest side `side` or more.

    Blocks are counted from the corner that is the upper left one of the *upright* picture, so that turning
    and averaging may change places: at the other sides blocks may be cut off.
    """
    factor = 1 if side is None else max(image.size) // side
    if factor < 2:
        return image
    ends = []
    for length, back in zip(image.size, _BACKWARD.get(orientation, (False, False)), strict=True):
        first = length % factor if back else 0  # what is cut off comes first where we count backward
        ends.append([(0, first), (first, length)] if first else [(0, length)])
    parts = [
        [image.reduce(factor, (left, top, right, bottom)) for left, right in ends[0]]
        for top, bottom in ends[1]
    ]
    if len(parts) == len(parts[0]) == 1:
        return parts[0][0]
    joined = Image.new(image.mode, (-(-image.width // factor), -(-image.height // factor)))
    top = 0
    for row in parts:
        left = 0
        for part in row:
            joined.paste(part, (left, top))
            left += part.width
        top += row[0].height
    return joined


def sampled_cells(image: Image.Image, orientation: int = 1) -> np.ndarray:
    """The luminance of cells of the *upright* picture, evenly spread, at its full size.

    What averaging hides, such as small print, shows in them, and they are no more in a larger picture.

    Args:
        image: a decoded picture as it is stored, mode RGB or RGBX.
        orientation: EXIF's, of how it is stored.

    Returns:
        uint8 (rows, columns), both multiples of CELL; a picture below CELL pixels is continued to that.
    """
    sideways = orientation in SIDEWAYS
    width, height = image.size[::-1] if sideways else image.size
    tops = _spread(height, CELLS_DOWN)
    lefts = _spread(width, CELLS_ACROSS)
    if orientation == 1 and len(tops) < CELLS_DOWN:  # whole, but for a rim at most
        grey = np.asarray(image.convert("L"))
        bands = [grey[: len(tops) * CELL]]
    else:
        bands = [_band(image, orientation, top, min(height, top + CELL)) for top in tops]
    if len(lefts) == CELLS_ACROSS:
        bands = [np.concatenate([band[:, left : left + CELL] for left in lefts], axis=1) for band in bands]
    else:
        bands = [band[:, : len(lefts) * CELL] for band in bands]
    cells = np.concatenate(bands) if len(bands) > 1 else bands[0]
    below, right = (max(0, CELL - length) for length in cells.shape)
    return np.pad(cells, ((0, below), (0, right)), mode="edge") if below or right else cells


def _spread(length: int, most: int) -> list[int]:
    """Where cells begin along a side of so many pixels: at multiples of CELL, with gaps in a long one."""
    count = max(1, length // CELL)
    chosen = range(count) if count < most else ((count - 1) * k // (most - 1) for k in range(most))
    return [CELL * k for k in chosen]


def _band(image: Image.Image, orientation: int, top: int, bottom: int) -> np.ndarray:
    """The luminance of some rows of the upright picture, of one that is stored as EXIF says."""
    sideways = orientation in SIDEWAYS
    if _BACKWARD.get(orientation, (False, False))[0 if sideways else 1]:
        length = image.width if sideways else image.height
        top, bottom = length - bottom, length - top
    box = (top, 0, bottom, image.height) if sideways else (0, top, image.width, bottom)
    return np.asarray(upright(image.crop(box).convert("L"), orientation))


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as people see it, of one that is stored as EXIF's orientation says."""
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {}  # the tag would turn it once more, where it is handed in again as a picture
    return turned
