"""Drawings as picture files: in other sizes and shapes, blurred, saved as JPEG. Answers stay known.

All drawings are lossless and 336x336. A predictor trained on them alone has never seen what resizing,
compression or a camera's proportions do to its features.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from m3score.calibration.drawings.canvas import SIZE
from m3score.calibration.drawings.drawing import draw, draw_or_leave_empty
from m3score.calibration.drawings.questions import DrawnQuestion

LOCAL_TASKS = frozenset({"place", "pixel_colour", "brighter", "texture"})
"""Tasks whose answers depend on positions or on single pixels. They are left out for pictures that are not
square (which the model sees padded to a square) and for blurred ones."""


@dataclass(frozen=True)
class VariedDrawing:
    """A drawing as a picture file, with the questions whose answers have not changed."""

    content: bytes
    """The file: JPEG or PNG."""
    questions: tuple[DrawnQuestion, ...]


def vary(seed: int, index: int, *, empty: bool = False) -> VariedDrawing:
    """The `index`-th varied drawing of the stream `seed`; a pure function of its arguments.

    The drawing's side, 336 pixels, is scaled by 0.6 to 3 (log-uniform). Half of the pictures are stretched by
    up to 1.6 in one direction, a quarter is blurred by up to 1.5 px, and three of four are JPEGs of quality
    35 to 95.

    Args:
        seed, index: as of `draw`.
        empty: a few show nothing, as `draw_or_leave_empty` has them.
    """
    drawing = (draw_or_leave_empty if empty else draw)(seed, index)
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
    questions = tuple(q for q in drawing.questions if not (moved and q.task in LOCAL_TASKS))
    return VariedDrawing(content.getvalue(), questions)
