"""Where on a picture its complexity is: the map of a vision score, laid over the picture.

Knows where a model's grid lies on a picture, and colours; runs no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from m3score.models.m3.ladder import Size
    from m3score.models.vision.complexity import VisionScore

Box = tuple[float, float, float, float]
"""Left, top, right, bottom of a grid, as shares of the picture's sides; it may reach beyond them."""

TOP_SHARE = 0.995
"""The quantile of a map that has its brightest colour: a single patch must not leave all others dark."""
LEAST_TOP = 0.05
"""Tokens per patch that the brightest colour stands for at least: where nothing is, nothing must glow."""
_STOPS = ((90, 30, 20, 0.0), (150, 45, 25, 0.4), (240, 122, 19, 0.7), (255, 228, 94, 0.88))
"""Red, green, blue and opacity from nothing to the most; templates/report.js has the same."""
_GREY = 0.85
"""How much of a picture's colours is taken out under the map, so that only the map is in colour."""


@dataclass(frozen=True, eq=False)
class Where:
    """Where the complexity of a picture is."""

    tokens: np.ndarray
    """float32 (side, side): effective tokens of each patch; the sum is the picture's."""
    box: Box

    @property
    def top(self) -> float:
        """Tokens per patch that have the brightest colour."""
        return max(float(np.quantile(self.tokens, TOP_SHARE)), LEAST_TOP)


def where(score: VisionScore) -> Where:
    """The map of a score; the vision tower looks at a picture that is stretched to its square."""
    return Where(score.map, (0.0, 0.0, 1.0, 1.0))


def grid_box(size: Size, aspect_ratio: str) -> Box:
    """Where preprocess.py puts the (overview) grid: around, over or in the middle of the picture."""
    width, height = size
    if aspect_ratio == "anyres":
        return 0.0, 0.0, 1.0, 1.0
    side = max(size) if aspect_ratio == "pad" else min(size)
    x, y = side / width / 2, side / height / 2
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def overlay(image: Image.Image, found: Where, longest: int = 576) -> Image.Image:
    """The picture in grey with its map over it, at most `longest` pixels a side."""
    shown = image.convert("RGB")
    scale = longest / max(shown.size)
    width, height = (max(1, round(side * scale)) for side in shown.size)
    shown = shown.resize((width, height), Image.Resampling.LANCZOS)
    shown = Image.blend(shown, shown.convert("L").convert("RGB"), _GREY)
    left, top, right, bottom = found.box
    side = len(found.tokens)
    # The part of the grid that lies on the picture, in patches; beyond the grid nothing was looked at.
    part = tuple((v - low) / (high - low) * side for v, low, high in (
        (0, left, right), (0, top, bottom), (1, left, right), (1, top, bottom)))  # fmt: skip
    level = Image.fromarray(np.clip(found.tokens / found.top, 0, 1).astype(np.float32))
    values = level.transform((width, height), Image.Transform.EXTENT, part, Image.Resampling.BICUBIC)
    colours = _coloured(np.clip(np.asarray(values), 0, 1))
    return Image.alpha_composite(shown.convert("RGBA"), Image.fromarray(colours)).convert("RGB")


def _coloured(values: np.ndarray) -> np.ndarray:
    """float (h, w) in [0, 1] -> uint8 (h, w, 4)."""
    stops = np.array(_STOPS) * (1, 1, 1, 255)
    places = np.linspace(0, 1, len(stops))
    bands = [np.interp(values, places, stops[:, band]) for band in range(4)]
    return np.rint(np.stack(bands, axis=-1)).astype(np.uint8)
