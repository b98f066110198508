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

from m3score.calibration.drawings.boards import LARGEST, SMALLEST, dense_labels, draw_boards, draw_crowd
from m3score.calibration.drawings.drawing import Drawing
from m3score.calibration.training.dynamic.processing import (
    AFTER_IMAGE,
    RUNGS,
    TOKEN_SIDE,
    at_budget,
    fitted,
)
from m3score.calibration.training.tiny.objective import pack_questions

SIDES = (280, 1000)
"""Shortest and longest side of a picture, in pixels."""
SHARES = (0.15, 0.25, 0.3, 0.3)
"""Probability of each rung as a batch's budget, if all are learnt."""
QUESTIONS = 6
"""Most questions about a picture in one batch."""
_READABLE = 6.0
"""Letters so high, in pixels of the shrunk picture, can be read."""
_BATCH = (8, 64)
_CROWDED = (0.7, 0.15)
"""Share of batches of pictures full of words, at the beginning and from half of the training on."""
_TALLEST = 60
"""Letters in these are up to so high, in pixels of the shrunk picture."""
_ALL_RUNGS_FROM = 0.15
"""Progress from which on the dearest rung is learnt too."""


def random_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height) in pixels: at most the dearest rung's area, at most 1.8 times as wide as high."""
    while True:
        width, height = (round(float(side)) for side in np.exp(rng.uniform(*np.log(SIDES), 2)))
        if max(width, height) <= 1.8 * min(width, height) and width * height <= RUNGS[-1] * TOKEN_SIDE**2:
            return width, height


def random_height(rng: np.random.Generator, size: tuple[int, int], least: float = SMALLEST) -> int:
    """Height of letters in pixels: log-uniform from `least` to LARGEST of the longer side."""
    most = LARGEST * max(size)
    return round(float(np.exp(rng.uniform(math.log(min(max(least, SMALLEST), most)), math.log(most)))))


def _learnt_height(rng: np.random.Generator, size: tuple[int, int], budget: int, progress: float) -> int:
    """Mostly what the budget shows legibly; at first with much to spare."""
    if rng.random() < 0.1:
        return random_height(rng, size)
    shrink = fitted(size, budget)[0] / size[0]
    spare = 1 + 1.5 * max(0.0, 1 - progress / 0.4)
    return random_height(rng, size, _READABLE * spare / shrink)


def _crowd_heights(progress: float) -> tuple[float, float]:
    """Bounds of the letters' height in pictures full of words: about a token's side at first."""
    early = max(0.0, 1 - progress / 0.3)
    return _READABLE + 12 * early, _TALLEST - 26 * early


def pack(tokenizer: Any, drawings: Sequence[Drawing], rng: np.random.Generator | None = None) -> Any:
    """The pictures' questions and answers; with `rng` at most QUESTIONS of each, in any order."""
    chosen = []
    for drawing in drawings:
        order = rng.permutation(len(drawing.questions))[:QUESTIONS] if rng else range(len(drawing.questions))
        chosen.append([(drawing.questions[i].question, drawing.questions[i].answer) for i in order])
    return pack_questions(tokenizer, chosen, lambda question: AFTER_IMAGE.format(question=question), "")


class Batches(Dataset[dict[str, Any]]):
    """An endless stream of batches, by index."""

    def __init__(self, tokenizer: Any, seed: int, tokens: int, largest: int = RUNGS[-1]) -> None:
        """
        Args:
            tokenizer: the model's.
            seed: of the drawings.
            tokens: visual tokens of a batch, about.
            largest: budgets above this one are not learnt.
        """
        self.tokenizer, self.seed, self.tokens, self.largest = tokenizer, seed, tokens, largest
        self.progress = torch.zeros(1).share_memory_()
        """From 0 to 1; whoever trains sets it, and the processes that draw see it."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng, progress = np.random.default_rng((self.seed, index)), float(self.progress)
        crowded = rng.random() < max(_CROWDED[1], _CROWDED[0] * (1 - progress / 0.5))
        late = progress >= _ALL_RUNGS_FROM
        fit = [rung for rung in RUNGS if rung <= self.largest and (late or rung < RUNGS[-1])]
        rungs = fit[1:] if crowded and len(fit) > 1 else fit  # the smallest has room for few words
        shares = np.array([SHARES[RUNGS.index(rung)] for rung in rungs])
        budget = int(rng.choice(rungs, p=shares / shares.sum()))
        size = random_size(rng)
        width, height = shown = fitted(size, budget)
        grid = height // TOKEN_SIDE, width // TOKEN_SIDE
        count = int(np.clip(self.tokens // (grid[0] * grid[1]), *_BATCH))
        if crowded:  # drawn as it is shown: nothing is shrunk that nobody is asked about
            drawings = [draw_crowd(rng, shown, _crowd_heights(progress), grid) for _ in range(count)]
        else:
            heights = [_learnt_height(rng, size, budget, progress) for _ in range(count)]
            drawings = [draw_boards(rng, size, height, grid) for height in heights]
        text = None if crowded else vars(pack(self.tokenizer, drawings, rng))
        return {
            "budget": budget,
            "pixels": np.stack([np.asarray(at_budget(drawing.image, budget)) for drawing in drawings]),
            "dense": np.stack([dense_labels(drawing.canvas) for drawing in drawings]),
            "text": text and {name: part.numpy() for name, part in text.items()},
        }


def loader(batches: Batches, first: int, workers: int) -> DataLoader[dict[str, Any]]:
    """Batches from the first on, drawn ahead by `workers` processes.

    They come as arrays through pipes: tensors would need shared memory, of which containers have little.
    (`pin_memory` pins no arrays; its thread reads the pipes while the GPU computes.)
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, 10**9),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_unchanged,
        prefetch_factor=3 if workers else None,
        pin_memory=bool(workers) and torch.cuda.is_available(),
    )


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
