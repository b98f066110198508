"""Answers at every scale of the ladder, together.

Knows batches of images and their questions. generation.py answers at the finest scale; verification.py checks
that answer at the coarser scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models.base import ScaleAnswer
from m3score.models.inference.batching import MemoryGuard
from m3score.models.inference.generation import LadderModel, Pair, check_max_new_tokens, greedy_pairs
from m3score.models.inference.verdicts import agreed, scale_answer
from m3score.models.inference.verification import verify


def answer_ladder(
    model: LadderModel,
    images: Sequence[Any],
    questions: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = 32,
    decode_coarse: bool = True,
    batch_size: int,
    guard: MemoryGuard | None = None,
) -> list[list[tuple[ScaleAnswer, ...]]]:
    """Answer each image's questions at every scale of the model's ladder.

    Each scale's answer is the one it would give alone. Agreement with the finest scale is computed too.

    Args:
        model: the model.
        images: pictures, or encoded images.
        questions: per image, its questions.
        max_new_tokens: at most this many tokens per answer.
        decode_coarse: decode coarser scales' answers where they differ from the finest scale's. If not, only
            the finest scale decodes; see ScaleAnswer.
        batch_size: (image, question) pairs at once; reduced if memory runs out.
        guard: remembers between calls which batch size fits into memory.

    Returns:
        Per image, per question: one ScaleAnswer per scale, coarsest first.
    """
    check_max_new_tokens(max_new_tokens)
    encoded: dict[int, Any] = {}

    def run(batch: Sequence[tuple[int, str]]) -> list[tuple[ScaleAnswer, ...]]:
        wanted = {index for index, _ in batch}
        for index in encoded.keys() - wanted:  # keep only the images that this batch asks about
            del encoded[index]
        new = sorted(wanted - encoded.keys())
        encoded.update(zip(new, model.encode([images[index] for index in new]), strict=True))
        asked = [(encoded[index], question) for index, question in batch]
        return _answer_pairs(model, asked, max_new_tokens, decode_coarse)

    return batched(
        run,
        images,
        questions,
        length=lambda index: model.most_visual_tokens(images[index]),
        batch_size=batch_size,
        guard=guard or MemoryGuard(),
    )


def batched(
    run: Callable[[Sequence[tuple[int, str]]], list[tuple[ScaleAnswer, ...]]],
    images: Sequence[Any],
    questions: Sequence[Sequence[str]],
    *,
    length: Callable[[int], int],
    batch_size: int,
    guard: MemoryGuard,
) -> list[list[tuple[ScaleAnswer, ...]]]:
    """Answer each image's questions in batches.

    Args:
        run: answers (index of an image, question) pairs.
        images: all images.
        questions: per image, its questions.
        length: how long the prompt of the image with that index is.
        batch_size, guard: as in answer_ladder.

    Returns:
        Per image, per question: what `run` answered.
    """
    if len(images) != len(questions):
        raise M3ScoreError(f"There are {len(images)} images, but questions for {len(questions)}.")
    # Similar lengths together: a batch is padded to its longest prompt.
    order = sorted(range(len(images)), key=length)
    pairs = [(index, question) for index in order for question in questions[index]]
    answered = iter(guard.map(run, pairs, batch_size))
    by_image = {index: [next(answered) for _ in questions[index]] for index in order}
    return [by_image[index] for index in range(len(images))]


def _answer_pairs(
    model: LadderModel, pairs: Sequence[Pair], max_new_tokens: int, decode_coarse: bool
) -> list[tuple[ScaleAnswer, ...]]:
    """One batch: the finest scale decodes, the others verify."""
    *coarser, top = model.ladder
    finest = greedy_pairs(model, pairs, top, max_new_tokens, keep_distributions=True)
    checked = verify(model, pairs, coarser, finest, max_new_tokens, decode_coarse=decode_coarse)
    for verdicts, own in zip(checked, finest, strict=True):
        verdicts.append(agreed(own))
    return [
        tuple(
            scale_answer(
                verdict,
                tokens,
                model.visual_token_count(encoded, tokens),
                model.decode,
                model.stop_ids,
                known=decode_coarse or not verdict.differs,
            )
            for tokens, verdict in zip(model.ladder, verdicts, strict=True)
        )
        for (encoded, _), verdicts in zip(pairs, checked, strict=True)
    ]
