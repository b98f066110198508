"""Greedy decoding of prompts, and of questions about images at a scale.

Knows greedy decoding, and how prompts become trees. Knows nothing about files, pictures or the wording of
prompts; the language model's cache and masks are the business of prompt_tree.py.

Questions about the same image share the text before the image and its visual tokens, which are read once per
scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch

from m3score.common.errors import M3ScoreError
from m3score.common.profiling import stage
from m3score.models.inference.prompt_tree import Leaf, Node, PromptTrees


class LanguageModel(Protocol):
    """What decoding needs of a model, once text and images are embeddings."""

    hf_model: Any
    stop_ids: frozenset[int]


class LadderModel(LanguageModel, Protocol):
    """What answering at every scale needs of a model."""

    @property
    def ladder(self) -> tuple[int, ...]: ...

    def encode(self, images: Any) -> Any: ...

    def prompt_parts(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]: ...

    def text_embeddings(self, ids: Sequence[int]) -> torch.Tensor: ...

    def image_embeddings(self, encoded: Any, tokens: int) -> torch.Tensor: ...

    def check_length(self, length: int) -> None: ...

    def most_visual_tokens(self, image: Any) -> int: ...

    def visual_token_count(self, encoded: Any, tokens: int) -> int: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, eq=False)
class Decoded:
    """One greedy answer."""

    ids: list[int]
    """Token ids; the last one is the end token, unless the answer was cut off."""
    logprob: float
    """Log-probability (nats) of the answer, summed over its tokens."""
    log_probs: torch.Tensor | None
    """float32 (len(ids), vocabulary): log-probabilities at each position; None if not asked for."""


Pair = tuple[Any, str]
"""(encoded image, question)"""


@torch.no_grad()
def greedy(
    model: LanguageModel,
    sequences: Sequence[torch.Tensor],
    max_new_tokens: int,
    *,
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Answer each prompt greedily, all in one batch.

    Args:
        model: the model.
        sequences: the prompts' input embeddings, (length, hidden) each.
        max_new_tokens: at most this many tokens each; fewer if the end token comes.
        keep_distributions: fill in `Decoded.log_probs`.
    """
    check_max_new_tokens(max_new_tokens)
    trees = PromptTrees(model.hf_model, [[Node(sequence)] for sequence in sequences])
    leaves = [(row, 0) for row in range(len(sequences))]
    return decode(trees, leaves, model.stop_ids, max_new_tokens, keep_distributions)


@torch.no_grad()
def greedy_pairs(
    model: LadderModel,
    pairs: Sequence[Pair],
    tokens: int,
    max_new_tokens: int,
    *,
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Answer questions about images at one scale, in one batch. Adjacent pairs share an equal image.

    Args:
        pairs: encoded images with a question each.
        tokens: visual tokens per grid.
        model, max_new_tokens, keep_distributions: as in `greedy`.
    """
    check_max_new_tokens(max_new_tokens)
    with stage("prefill"):
        forest, leaves = build_prompt_forest(model, pairs, [tokens])
        trees = PromptTrees(model.hf_model, forest)
    return decode(trees, leaves, model.stop_ids, max_new_tokens, keep_distributions)


def check_max_new_tokens(max_new_tokens: int) -> None:
    """M3ScoreError unless at least one token may be generated."""
    if max_new_tokens < 1:
        raise M3ScoreError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")


def decode(
    trees: PromptTrees,
    leaves: Sequence[Leaf],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Decode all leaves of trees that have just been read; the arguments are those of `greedy`."""
    with stage("decode"):
        logits = trees.logits_at_ends(leaves)
        if max_new_tokens > 1:
            trees.start(leaves)  # the first token is known from the prompt alone
        return continue_decoding(trees, logits, stop_ids, [max_new_tokens] * len(leaves), keep_distributions)


def continue_decoding(
    trees: PromptTrees,
    logits: torch.Tensor,
    stop_ids: frozenset[int],
    limits: Sequence[int],
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Decode greedily from leaves that `trees.start` has prepared.

    Args:
        trees: the prompts.
        logits: (leaves, vocabulary) after each leaf.
        stop_ids: end tokens.
        limits: per leaf, the most tokens.
        keep_distributions: fill in `Decoded.log_probs`.
    """
    ids: list[list[int]] = [[] for _ in limits]
    logprobs = [0.0] * len(limits)
    distributions: list[torch.Tensor] = []
    lines: list[list[int]] = [[] for _ in limits]  # per answer, its rows of all distributions
    held = 0
    fed = list(range(len(limits)))
    while True:
        log_probs = torch.log_softmax(logits, dim=-1)
        best, choice = log_probs.max(dim=-1)
        if keep_distributions:
            distributions.append(log_probs)
        running = []
        for line, (token, logprob) in enumerate(zip(choice.tolist(), best.tolist(), strict=True)):
            number = fed[line]
            if is_finished(ids[number], limits[number], stop_ids):
                continue  # it has ended already, and is only computed along
            check_number(logprob)
            ids[number].append(token)
            logprobs[number] += logprob
            lines[number].append(held + line)
            if not is_finished(ids[number], limits[number], stop_ids):
                running.append(line)
        held += len(fed)
        if not running:
            break
        if len(running) <= len(fed) // 2:  # not sooner: selecting copies the cache
            trees.select(running)
            fed = [fed[line] for line in running]
            choice = choice[torch.tensor(running, device=choice.device)]
        logits = trees.append(choice)
    known = torch.cat(distributions) if keep_distributions else None
    return [
        Decoded(own, logprob, None if known is None else known[torch.tensor(at, device=known.device)])
        for own, logprob, at in zip(ids, logprobs, lines, strict=True)
    ]


def check_number(value: float) -> None:
    """M3ScoreError for NaN."""
    if math.isnan(value):
        raise M3ScoreError(
            "The model's outputs are not numbers: this dtype's range is too small for it; "
            "use dtype='bfloat16' or 'float32'."
        )


def is_finished(ids: Sequence[int], limit: int, stop_ids: frozenset[int]) -> bool:
    """Whether an answer is complete, or as long as allowed."""
    return len(ids) >= limit or bool(ids and ids[-1] in stop_ids)


# ---- prompt trees -------------------------------------------------------------------------------------


class _Questions:
    """Builds the tree of one image's prompts: text before the image, visual tokens, questions."""

    def __init__(self, model: LadderModel, encoded: Any) -> None:
        self.nodes: list[Node] = []
        self._model = model
        self._encoded = encoded
        self._known: dict[Any, int] = {}

    def ask(self, question: str, scales: Sequence[int], draft: Sequence[int] = ()) -> list[int]:
        """Add a question at some scales, followed by a draft of its answer; returns the new leaves."""
        head, tail = self._model.prompt_parts(question)
        text = self._model.text_embeddings([*tail, *draft])
        leaves = []
        for tokens in scales:
            above = self._visual(head, tokens)
            self._model.check_length(len(head) + len(self.nodes[above].embeddings) + len(tail))
            leaves.append(self._add(Node(text, above)))
        return leaves

    def _visual(self, head: tuple[int, ...], tokens: int) -> int:
        if (head, tokens) not in self._known:
            if head not in self._known:
                self._known[head] = self._add(Node(self._model.text_embeddings(head)))
            visual = self._model.image_embeddings(self._encoded, tokens)
            self._known[head, tokens] = self._add(Node(visual, self._known[head]))
        return self._known[head, tokens]

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


def build_prompt_forest(
    model: LadderModel, pairs: Sequence[Pair], scales: Sequence[int], drafts: Sequence[Sequence[int]] = ()
) -> tuple[list[list[Node]], list[Leaf]]:
    """Build prompts as trees: a row per image, in it a branch per scale, on that a leaf per question.

    Args:
        model: makes the embeddings.
        pairs: encoded images with a question each; adjacent pairs with one image share a row.
        scales: visual tokens per grid.
        drafts: per pair, token ids to append to the prompt.

    Returns:
        The trees, and the pairs' leaves: of the first pair at all scales, then of the second, ...
    """
    rows: list[list[Node]] = []
    leaves: list[Leaf] = []
    for _, group in groupby(range(len(pairs)), key=lambda number: id(pairs[number][0])):
        tree: _Questions | None = None
        for number in group:
            encoded, question = pairs[number]
            tree = tree or _Questions(model, encoded)
            added = tree.ask(question, scales, drafts[number] if drafts else ())
            leaves.extend((len(rows), node) for node in added)
        if tree:
            rows.append(tree.nodes)
    return rows, leaves
