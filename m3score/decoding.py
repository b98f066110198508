"""Greedy answers, one scale at a time or a whole ladder in one go.

Knows greedy decoding and its verification; knows nothing about files, pictures or prompts' wording, and
leaves the language model's cache and masks to trees.py. Three ideas:

- What questions on an image share, the text before the image and its visual tokens, is read once per scale.
- The finest scale decodes. Each coarser scale reads the finest answer in one forward pass (teacher forcing),
  which tells how far it agrees, and where its own greedy choice first differs. Up to there its answer is
  known; only from there on does it decode by itself. (This is the verification step of speculative decoding.)
- Coarse scales are short, so several go in one row, as branches of one tree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, Protocol

import torch

from m3score.answers import ScaleAnswer
from m3score.errors import M3ScoreError
from m3score.memory import MemoryGuard
from m3score.trees import Leaf, Node, PromptTrees

_LOGITS_AT_ONCE = 2**24
"""Logits compared at once when answers are verified: 64 MB in float32."""


class LanguageModel(Protocol):
    """What decoding needs of a model: text and pictures already made into embeddings."""

    hf_model: Any
    stop_ids: frozenset[int]


class LadderModel(LanguageModel, Protocol):
    """What a ladder of answers needs of a model."""

    @property
    def ladder(self) -> tuple[int, ...]: ...

    def encode(self, images: Any) -> Any: ...

    def prompt_parts(self, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]: ...

    def text_embeddings(self, ids: Sequence[int]) -> torch.Tensor: ...

    def image_embeddings(self, encoded: Any, tokens: int) -> torch.Tensor: ...

    def check_length(self, length: int) -> None: ...

    def visual_token_count(self, encoded: Any, tokens: int) -> int: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, eq=False)
class Decoded:
    """One greedy answer."""

    ids: list[int]
    """Token ids; the end token is the last if the answer came to an end."""
    logprob: float
    """Natural log of the answer's probability: summed over its tokens."""
    log_probs: torch.Tensor | None
    """float32 (len(ids), vocabulary): the distribution at each position, if it was asked for."""


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
        sequences: prompts' input embeddings, (length, hidden size) each.
        max_new_tokens: at most this many tokens each; fewer if the end token comes.
        keep_distributions: keep `Decoded.log_probs` too.
    """
    check_max_new_tokens(max_new_tokens)
    trees = PromptTrees(model.hf_model, [[Node(sequence)] for sequence in sequences])
    leaves = [(row, 0) for row in range(len(sequences))]
    return _decode(trees, leaves, model.stop_ids, max_new_tokens, keep_distributions)


@torch.no_grad()
def greedy_pairs(
    model: LadderModel,
    pairs: Sequence[Pair],
    tokens: int,
    max_new_tokens: int,
    *,
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Answer questions about images at one scale, in one batch; neighbours on the same image share it.

    Args:
        pairs: encoded images with a question each.
        tokens: visual tokens per grid.
        model, max_new_tokens, keep_distributions: as in `greedy`.
    """
    check_max_new_tokens(max_new_tokens)
    forest, leaves = _plant(model, pairs, [tokens])
    trees = PromptTrees(model.hf_model, forest)
    return _decode(trees, leaves, model.stop_ids, max_new_tokens, keep_distributions)


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Raises M3ScoreError unless there is room for at least one token."""
    if max_new_tokens < 1:
        raise M3ScoreError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")


def _decode(
    trees: PromptTrees,
    leaves: Sequence[Leaf],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    keep_distributions: bool,
) -> list[Decoded]:
    logits = trees.logits_at_ends(leaves)
    if max_new_tokens > 1:
        trees.begin(leaves)
    return _go_on(trees, logits, stop_ids, [max_new_tokens] * len(leaves), keep_distributions)


def _go_on(
    trees: PromptTrees,
    logits: torch.Tensor,
    stop_ids: frozenset[int],
    limits: Sequence[int],
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Decode the leaves that were begun greedily, from the logits (leaves, vocabulary) behind them."""
    ids: list[list[int]] = [[] for _ in limits]
    logprobs = [0.0] * len(limits)
    distributions: list[torch.Tensor] = []
    while True:
        log_probs = torch.log_softmax(logits, dim=-1)
        best, choice = log_probs.max(dim=-1)
        if keep_distributions:
            distributions.append(log_probs)
        running = [not _finished(row, limit, stop_ids) for row, limit in zip(ids, limits, strict=True)]
        for row, (token, logprob) in enumerate(zip(choice.tolist(), best.tolist(), strict=True)):
            if running[row]:
                _check_number(logprob)
                ids[row].append(token)
                logprobs[row] += logprob
        if all(_finished(row, limit, stop_ids) for row, limit in zip(ids, limits, strict=True)):
            break
        logits = trees.append(choice)  # finished ones run along; what they say is not recorded
    stacked = torch.stack(distributions, dim=1) if keep_distributions else None
    return [
        Decoded(row, logprob, None if stacked is None else stacked[index, : len(row)])
        for index, (row, logprob) in enumerate(zip(ids, logprobs, strict=True))
    ]


def _check_number(value: float) -> None:
    if math.isnan(value):
        raise M3ScoreError(
            "The model's outputs are not numbers: this dtype's range is too small for it; "
            "use dtype='bfloat16' or 'float32'."
        )


def _finished(ids: Sequence[int], limit: int, stop_ids: frozenset[int]) -> bool:
    return len(ids) >= limit or bool(ids and ids[-1] in stop_ids)


# ---- trees --------------------------------------------------------------------------------------------


class _Questions:
    """The prompts of questions about one image as a tree: text before the image, visual tokens, questions."""

    def __init__(self, model: LadderModel, encoded: Any) -> None:
        self.nodes: list[Node] = []
        self._model = model
        self._encoded = encoded
        self._known: dict[Any, int] = {}

    def ask(self, question: str, scales: Sequence[int], draft: Sequence[int] = ()) -> list[int]:
        """Add a question at some scales, a draft of its answer behind it; returns the new leaves."""
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


def _plant(
    model: LadderModel, pairs: Sequence[Pair], scales: Sequence[int], drafts: Sequence[Sequence[int]] = ()
) -> tuple[list[list[Node]], list[Leaf]]:
    """Prompts as trees: a row for each image, in it a branch for each scale, a leaf for each question.

    Args:
        pairs: encoded images with a question each; neighbours on the same image share a row.
        scales: visual tokens per grid.
        drafts: token ids to read behind each pair's prompt.

    Returns:
        The trees, and where the pairs' leaves are: those of the first pair at all scales, of the second, ...
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


# ---- verification -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Verdict:
    """What a coarser scale says about the finest scale's answer, and its own answer."""

    agreement: float
    ids: list[int]
    logprob: float
    shared: int
    """How many tokens it shares with the finest scale's answer, from the beginning."""


@torch.no_grad()
def _verify(
    model: LadderModel,
    pairs: Sequence[Pair],
    scales: Sequence[int],
    finest: Sequence[Decoded],
    max_new_tokens: int,
) -> list[tuple[_Verdict, ...]]:
    """Teacher-force the finest answers at coarser scales; decode from where greedy choices differ.

    Returns, per pair, one verdict per scale.
    """
    forest, leaves = _plant(model, pairs, scales, [answer.ids[:-1] for answer in finest])
    trees = PromptTrees(model.hf_model, forest, trunk_first=False)
    drafts = [answer for answer in finest for _ in scales]
    verdicts = list(_compare(trees, forest, leaves, drafts))
    _finish_own_answers(model, trees, forest, leaves, drafts, verdicts, max_new_tokens)
    return list(zip(*[iter(verdicts)] * len(scales), strict=True))


def _compare(
    trees: PromptTrees, forest: Sequence[Sequence[Node]], leaves: Sequence[Leaf], drafts: Sequence[Decoded]
) -> Iterator[_Verdict]:
    """What was read behind each leaf's prompt against the draft's own distributions."""
    known = [answer.log_probs for answer in drafts if answer.log_probs is not None]
    if len(known) < len(drafts):
        raise M3ScoreError("The finest answers were decoded without their distributions.")
    ends = list(accumulate(log_probs.numel() for log_probs in known))
    for _, group in groupby(range(len(leaves)), key=lambda n: (ends[n] - 1) // _LOGITS_AT_ONCE):
        chosen = list(group)
        lengths = [len(drafts[number].ids) for number in chosen]
        parts = []
        for number, length in zip(chosen, lengths, strict=True):
            row, node = leaves[number]
            stop = len(forest[row][node].embeddings)
            parts.append((row, node, stop - length, stop))
        log_probs = torch.log_softmax(trees.logits(parts), dim=-1)
        best, choice = (values.tolist() for values in log_probs.max(dim=-1))
        reference = torch.cat([known[number] for number in chosen])
        distance = ((log_probs.exp_() - reference.exp_()).abs_().sum(dim=-1) / 2).tolist()
        start = 0
        for number, length in zip(chosen, lengths, strict=True):
            part = slice(start, start + length)
            yield _verdict(drafts[number].ids, choice[part], best[part], distance[part])
            start += length


def _verdict(draft: list[int], own: list[int], logprobs: list[float], distance: list[float]) -> _Verdict:
    """Agreement, and the scale's own tokens up to and with the first that differs."""
    agreement = 1 - math.fsum(distance) / len(distance)
    _check_number(agreement)
    shared = next((i for i, (a, b) in enumerate(zip(own, draft, strict=True)) if a != b), len(own))
    ids = own[: shared + 1]
    return _Verdict(min(1.0, max(0.0, agreement)), ids, sum(logprobs[: len(ids)]), shared)


def _finish_own_answers(
    model: LadderModel,
    trees: PromptTrees,
    forest: Sequence[Sequence[Node]],
    leaves: Sequence[Leaf],
    drafts: Sequence[Decoded],
    verdicts: list[_Verdict],
    max_new_tokens: int,
) -> None:
    """Decode on, in place, where a scale's answer left the finest scale's and hasn't come to its end."""
    going = [
        number
        for number, verdict in enumerate(verdicts)
        if verdict.shared < len(verdict.ids) and not _finished(verdict.ids, max_new_tokens, model.stop_ids)
    ]
    if not going:
        return
    for number in going:  # what was read of the finest answer behind the shared tokens is forgotten
        row, node = leaves[number]
        prompt = len(forest[row][node].embeddings) - (len(drafts[number].ids) - 1)
        trees.forget((row, node), prompt + verdicts[number].shared)
    trees.begin([leaves[number] for number in going])
    last = torch.tensor([verdicts[number].ids[-1] for number in going], device=trees.device)
    limits = [max_new_tokens - len(verdicts[number].ids) for number in going]
    rest = _go_on(trees, trees.append(last), model.stop_ids, limits)
    for number, more in zip(going, rest, strict=True):
        begun = verdicts[number]
        verdicts[number] = replace(begun, ids=begun.ids + more.ids, logprob=begun.logprob + more.logprob)


# ---- the ladder ---------------------------------------------------------------------------------------


def answer_ladder(
    model: LadderModel,
    images: Sequence[Any],
    questions: Sequence[Sequence[str]],
    *,
    max_new_tokens: int = 32,
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
        batch_size: (image, question) pairs at once; smaller if memory runs out.
        guard: remembers between calls how much memory there is.

    Returns:
        Per image and question one ScaleAnswer per scale, coarsest first.
    """
    if len(images) != len(questions):
        raise M3ScoreError(f"There are {len(images)} images, but questions for {len(questions)}.")
    check_max_new_tokens(max_new_tokens)
    pairs = [(index, question) for index, asked in enumerate(questions) for question in asked]
    encoded: dict[int, Any] = {}

    def run(batch: Sequence[tuple[int, str]]) -> list[tuple[ScaleAnswer, ...]]:
        wanted = {index for index, _ in batch}
        for index in encoded.keys() - wanted:  # only what this batch asks about is held in memory
            del encoded[index]
        new = sorted(wanted - encoded.keys())
        encoded.update(zip(new, model.encode([images[index] for index in new]), strict=True))
        return _answer_pairs(model, [(encoded[index], question) for index, question in batch], max_new_tokens)

    answers = iter((guard or MemoryGuard()).map(run, pairs, batch_size))
    return [[next(answers) for _ in asked] for asked in questions]


def _answer_pairs(
    model: LadderModel, pairs: Sequence[Pair], max_new_tokens: int
) -> list[tuple[ScaleAnswer, ...]]:
    """One batch: the finest scale decodes, the others check."""
    *coarser, top = model.ladder
    finest = greedy_pairs(model, pairs, top, max_new_tokens, keep_distributions=True)
    checked = _verify(model, pairs, coarser, finest, max_new_tokens) if coarser else [() for _ in finest]
    return [
        tuple(
            _scale_answer(model, encoded, tokens, verdict)
            for tokens, verdict in zip(
                model.ladder, [*verdicts, _Verdict(1.0, own.ids, own.logprob, len(own.ids))], strict=True
            )
        )
        for (encoded, _), verdicts, own in zip(pairs, checked, finest, strict=True)
    ]


def _scale_answer(model: LadderModel, encoded: Any, tokens: int, verdict: _Verdict) -> ScaleAnswer:
    return ScaleAnswer(
        tokens=tokens,
        visual_tokens=model.visual_token_count(encoded, tokens),
        answer=model.decode(verdict.ids),
        agreement=verdict.agreement,
        logprob=verdict.logprob,
    )
