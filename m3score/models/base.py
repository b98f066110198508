"""What a model says at every scale: the small protocol that oracle and ranking see.

Knows nothing about torch or about models, so that everything above it can be tested with a fake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class ScaleAnswer:
    """One answer at one scale of the ladder."""

    tokens: int
    """Visual tokens per grid (1, 9, 36, 144 or 576 for a 24x24 grid): what a router chooses."""
    visual_tokens: int
    """Visual tokens in all that entered the language model (a LLaVA-NeXT image has several grids)."""
    answer: str | None
    """The greedy answer, decoded, without special tokens, stripped. None where it was not asked for and is
    known only to differ from the finest scale's."""
    agreement: float
    """Mean over the positions of the finest scale's answer of 1 - total variation distance, in [0, 1]."""
    logprob: float
    """Log-probability (nats, summed over its tokens, the end token included) of this scale's own answer; NaN
    without one."""
    cut: bool = False
    """Whether it reached max_new_tokens without coming to an end: there may be more that was not said."""


class LadderAnswerer(Protocol):
    """Something that answers a question about an image at every scale of its token ladder."""

    @property
    def name(self) -> str:
        """What the model is called: a hub id, a folder, or a bundled name."""
        ...

    @property
    def ladder(self) -> tuple[int, ...]:
        """Visual tokens per grid, coarsest first."""
        ...

    def answer_ladder(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], *, max_new_tokens: int = 32
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        """Answer each image's questions at every scale.

        An answerer may also take `answers=False`, and then leave out answers that would have to be decoded;
        see ScaleAnswer.

        Returns, per image and per question of that image, one ScaleAnswer per scale, coarsest first.
        """
        ...
