"""Answers at every scale of the ladder, in one go.

Knows batches of images and their questions; generation.py answers at the finest scale, verification.py tells
what the coarser ones make of that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models.base import ScaleAnswer
from m3score.models.inference.batching import MemoryGuard
from m3score.models.inference.generation import LadderModel, Pair, check_max_new_tokens, greedy_pairs
from m3score.models.inference.verification import Verdict, verify


def answer_ladder(
    model: LadderModel,
    images: Sequence[Any],
    questions: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = 32,
    answers: bool = True,
    batch_size: int,
    guard: MemoryGuard | None = None,
) -> list[list[tuple[ScaleAnswer, ...]]]:
    """Answer each image's questions at every scale of the model's ladder.

    The answers are those that each scale gives by itself; agreement with the finest scale comes along.

    Args:
        model: the model.
        images: pictures, or encoded images.
        questions: per image, its questions.
        max_new_tokens: at most this many tokens per answer.
        answers: whether coarser scales' answers are wanted where they differ from the finest scale's. Without
            them nothing but the finest scale decodes; see ScaleAnswer.
        batch_size: (image, question) pairs at once; smaller if memory runs out.
        guard: remembers between calls how much memory there is.

    Returns:
        Per image and question one ScaleAnswer per scale, coarsest first.
    """
    if len(images) != len(questions):
        raise M3ScoreError(f"There are {len(images)} images, but questions for {len(questions)}.")
    check_max_new_tokens(max_new_tokens)
    # Alike lengths together: a batch is as long as its longest.
    order = sorted(range(len(images)), key=lambda index: model.most_visual_tokens(images[index]))
    pairs = [(index, question) for index in order for question in questions[index]]
    encoded: dict[int, Any] = {}

    def run(batch: Sequence[tuple[int, str]]) -> list[tuple[ScaleAnswer, ...]]:
        wanted = {index for index, _ in batch}
        for index in encoded.keys() - wanted:  # only what this batch asks about is held in memory
            del encoded[index]
        new = sorted(wanted - encoded.keys())
        encoded.update(zip(new, model.encode([images[index] for index in new]), strict=True))
        asked = [(encoded[index], question) for index, question in batch]
        return _answer_pairs(model, asked, max_new_tokens, answers)

    answered = iter((guard or MemoryGuard()).map(run, pairs, batch_size))
    by_image = {index: [next(answered) for _ in questions[index]] for index in order}
    return [by_image[index] for index in range(len(images))]


def _answer_pairs(
    model: LadderModel, pairs: Sequence[Pair], max_new_tokens: int, answers: bool
) -> list[tuple[ScaleAnswer, ...]]:
    """One batch: the finest scale decodes, the others check."""
    *coarser, top = model.ladder
    finest = greedy_pairs(model, pairs, top, max_new_tokens, keep_distributions=True)
    checked = verify(model, pairs, coarser, finest, max_new_tokens, answers=answers)
    for verdicts, own in zip(checked, finest, strict=True):
        verdicts.append(Verdict(1.0, own.ids, own.logprob, len(own.ids)))
    return [
        tuple(
            _scale_answer(model, encoded, tokens, verdict, known=answers or not verdict.differs)
            for tokens, verdict in zip(model.ladder, verdicts, strict=True)
        )
        for (encoded, _), verdicts in zip(pairs, checked, strict=True)
    ]


def _scale_answer(
    model: LadderModel, encoded: Any, tokens: int, verdict: Verdict, *, known: bool
) -> ScaleAnswer:
    return ScaleAnswer(
        tokens=tokens,
        visual_tokens=model.visual_token_count(encoded, tokens),
        answer=model.decode(verdict.ids) if known else None,
        agreement=verdict.agreement,
        logprob=verdict.logprob if known else math.nan,
        cut=known and verdict.ids[-1] not in model.stop_ids,
    )
