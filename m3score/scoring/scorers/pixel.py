"""Simple measures of a picture's complexity, to set beside the model's: JPEG bytes, edge density, entropy.

numpy and Pillow only; each is a number in [0, 1], more being more complex, of the picture shrunk or enlarged
to LONGEST pixels on its longest side, so that the size of a file says nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageFilter

from m3score.common.limits import MAX_FILE_BYTES, MAX_PIXELS
from m3score.images.decode import open_reduced
from m3score.images.given import ImageSource
from m3score.scoring.base import PictureScorer

LONGEST = 256
"""Pixels on the longest side of a picture that is measured."""
QUALITY = 75
"""Of the JPEG."""
EDGE = 8.0
"""Grey levels per pixel from which a slope is an edge."""


def jpeg_share(image: Image.Image) -> float:
    """Bytes as a JPEG (quality 75), less those of a grey one of the size, as a share of 3 bytes per pixel."""
    file_bytes = _jpeg_bytes(image) - _plain_bytes(image.size)
    return min(max(file_bytes / (3 * image.width * image.height), 0.0), 1.0)


def edge_density(image: Image.Image) -> float:
    """Share of pixels whose Sobel slope of luminance, after a blur of 1 px, is EDGE grey levels or more."""
    grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(1)), np.float32)
    grey = np.pad(grey, 1, mode="edge")
    along_x = grey[:, 2:] - grey[:, :-2]
    along_y = grey[2:] - grey[:-2]
    slope_x = (along_x[:-2] + 2 * along_x[1:-1] + along_x[2:]) / 8
    slope_y = (along_y[:, :-2] + 2 * along_y[:, 1:-1] + along_y[:, 2:]) / 8
    return float(np.mean(slope_x**2 + slope_y**2 >= EDGE**2))


def grey_entropy(image: Image.Image) -> float:
    """Shannon entropy of the histogram of 256 grey levels, as a share of its 8 bits."""
    shares = np.array(image.convert("L").histogram(), float) / (image.width * image.height)
    shares = shares[shares > 0]
    return float(min(max(-(shares * np.log2(shares)).sum() / 8, 0.0), 1.0))


BASELINES: dict[str, Callable[[Image.Image], float]] = {
    "jpeg": jpeg_share,
    "edges": edge_density,
    "entropy": grey_entropy,
}
"""Each takes an RGB picture of at most LONGEST pixels a side."""


def baseline(
    name: str, source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> tuple[float, tuple[int, int]]:
    """A measure of BASELINES of one picture, and its width and height.

    Raises:
        M3ScoreError: the picture can't be opened; the sentence names the file.
    """
    image, size = open_reduced(source, LONGEST, max_pixels=max_pixels, max_bytes=max_bytes)
    longest = max(image.size)
    width, height = (max(1, round(length * LONGEST / longest)) for length in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return BASELINES[name](image), size


def _jpeg_bytes(image: Image.Image) -> int:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.tell()


@lru_cache(maxsize=512)
def _plain_bytes(size: tuple[int, int]) -> int:
    return _jpeg_bytes(Image.new("RGB", size, (128, 128, 128)))


class _PixelScorer(PictureScorer):
    """A measure of BASELINES as a scorer."""

    name: ClassVar[str]
    VERSION: ClassVar[int] = 2

    def measure(self, source: str | bytes, *, max_pixels: int, max_bytes: int) -> dict[str, Any]:
        """See PictureScorer."""
        value, (width, height) = baseline(self.name, source, max_pixels=max_pixels, max_bytes=max_bytes)
        return {"complexity": value, "width": width, "height": height}


class JpegScorer(_PixelScorer):
    """Bytes as a JPEG; see jpeg_share."""

    name = "jpeg"


class EdgesScorer(_PixelScorer):
    """Density of edges; see edge_density."""

    name = "edges"


class EntropyScorer(_PixelScorer):
    """Entropy of the grey levels; see grey_entropy."""

    name = "entropy"
