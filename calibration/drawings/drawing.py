"""Images drawn from a seed, with questions whose answers are known: endless, deterministic, free of licences.

`draw(seed, index)` is a pure function and gives the same picture on every machine. Training and evaluation
use different seeds. Kinds of picture: signs, shapes, bar charts, pages, regions, natural-looking scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from m3score.calibration.drawings.backdrops import NATURAL, regions
from m3score.calibration.drawings.canvas import SIZE, Canvas
from m3score.calibration.drawings.questions import DrawnQuestion, pixel_questions, wording
from m3score.calibration.drawings.shapes import chart, shapes
from m3score.calibration.drawings.text import page, sign, words
from m3score.calibration.drawings.textures import blank, gradient


@dataclass(frozen=True)
class Drawing:
    """A drawn image with its questions."""

    kind: str
    canvas: Canvas
    questions: tuple[DrawnQuestion, ...]

    @property
    def image(self) -> Image.Image:
        """RGB, 336x336."""
        return self.canvas.image


def plane(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """A few regions of different colours. Question: how many?"""
    description, count = regions(canvas)
    rng = canvas.rng
    return [
        DrawnQuestion("regions", wording(rng, "regions"), str(count)),
        DrawnQuestion("describe", wording(rng, "describe"), description),
    ]


def scene(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """A natural-looking scene: noise, leaves, a fractal, a texture."""
    painter = NATURAL[int(canvas.rng.integers(len(NATURAL)))]
    return [DrawnQuestion("describe", wording(canvas.rng, "describe"), painter(canvas))]


KINDS = {
    "sign": sign,
    "words": words,
    "shapes": shapes,
    "chart": chart,
    "page": page,
    "plane": plane,
    "scene": scene,
}
SHARES = {"sign": 0.32, "shapes": 0.24, "chart": 0.14, "page": 0.12, "plane": 0.06, "scene": 0.12}
"""Probability of each kind. Only a recipe can ask for "words", which teach the vision tower to read."""


def draw(seed: int, index: int, kind: str | None = None, *, ask_all: bool = False) -> Drawing:
    """The `index`-th drawing of the stream `seed`; a pure function of its arguments.

    Args:
        seed: which endless stream of drawings.
        index: which drawing of the stream.
        kind: one of KINDS; by default at random, with the probabilities SHARES.
        ask_all: ask about everything in the drawing, as training does; else about a part of it.
    """
    rng = np.random.default_rng((seed, index))
    chosen = kind or str(rng.choice(list(SHARES), p=list(SHARES.values())))
    canvas = Canvas(rng)
    questions = KINDS[chosen](canvas, ask_all)
    wanted = 6 if ask_all else 3 if chosen in ("scene", "plane") else 1
    questions += [DrawnQuestion(*item) for item in pixel_questions(rng, canvas.pixels(), wanted)]
    return Drawing(chosen, canvas, tuple(questions))


EMPTY = 0.04
"""Of the drawings that predictors are calibrated on, those that show nothing."""


def draw_or_leave_empty(seed: int, index: int) -> Drawing:
    """As `draw`, but that every 25th drawing or so is a picture of nothing: one colour, or a gradient.

    What models learn from and are measured by stays without; a predictor that has hardly met an empty picture
    would take it for one that needs every token.
    """
    rng = np.random.default_rng((seed, index, 3))
    if rng.random() >= EMPTY:
        return draw(seed, index)
    canvas = Canvas(rng)
    canvas.image = (blank if rng.random() < 0.5 else gradient)(rng, SIZE)
    asked = [DrawnQuestion("count", wording(rng, "count"), "0")]
    asked += [DrawnQuestion(*item) for item in pixel_questions(rng, canvas.pixels(), 3)]
    return Drawing("empty", canvas, tuple(asked))
