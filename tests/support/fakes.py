"""Stand-ins for models: no weights, no torch, exact numbers to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from m3score.models.base import ScaleAnswer

LADDER = (1, 9, 36, 144, 576)
PLAIN = Image.new("RGB", (320, 200), (90, 120, 30))
NOISE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (200, 320, 3), np.uint8))


class SingleGrid:
    """What models without weights have in common: a CPU, and one grid of visual tokens per image."""

    identity = "fake"
    device = "cpu"

    def count_visual_tokens(self, size: tuple[int, int], budget: int) -> int:
        return budget


class FakeAnswerer(SingleGrid):
    """Needs the more visual tokens the brighter the image: a mean grey of 0 needs one, of 255 all of them.

    Agreement is 1 from the scale that is needed on and 0 below it, so complexity is ln(needed) / ln(finest).
    """

    def __init__(
        self,
        ladder: tuple[int, ...] = LADDER,
        fail: Callable[[Image.Image], bool] | None = None,
        largest_batch: int | None = None,
    ) -> None:
        self.name = "fake"
        self.ladder = ladder
        self.fail = fail or (lambda image: False)
        self.largest_batch = largest_batch
        self.batches: list[int] = []
        self.asked: list[tuple[str, ...]] = []

    def needed(self, image: Image.Image) -> int:
        """Tokens that the fake needs for the image."""
        mean = image.convert("L").resize((1, 1)).getpixel((0, 0))
        assert isinstance(mean, int | float)
        return self.ladder[min(len(self.ladder) - 1, math.floor(mean / 256 * len(self.ladder)))]

    def encode(self, image: Image.Image) -> Image.Image:
        """The image itself."""
        return image

    def answer_ladder(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], *, max_new_tokens: int = 32
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        """As LadderAnswerer says; fails where it was told to."""
        self.batches.append(len(images))
        self.asked.extend(tuple(group) for group in questions)
        if self.largest_batch is not None and len(images) > self.largest_batch:
            raise RuntimeError("out of memory\nwith a long explanation")
        if any(self.fail(image) for image in images):
            raise RuntimeError("device lost")
        return [
            [self._ladder(image, question) for question in group]
            for image, group in zip(images, questions, strict=True)
        ]

    def answer(
        self, image: Image.Image, question: str, tokens: int | None = None, *, max_new_tokens: int = 32
    ) -> str:
        """The answer at one scale, by default the finest."""
        wanted = tokens or self.ladder[-1]
        return next(scale.answer or "" for scale in self._ladder(image, question) if scale.tokens == wanted)

    def _ladder(self, image: Image.Image, question: str) -> tuple[ScaleAnswer, ...]:
        needed = self.needed(image)
        return tuple(
            ScaleAnswer(
                tokens=tokens,
                visual_tokens=tokens,
                answer=f"{needed} is needed" if tokens >= needed else "no idea",
                agreement=float(tokens >= needed),
                logprob=-1.0,
            )
            for tokens in self.ladder
        )


def grey(level: int, size: tuple[int, int] = (16, 12)) -> Image.Image:
    """An image of one grey level, 0 to 255."""
    return Image.new("L", size, level)
