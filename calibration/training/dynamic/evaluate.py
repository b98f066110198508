"""What the model answers on drawings that it has not seen, by budget and by height of letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from m3score.calibration.drawings.boards import DEFAULT, READING, Style, draw_boards
from m3score.calibration.drawings.drawing import Drawing
from m3score.calibration.training.dynamic.batches import pack, random_height, random_size
from m3score.calibration.training.dynamic.objective import TrainingModule
from m3score.calibration.training.dynamic.processing import RUNGS, at_budget

UNSEEN = 1_000_003
"""Seed of drawings that nothing is learnt from."""
_TOGETHER = 8
"""Pictures of one size."""
_HEIGHTS = (0.02, 0.04, 0.08)
"""Bounds of the table's columns: the letters' height as a share of the picture's mean side."""


def unseen(
    seed: int, index: int, count: int = 1, style: Style = DEFAULT, dearest: int = RUNGS[-1]
) -> list[Drawing]:
    """Pictures of one size, drawn from a stream of their own."""
    rng = np.random.default_rng((seed, index))
    size = random_size(rng, style, dearest)
    return [draw_boards(rng, size, random_height(rng, size, style), style=style) for _ in range(count)]


def accuracy(
    network: TrainingModule,
    tokenizer: Any,
    device: str,
    pictures: int,
    rungs: Sequence[int] = RUNGS,
    style: Style = DEFAULT,
) -> dict[str, Any]:
    """Share of right answers (exact match), by budget: of all questions, of reading by height, of counting.

    Args:
        network: in evaluation mode.
        tokenizer: the model's.
        device: where the network is.
        pictures: how many, in eights of one size.
        rungs: budgets, smallest first.
        style: of the drawings.
    """
    hits: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for index in range(max(1, pictures // _TOGETHER)):
        drawings = unseen(UNSEEN, index, min(pictures, _TOGETHER), style, rungs[-1])
        text = {name: part.to(device) for name, part in vars(pack(tokenizer, drawings)).items()}
        for budget in rungs:
            seen = [np.asarray(at_budget(drawing.image, budget)) for drawing in drawings]
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                right = network.right(torch.from_numpy(np.stack(seen)).to(device), text)
            for drawing, row in zip(drawings, right, strict=True):
                for question, hit in zip(drawing.questions, row, strict=True):
                    for name in ("all", _kind(drawing, question)):
                        hits[name, budget].append(hit)
    return {
        name: {str(budget): round(float(np.mean(hits[name, budget])), 4) for budget in rungs}
        | {"questions": len(hits[name, rungs[0]])}
        for name in sorted({name for name, _ in hits})
    }


def _kind(drawing: Drawing, question: Any) -> str:
    if question.task not in READING:
        return "counting"
    width, height = drawing.image.size
    share = question.detail["height"] / (width * height) ** 0.5
    number = int(np.searchsorted(_HEIGHTS, share))
    bounds = ("0", *map(str, _HEIGHTS), "up")
    return f"reading, letters {bounds[number]} to {bounds[number + 1]} of the side"
