"""How much two answers agree, of the most probable tokens that a server reports for each position.

Agreement at a position is 1 - total variation distance. A server tells the top 20 or so: a token that only
one of two distributions reports counts as absent in the other, and what neither reports is pooled into one.
With all tokens reported this is the agreement that a model in this process gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Distribution = Mapping[str, float]
"""Probabilities of the reported tokens, by a name that is the same in all replies of a server."""


@dataclass(frozen=True)
class Position:
    """One token of an answer."""

    token: str
    logprob: float
    """In nats."""
    top: Distribution


def distribution(logprobs: Mapping[str, float]) -> Distribution:
    """Probabilities of log-probabilities in nats."""
    return {token: math.exp(min(0.0, value)) for token, value in logprobs.items()}


def position_agreement(one: Distribution, other: Distribution) -> float:
    """1 - total variation distance, in [0, 1]."""
    distance = math.fsum(abs(one.get(token, 0.0) - other.get(token, 0.0)) for token in {*one, *other})
    rest = abs(_unreported(one) - _unreported(other))
    return min(1.0, max(0.0, 1.0 - (distance + rest) / 2))


def shared_length(finest: Sequence[Position], other: Sequence[Position]) -> int:
    """How many leading tokens two answers share."""
    pairs = zip(finest, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a.token != b.token), min(len(finest), len(other)))


def prefix_agreement(finest: Sequence[Position], other: Sequence[Position]) -> float:
    """Mean agreement over the positions up to and with the first token that differs.

    Up to there both answers were given the same text, so that their distributions compare. Where one answer
    is the beginning of the other, and the server does not report the end token, the end counts as 0.
    """
    shared = shared_length(finest, other)
    known = [position_agreement(a.top, b.top) for a, b in zip(finest, other, strict=False)][: shared + 1]
    if shared == len(known) and len(finest) != len(other):
        known.append(0.0)
    return math.fsum(known) / len(known) if known else 1.0


def forced_agreement(finest: Sequence[Position], forced: Sequence[Distribution]) -> float:
    """Mean agreement over the positions of the finest answer, which the other budget was made to read.

    Text that is read may make other tokens than those that made the text: then over the positions so far.
    """
    known = [position_agreement(a.top, b) for a, b in zip(finest, forced, strict=False)]
    return math.fsum(known) / len(known) if known else 1.0


def _unreported(one: Distribution) -> float:
    return max(0.0, 1.0 - math.fsum(one.values()))
