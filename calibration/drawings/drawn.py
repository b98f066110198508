"""Images drawn from a seed, with questions whose answers are known: endless, deterministic, free of licences.

`draw(seed, index)` is a pure function: the same picture on every machine. Training and evaluation use
different seeds. Kinds of picture: signs, shapes, bar charts, pages, regions, natural-looking scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from m3score.calibration.drawings.backdrops import NATURAL, regions
from m3score.calibration.drawings.canvas import Canvas
from m3score.calibration.drawings.shapes import chart, shapes
from m3score.calibration.drawings.text import page, sign, words
from m3score.calibration.drawings.wordings import Asked, pixel_questions, wording


@dataclass(frozen=True)
class Drawing:
    """A drawn image with its questions."""

    kind: str
    canvas: Canvas
    asked: tuple[Asked, ...]

    @property
    def image(self) -> Image.Image:
        """RGB, 336x336."""
        return self.canvas.image


def plane(canvas: Canvas, every: bool = False) -> list[Asked]:
    """A few regions of different colours: how many?"""
    told, count = regions(canvas)
    rng = canvas.rng
    return [
        Asked("regions", wording(rng, "regions"), str(count)),
        Asked("describe", wording(rng, "describe"), told),
    ]


def scene(canvas: Canvas, every: bool = False) -> list[Asked]:
    """A natural-looking scene: noise, leaves, a fractal, a texture."""
    painter = NATURAL[int(canvas.rng.integers(len(NATURAL)))]
    return [Asked("describe", wording(canvas.rng, "describe"), painter(canvas))]


KINDS = {
    "sign": sign,
    "words": words,
    "shapes": shapes,
    "chart": chart,
    "page": page,
    "plane": plane,
    "scene": scene,
}
# "words" is drawn only where a recipe asks for it: it teaches the vision tower to read.
SHARES = {"sign": 0.32, "shapes": 0.24, "chart": 0.14, "page": 0.12, "plane": 0.06, "scene": 0.12}


def draw(seed: int, index: int, kind: str | None = None, *, every: bool = False) -> Drawing:
    """The `index`-th drawing of the stream `seed`; a pure function of its arguments.

    Args:
        seed: which endless stream; training and evaluation use different ones.
        index: which drawing in it.
        kind: one of KINDS; by default drawn with the odds SHARES.
        every: ask about everything in the drawing, as training does; else about a part of it.
    """
    rng = np.random.default_rng((seed, index))
    chosen = kind or str(rng.choice(list(SHARES), p=list(SHARES.values())))
    canvas = Canvas(rng)
    asked = KINDS[chosen](canvas, every)
    wanted = 6 if every else 3 if chosen in ("scene", "plane") else 1
    asked += [Asked(*item) for item in pixel_questions(rng, canvas.pixels(), wanted)]
    return Drawing(chosen, canvas, tuple(asked))
