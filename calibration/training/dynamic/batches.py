"""Batches of drawn signs and pages, shown with a random budget of visual tokens.

All pictures of a batch have one size, so that the vision tower takes them at once. Letters are large at first
and become smaller. A batch is a pure function of seed, index and progress. Knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from m3score.calibration.drawings.boards import DEFAULT, Style, dense_labels, draw_boards, draw_crowd
from m3score.calibration.drawings.drawing import Drawing
from m3score.calibration.training.dynamic.processing import (
    AFTER_IMAGE,
    RUNGS,
    TOKEN_SIDE,
    at_budget,
    fitted,
)
from m3score.calibration.training.tiny.objective import pack_questions
from m3score.common.errors import M3ScoreError

QUESTIONS = 6
"""Most questions about a picture in one batch."""
_READABLE = 6.0
"""Letters so high, in pixels of the shrunk picture, can be read."""
_BATCH = (4, 64)
_CROWDED = (0.85, 0.15)
"""Share of batches of pictures full of words, at the beginning and from half of the training on."""
_CROWD_BUDGET = 64
"""Smaller ones have no room for many words."""
_CROWD_HEIGHTS = (18, 30)
"""Bounds of the letters' height in these at the beginning, in pixels: about the side of a token."""
_TALLEST = 60
"""Letters in these are at last up to so high."""
_ALL_RUNGS_FROM = 0.15
"""Progress from which on the dearest rung is learnt too."""


def random_size(rng: np.random.Generator, style: Style, dearest: int) -> tuple[int, int]:
    """(width, height) in pixels: at most the dearest rung's area, at most 1.8 times as long as wide.

    M3ScoreError where even the smallest picture of the style has more.
    """
    most = dearest * TOKEN_SIDE**2
    if style.sides[0] ** 2 > most:
        raise M3ScoreError(
            f"Pictures of {style.sides[0]} pixels a side have more than {dearest} visual tokens: "
            "draw smaller ones, or learn a larger budget."
        )
    low, high = np.log(style.sides).tolist()
    while True:
        width, height = (round(float(side)) for side in np.exp(rng.uniform(low, high, 2)))
        if max(width, height) <= 1.8 * min(width, height) and width * height <= most:
            return width, height


def random_height(rng: np.random.Generator, size: tuple[int, int], style: Style, least: float = 0.0) -> int:
    """Height of letters in pixels: log-uniform from `least` or the style's smallest to its largest."""
    most = style.largest * max(size)
    return round(float(np.exp(rng.uniform(math.log(min(max(least, style.smallest), most)), math.log(most)))))


def pack(tokenizer: Any, drawings: Sequence[Drawing], rng: np.random.Generator | None = None) -> Any:
    """The pictures' questions and answers; with `rng` at most QUESTIONS of each, in any order."""
    chosen = []
    for drawing in drawings:
        order = rng.permutation(len(drawing.questions))[:QUESTIONS] if rng else range(len(drawing.questions))
        chosen.append([(drawing.questions[i].question, drawing.questions[i].answer) for i in order])
    return pack_questions(tokenizer, chosen, lambda question: AFTER_IMAGE.format(question=question), "")


class Batches(Dataset[dict[str, Any]]):
    """An endless stream of batches, by index."""

    def __init__(
        self, tokenizer: Any, seed: int, tokens: int, rungs: Sequence[int] = RUNGS, style: Style = DEFAULT
    ) -> None:
        """
        Args:
            tokenizer: the model's.
            seed: of the drawings.
            tokens: visual tokens of a batch, about.
            rungs: budgets to learn, smallest first.
            style: of the drawings.
        """
        self.tokenizer, self.seed, self.tokens, self.rungs, self.style = tokenizer, seed, tokens, rungs, style
        self.progress = torch.zeros(1).share_memory_()
        """From 0 to 1; whoever trains sets it, and the processes that draw see it."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng, progress = np.random.default_rng((self.seed, index)), float(self.progress)
        crowded = rng.random() < max(_CROWDED[1], _CROWDED[0] * (1 - progress / 0.5))
        budget = self._budget(rng, progress, crowded)
        size = random_size(rng, self.style, self.rungs[-1])
        width, height = fitted(size, budget)
        grid = height // TOKEN_SIDE, width // TOKEN_SIDE
        count = int(np.clip(self.tokens // (grid[0] * grid[1]), *_BATCH))
        if crowded:  # drawn as it is shown: nothing is shrunk that nobody is asked about
            drawings = [self._crowd(rng, (width, height), grid, progress) for _ in range(count)]
        else:
            drawings = [self._boards(rng, size, grid, width / size[0], progress) for _ in range(count)]
        text = None if crowded else vars(pack(self.tokenizer, drawings, rng))
        return {
            "budget": budget,
            "pixels": np.stack([np.asarray(at_budget(drawing.image, budget)) for drawing in drawings]),
            "dense": np.stack([dense_labels(drawing.canvas) for drawing in drawings]),
            "text": text and {name: part.numpy() for name, part in text.items()},
        }

    def _budget(self, rng: np.random.Generator, progress: float, crowded: bool) -> int:
        """A rung; the dearest are twice as likely as the smallest, but the dearest not at first."""
        rungs = list(self.rungs) if progress >= _ALL_RUNGS_FROM else list(self.rungs[:-1] or self.rungs)
        if crowded:
            rungs = [rung for rung in rungs if rung >= _CROWD_BUDGET] or rungs[-1:]
        shares = np.linspace(1, 2, len(rungs))
        return int(rng.choice(rungs, p=shares / shares.sum()))

    def _crowd(
        self, rng: np.random.Generator, size: tuple[int, int], grid: tuple[int, int], progress: float
    ) -> Drawing:
        early = max(0.0, 1 - progress / 0.3)
        heights = np.array([_READABLE, _TALLEST]) * (1 - early) + np.array(_CROWD_HEIGHTS) * early
        return draw_crowd(rng, size, (heights[0], heights[1]), grid, self.style, 0.5 + 0.5 * early)

    def _boards(
        self,
        rng: np.random.Generator,
        size: tuple[int, int],
        grid: tuple[int, int],
        shrink: float,
        progress: float,
    ) -> Drawing:
        """Letters are mostly such as the budget shows legibly; at first with much to spare."""
        spare = 1 + 1.5 * max(0.0, 1 - progress / 0.4)
        least = _READABLE * spare / shrink if rng.random() < 0.9 else 0.0
        return draw_boards(rng, size, random_height(rng, size, self.style, least), grid, self.style)


def loader(batches: Batches, first: int, workers: int) -> DataLoader[dict[str, Any]]:
    """Batches from the first on, drawn ahead by `workers` processes.

    They come as arrays through pipes: tensors would need shared memory, of which containers have little.
    (`pin_memory` pins no arrays; its thread reads the pipes while the GPU computes.)
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, 10**9),
        num_workers=workers,
        collate_fn=_unchanged,  # type: ignore[arg-type]  # without batches it is given what is drawn
        prefetch_factor=3 if workers else None,
        pin_memory=bool(workers) and torch.cuda.is_available(),
    )


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
