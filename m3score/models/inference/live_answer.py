"""Streaming of an answer: the text so far, after every token.

Decodes one prompt step by step; generation.py decodes many at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from m3score.models.inference.generation import (
    LadderModel,
    build_prompt_forest,
    check_max_new_tokens,
    is_finished,
)
from m3score.models.inference.prompt_tree import PromptTrees


def stream_answer(
    model: LadderModel, image: Any, question: str, tokens: int, *, max_new_tokens: int = 32
) -> Iterator[str]:
    """Answer a question greedily, and yield the text so far after every token.

    Args:
        model: the model.
        image: an image, encoded or not.
        question: what to ask.
        tokens: visual tokens per grid.
        max_new_tokens: at most this many tokens.

    Yields:
        The answer so far, stripped. The last one equals `M3Model.answer`.
    """
    check_max_new_tokens(max_new_tokens)
    encoded = model.encode(image)
    with torch.no_grad():
        forest, leaves = build_prompt_forest(model, [(encoded, question)], [tokens])
        trees = PromptTrees(model.hf_model, forest)
        logits = trees.logits_at_ends(leaves)
        trees.start(leaves)
    ids: list[int] = []
    while True:
        choice = logits.argmax(dim=-1)
        ids.append(int(choice))
        yield model.decode(ids)
        if is_finished(ids, max_new_tokens, model.stop_ids):
            return
        with torch.no_grad():  # not around the yield, or it would apply to the caller too
            logits = trees.append(choice)
