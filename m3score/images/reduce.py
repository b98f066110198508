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
BAND = 32
"""Rows of a band."""
BANDS = 16
"""Bands of a picture, at most: a picture of up to 512 rows is looked at whole."""

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


def bands_of(image: Image.Image, orientation: int = 1) -> np.ndarray:
    """The luminance of bands of the *upright* picture's rows, evenly spread, at its full size.

    What averaging hides, such as small print, shows in them, at a cost that grows with the picture's width
    and not with its area.

    Args:
        image: a decoded picture as it is stored, mode RGB or RGBX.
        orientation: EXIF's, of how it is stored.

    Returns:
        uint8 (rows, columns), both multiples of BAND: bands below each other, and the last columns cut off. A
        picture below BAND pixels is continued to be as large.
    """
    sideways = orientation in SIDEWAYS
    height = image.width if sideways else image.height
    backward = _BACKWARD.get(orientation, (False, False))[0 if sideways else 1]
    count = min(BANDS, max(1, height // BAND))
    bands = []
    for k in range(count):
        first = max(0, (height - BAND) * k // (count - 1) if count > 1 else (height - BAND) // 2)
        last = min(height, first + BAND)
        start, end = (height - last, height - first) if backward else (first, last)
        box = (start, 0, end, image.height) if sideways else (0, start, image.width, end)
        bands.append(np.asarray(upright(image.crop(box).convert("L"), orientation)))
    joined = np.concatenate(bands)
    below, right = (max(0, BAND - length) for length in joined.shape)
    if below or right:
        joined = np.pad(joined, ((0, below), (0, right)), mode="edge")
    return joined[:, : joined.shape[1] // BAND * BAND]


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as people see it, of one that is stored as EXIF's orientation says."""
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {}  # the tag would turn it once more, where it is handed in again as a picture
    return turned
