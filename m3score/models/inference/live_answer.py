"""An answer while it is being made: text that grows token by token.

Knows how one prompt is decoded step by step; generation.py does the same for many at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from m3score.models.inference.generation import LadderModel, check_max_new_tokens, finished, plant
from m3score.models.inference.prompt_tree import PromptTrees


def stream_answer(
    model: LadderModel, image: Any, question: str, tokens: int, *, max_new_tokens: int = 32
) -> Iterator[str]:
    """Answer a question greedily, and say after every token what there is so far.

    Args:
        model: the model.
        image: an image, encoded or not.
        question: what to ask.
        tokens: visual tokens per grid.
        max_new_tokens: at most this many tokens.

    Yields:
        The answer so far, stripped; the last one is what `M3Model.answer` says.
    """
    check_max_new_tokens(max_new_tokens)
    encoded = model.encode(image)
    with torch.no_grad():
        forest, leaves = plant(model, [(encoded, question)], [tokens])
        trees = PromptTrees(model.hf_model, forest)
        logits = trees.logits_at_ends(leaves)
        trees.begin(leaves)
    ids: list[int] = []
    while True:
        choice = logits.argmax(dim=-1)
        ids.append(int(choice))
        yield model.decode(ids)
        if finished(ids, max_new_tokens, model.stop_ids):
            return
        with torch.no_grad():  # not around the yield: it would hold for the caller too
            logits = trees.append(choice)
