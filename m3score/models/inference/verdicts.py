"""What a scale's distributions over the finest scale's answer say: agreement, and its own answer so far.

Knows numbers and tokens; knows nothing about how a model came to them. Each coarser scale reads the finest
answer in one forward pass (teacher forcing), whatever kind of model it belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

from m3score.common.errors import M3ScoreError
from m3score.models.base import ScaleAnswer
from m3score.models.inference.generation import Decoded, check_number

_LOGITS_AT_ONCE = 2**24
"""Logits compared at once: 64 MB in float32."""


@dataclass(frozen=True)
class Verdict:
    """A scale's own answer, and its agreement with the finest scale's answer."""

    agreement: float
    """Mean of 1 - total variation distance over the finest answer's positions, in [0, 1]."""
    ids: list[int]
    """The scale's own answer; up to and with the first token that differs, until it is decoded further."""
    logprob: float
    """Log-probability (nats) of these ids."""
    shared: int
    """How many leading tokens it shares with the finest scale's answer."""

    @property
    def differs(self) -> bool:
        """Whether the scale's own answer differs from the finest scale's."""
        return self.shared < len(self.ids)


def agreed(finest: Decoded) -> Verdict:
    """The verdict on the finest scale itself, and on every scale that is shown the same."""
    return Verdict(1.0, finest.ids, finest.logprob, len(finest.ids))


def groups_to_judge(drafts: Sequence[Decoded]) -> Iterator[list[int]]:
    """Indices of drafts, in order, in groups that are not too large to be judged at once."""
    ends = list(accumulate(_known(draft).numel() for draft in drafts))
    for _, group in groupby(range(len(drafts)), key=lambda n: (ends[n] - 1) // _LOGITS_AT_ONCE):
        yield list(group)


@torch.no_grad()
def judge(logits: torch.Tensor, drafts: Sequence[Decoded]) -> Iterator[Verdict]:
    """Compare a scale's distributions over the finest scale's answers with the finest scale's own.

    Args:
        logits: float32 (positions, vocabulary): of the first draft's tokens, then of the second's, ...
        drafts: the finest scale's answers, with their distributions.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    best, choice = (values.tolist() for values in log_probs.max(dim=-1))
    reference = torch.cat([_known(draft) for draft in drafts])
    distance = ((log_probs.exp_() - reference.exp_()).abs_().sum(dim=-1) / 2).tolist()
    start = 0
    for draft in drafts:
        part = slice(start, start + len(draft.ids))
        yield _verdict(draft.ids, choice[part], best[part], distance[part])
        start = part.stop


def scale_answer(
    verdict: Verdict,
    tokens: int,
    visual_tokens: int,
    decode: Callable[[Sequence[int]], str],
    stop_ids: frozenset[int],
    *,
    known: bool,
) -> ScaleAnswer:
    """What a scale answered.

    Args:
        verdict: on the scale.
        tokens, visual_tokens: as in ScaleAnswer.
        decode: token ids -> text.
        stop_ids: end tokens.
        known: whether the verdict's answer is complete.
    """
    return ScaleAnswer(
        tokens=tokens,
        visual_tokens=visual_tokens,
        answer=decode(verdict.ids) if known else None,
        agreement=verdict.agreement,
        logprob=verdict.logprob if known else math.nan,
        cut=known and verdict.ids[-1] not in stop_ids,
    )


def _known(draft: Decoded) -> torch.Tensor:
    if draft.log_probs is None:
        raise M3ScoreError("The finest answers were decoded without their distributions.")
    return draft.log_probs


def _verdict(draft: list[int], own: list[int], logprobs: list[float], distance: list[float]) -> Verdict:
    """The verdict, with the scale's own tokens up to and with the first that differs."""
    agreement = 1 - math.fsum(distance) / len(distance)
    check_number(agreement)
    shared = next((i for i, (a, b) in enumerate(zip(own, draft, strict=True)) if a != b), len(own))
    ids = own[: shared + 1]
    return Verdict(min(1.0, max(0.0, agreement)), ids, sum(logprobs[: len(ids)]), shared)
