"""The drawings that a model's features are measured by, for the `vision` complexity: the same on every
machine.

Kinds of picture that drawing.py and variations.py know, and pictures of nothing. Knows no models.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from m3score.calibration.drawings.drawing import draw
from m3score.calibration.drawings.textures import blank, gradient, random_texture
from m3score.calibration.drawings.unasked.lookalikes import clutter, grid, plot, strokes
from m3score.calibration.drawings.variations import vary
from m3score.models.vision.whitening import Reference

SEED = 7_000
DRAWN, VARIED, SCENES = 192, 192, 96
BLANKS, GRADIENTS, TEXTURES, STRUCTURED = 160, 96, 192, 128
_SIDE = 336


def reference() -> Reference:
    """What m3score measures every model by."""
    return Reference(drawings=_drawings, nothing=_nothing, textures=_textures, structured=_structured)


def _drawings() -> Iterator[Image.Image]:
    for index in range(DRAWN):
        yield draw(SEED, index).image
    for index in range(VARIED):
        yield Image.open(io.BytesIO(vary(SEED + 1, index).content)).convert("RGB")
    for index in range(SCENES):
        yield draw(SEED + 2, index, "scene").image


def _nothing() -> Iterator[Image.Image]:
    yield from _painted(blank, BLANKS, SEED + 3)
    yield from _painted(gradient, GRADIENTS, SEED + 4)


def _textures() -> Iterator[Image.Image]:
    return _painted(random_texture, TEXTURES, SEED + 5)


def _structured() -> Iterator[Image.Image]:
    painters = (grid, strokes, clutter, plot)
    for index in range(STRUCTURED):
        random = np.random.default_rng((SEED + 6, index))
        yield painters[index % len(painters)](random, _SIDE)


def _painted(
    painter: Callable[[np.random.Generator, int], Image.Image], count: int, seed: int
) -> Iterator[Image.Image]:
    for index in range(count):
        yield painter(np.random.default_rng((seed, index)), _SIDE)
