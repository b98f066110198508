"""Greedy answers, one scale at a time or a whole ladder in one go.

Knows the language model's forward pass, its cache and batches; knows nothing about files, pictures or
prompts' wording. Two ideas:

- Batches are padded on the *right*, with explicit positions and masks. A row's own keys then always stand
  before its padding, so no query is ever without a key, and a cached position can be forgotten by masking it.
- The finest scale decodes. Each coarser scale reads the finest answer in one forward pass (teacher forcing),
  which tells how far it agrees, and where its own greedy choice first differs. Up to there its answer is
  known; only from there on does it decode by itself. (This is the verification step of speculative decoding.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from m3score.answers import ScaleAnswer
from m3score.errors import M3ScoreError
from m3score.memory import MemoryGuard


class LanguageModel(Protocol):
    """What decoding needs of a model: text and pictures already made into embeddings."""

    hf_model: Any
    stop_ids: frozenset[int]


class LadderModel(LanguageModel, Protocol):
    """What a ladder of answers needs of a model."""

    @property
    def ladder(self) -> tuple[int, ...]: ...

    def encode(self, images: Any) -> Any: ...

    def prompt_embeddings(self, encoded: Any, question: str, tokens: int) -> torch.Tensor: ...

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


class _Batch:
    """Sequences in the language model, and what it remembers of them."""

    def __init__(self, hf_model: Any, sequences: Sequence[torch.Tensor]) -> None:
        """Read the sequences; `hidden` is then (batch, longest, hidden size), right-padded.

        Args:
            hf_model: transformers' LLaVA model.
            sequences: input embeddings, (length, hidden size) each.
        """
        from transformers import DynamicCache

        self._embed = hf_model.get_input_embeddings()
        self._head = hf_model.get_output_embeddings()
        self._decoder = hf_model.model.language_model
        self._cache = DynamicCache()
        device = sequences[0].device
        self.lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)
        places = torch.arange(padded.shape[1], device=device).expand(padded.shape[:2])
        self._set_mask(places)
        self.hidden = self._forward(padded, places)

    def _set_mask(self, places: torch.Tensor) -> None:
        self._mask = places < self.lengths[:, None]
        # Without padding no mask is given: attention is then plain causal, which is faster.
        self._has_padding = not bool(self._mask.all())

    def _forward(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self._decoder(
            inputs_embeds=embeddings,
            attention_mask=self._mask.long() if self._has_padding else None,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (..., vocabulary)"""
        return self._head(hidden).float()

    def logits_at_end(self) -> torch.Tensor:
        """float32 (batch, vocabulary): what comes after each sequence as it was read at first."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return self.logits(self.hidden[rows, self.lengths - 1])

    def append(self, ids: torch.Tensor) -> torch.Tensor:
        """Read one more token per row, (batch,); returns float32 (batch, vocabulary)."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        hidden = self._forward(self._embed(ids)[:, None], self.lengths[:, None])
        self.lengths = self.lengths + 1
        return self.logits(hidden[:, 0])

    def keep(self, rows: list[int], lengths: list[int]) -> None:
        """Go on with some rows only, as if they had been `lengths` long. (Only before any `append`.)"""
        index = torch.tensor(rows, device=self.lengths.device)
        self._cache.batch_select_indices(index)
        self.lengths = torch.tensor(lengths, device=index.device)
        self._set_mask(torch.arange(self._mask.shape[1], device=index.device)[None])


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
    batch = _Batch(model.hf_model, sequences)
    limits = [max_new_tokens] * len(sequences)
    return _go_on(batch, batch.logits_at_end(), model.stop_ids, limits, keep_distributions)


def check_max_new_tokens(max_new_tokens: int) -> None:
    """Raises M3ScoreError unless there is room for at least one token."""
    if max_new_tokens < 1:
        raise M3ScoreError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")


def _go_on(
    batch: _Batch,
    logits: torch.Tensor,
    stop_ids: frozenset[int],
    limits: Sequence[int],
    keep_distributions: bool = False,
) -> list[Decoded]:
    """Decode greedily, beginning with the given logits (batch, vocabulary)."""
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
        logits = batch.append(choice)  # finished rows run along; what they say is not recorded
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


@dataclass(frozen=True)
class _Verdict:
    """What a coarser scale says about the finest scale's answer, and its own answer."""

    agreement: float
    ids: list[int]
    logprob: float


@torch.no_grad()
def _verify(
    model: LadderModel, sequences: Sequence[torch.Tensor], finest: Sequence[Decoded], max_new_tokens: int
) -> list[_Verdict]:
    """Teacher-force the finest answers after other prompts; decode from where greedy choices differ."""
    embed = model.hf_model.get_input_embeddings()
    forced = [
        torch.cat([sequence, embed(torch.tensor(answer.ids[:-1], dtype=torch.long, device=sequence.device))])
        for sequence, answer in zip(sequences, finest, strict=True)
    ]
    batch = _Batch(model.hf_model, forced)
    verdicts, accepted = [], []
    for row, (sequence, answer) in enumerate(zip(sequences, finest, strict=True)):
        start = len(sequence) - 1
        log_probs = torch.log_softmax(
            batch.logits(batch.hidden[row, start : start + len(answer.ids)]), dim=-1
        )
        verdict, count = _compare(log_probs, answer)
        verdicts.append(verdict)
        accepted.append(count)
    _finish_own_answers(model, batch, sequences, verdicts, accepted, max_new_tokens)
    return verdicts


def _compare(log_probs: torch.Tensor, answer: Decoded) -> tuple[_Verdict, int]:
    """Agreement, and the scale's own tokens up to and with the first that differs; how many are shared."""
    if answer.log_probs is None:
        raise M3ScoreError("The finest answer was decoded without its distributions.")
    distance = (log_probs.exp() - answer.log_probs.exp()).abs().sum(dim=-1) / 2
    best, choice = log_probs.max(dim=-1)
    agreement, *logprobs = torch.cat([(1 - distance).mean()[None], best]).tolist()
    _check_number(agreement)
    own = choice.tolist()
    shared = next((i for i, (a, b) in enumerate(zip(own, answer.ids, strict=True)) if a != b), len(own))
    ids = own[: shared + 1]
    return _Verdict(min(1.0, max(0.0, agreement)), ids, sum(logprobs[: len(ids)])), shared


def _finish_own_answers(
    model: LadderModel,
    batch: _Batch,
    sequences: Sequence[torch.Tensor],
    verdicts: list[_Verdict],
    accepted: Sequence[int],
    max_new_tokens: int,
) -> None:
    """Decode on, in place, where a scale's answer left the finest scale's and hasn't come to its end."""
    rows = [
        row
        for row, verdict in enumerate(verdicts)
        if accepted[row] < len(verdict.ids) and not _finished(verdict.ids, max_new_tokens, model.stop_ids)
    ]
    if not rows:
        return
    # What was read of the finest answer behind the shared tokens is forgotten.
    batch.keep(rows, [len(sequences[row]) + accepted[row] for row in rows])
    last = torch.tensor([verdicts[row].ids[-1] for row in rows], device=batch.lengths.device)
    limits = [max_new_tokens - len(verdicts[row].ids) for row in rows]
    rest = _go_on(batch, batch.append(last), model.stop_ids, limits)
    for row, more in zip(rows, rest, strict=True):
        begun = verdicts[row]
        verdicts[row] = _Verdict(begun.agreement, begun.ids + more.ids, begun.logprob + more.logprob)


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
    model: LadderModel, pairs: Sequence[tuple[Any, str]], max_new_tokens: int
) -> list[tuple[ScaleAnswer, ...]]:
    """One batch: the finest scale decodes, the others check, coarsest last."""
    *coarser, top = model.ladder
    prompts = [model.prompt_embeddings(encoded, question, top) for encoded, question in pairs]
    finest = greedy(model, prompts, max_new_tokens, keep_distributions=True)
    per_scale = {top: [_Verdict(1.0, answer.ids, answer.logprob) for answer in finest]}
    for tokens in reversed(coarser):
        prompts = [model.prompt_embeddings(encoded, question, tokens) for encoded, question in pairs]
        per_scale[tokens] = _verify(model, prompts, finest, max_new_tokens)
    return [
        tuple(_scale_answer(model, encoded, tokens, per_scale[tokens][row]) for tokens in model.ladder)
        for row, (encoded, _) in enumerate(pairs)
    ]


def _scale_answer(model: LadderModel, encoded: Any, tokens: int, verdict: _Verdict) -> ScaleAnswer:
    return ScaleAnswer(
        tokens=tokens,
        visual_tokens=model.visual_token_count(encoded, tokens),
        answer=model.decode(verdict.ids),
        agreement=verdict.agreement,
        logprob=verdict.logprob,
    )
