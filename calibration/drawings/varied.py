"""Drawings the way pictures come: in other sizes and shapes, blurred, saved as JPEG. Answers stay known.

Drawings are all 336x336 and without loss. A predictor that learnt from them alone has never seen what a
resize, a compression or a camera's proportions do to its features.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from m3score.calibration.drawings.canvas import SIZE
from m3score.calibration.drawings.drawn import draw
from m3score.calibration.drawings.wordings import Asked

LOCAL_TASKS = frozenset({"place", "pixel_colour", "brighter", "texture"})
"""Whose answers hang on where things are, or on single pixels: not asked of a picture that isn't square (the
model sees it padded to a square) or that is blurred."""


@dataclass(frozen=True)
class Varied:
    """A drawing as a picture file, with the questions that still have the answers they had."""

    content: bytes
    """The file: JPEG or PNG."""
    asked: tuple[Asked, ...]


def vary(seed: int, index: int) -> Varied:
    """The `index`-th varied drawing of the stream `seed`; a pure function of its arguments.

    The sides are those of the drawing, 336, times 0.6 to 3 (log-uniform); half of the pictures are stretched
    by up to 1.6 one way; a quarter is blurred by up to 1.5 px; three of four are JPEGs of quality 35 to 95.
    """
    drawing = draw(seed, index)
    rng = np.random.default_rng((seed, index, 1))
    side = SIZE * float(np.exp(rng.uniform(np.log(0.6), np.log(3))))
    stretch = float(np.exp(rng.uniform(-np.log(1.6), np.log(1.6)))) if rng.random() < 0.5 else 1.0
    size = (round(side * stretch**0.5), round(side / stretch**0.5))
    image = drawing.image.resize(size, Image.Resampling.BICUBIC)
    blurred = rng.random() < 0.25
    if blurred:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5)))
    content = io.BytesIO()
    if rng.random() < 0.75:
        image.save(content, "JPEG", quality=int(rng.integers(35, 96)))
    else:
        image.save(content, "PNG")
    moved = blurred or stretch != 1.0
    asked = tuple(a for a in drawing.asked if not (moved and a.task in LOCAL_TASKS))
    return Varied(content.getvalue(), asked)
