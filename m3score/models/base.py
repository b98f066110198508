"""The protocol of models that answer at every scale, which scoring and ranking depend on.

Knows nothing about torch or any model, so that everything above it can be tested with a fake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

LOGITS = "logits"
"""What agreement is worked out from: the model's full distributions. A model that knows less says so in an
attribute `agreement_from`; such agreements are other numbers, and tables do not mix them."""


@dataclass(frozen=True)
class ScaleAnswer:
    """One answer at one scale of the ladder."""

    tokens: int
    """The scale, which a router chooses: of an M3 model visual tokens per grid (1, 9, 36, 144 or 576 for a
    24x24 grid), of any other a budget, the most visual tokens that the picture may have."""
    visual_tokens: int
    """Visual tokens that entered the language model in total, exactly (a LLaVA-NeXT image has several
    grids)."""
    answer: str | None
    """The greedy answer as text, stripped, without special tokens. None if it was not decoded, which happens
    only where it is known to differ from the finest scale's."""
    agreement: float
    """Mean over the positions of the finest scale's answer of 1 - total variation distance, in [0, 1]."""
    logprob: float
    """Log-probability (nats) of this scale's own answer, summed over its tokens and the end token; NaN if the
    answer was not decoded."""
    cut: bool = False
    """Whether the answer reached max_new_tokens without an end token, so that it may be incomplete."""


class LadderAnswerer(Protocol):
    """Something that answers a question about an image at every scale of its token ladder."""

    @property
    def name(self) -> str:
        """What the model is called: a hub id, a folder, or a bundled name."""
        ...

    @property
    def identity(self) -> str:
        """A hash of all that its answers depend on: the weights, and how images and prompts are prepared."""
        ...

    @property
    def device(self) -> Any:
        """Where it runs; its text is such as "cpu", "cuda:0" or "mps"."""
        ...

    @property
    def ladder(self) -> tuple[int, ...]:
        """Scales, coarsest first: visual tokens per grid, or budgets."""
        ...

    def count_visual_tokens(self, size: tuple[int, int], budget: int) -> int:
        """How many visual tokens an image has at a scale, exactly, without running the model.

        Args:
            size: (width, height) of the image in pixels.
            budget: a scale of the ladder.
        """
        ...

    def answer_ladder(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], *, max_new_tokens: int = 32
    ) -> list[list[tuple[ScaleAnswer, ...]]]:
        """Answer each image's questions at every scale.

        It may also take `decode_coarse=False`: then coarser scales' answers that differ from the finest
        scale's need not be decoded (see ScaleAnswer).

        Returns:
            Per image, per question of that image: one ScaleAnswer per scale, coarsest first.
        """
        ...
