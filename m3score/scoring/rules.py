"""The arithmetic of required tokens and complexity: from numbers per scale to one number.

Knows no model, image or table, and no ladder in particular: a ladder is its tokens per grid, coarsest first,
and every sequence here has one entry per scale in that order. The oracle is that of "Matryoshka Multimodal
Models" (arXiv 2405.17430, section 4.2); the complexity is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from m3score.common.errors import M3ScoreError


def _stays(values: Sequence[float]) -> list[float]:
    """At each scale, the least value there and at every finer scale."""
    return [min(values[k:]) for k in range(len(values))]


def _first(values: Sequence[float]) -> list[float]:
    """At each scale, the greatest value there and at every coarser scale."""
    return [max(values[: k + 1]) for k in range(len(values))]


RULES: dict[str, Callable[[Sequence[float]], list[float]]] = {"stays": _stays, "first": _first}
"""Each rule turns values over the ladder into values that never fall from coarse to fine.

"stays" (the default) asks a scale to hold together with every finer one; "first" (the paper's oracle) is
content with the first scale that holds. Required tokens and complexity go through the same function, so that
0/1 agreement gives ln(required) / ln(finest) under either rule.
"""


def check_choice(what: str, name: str, allowed: Iterable[str]) -> str:
    """`name` if it is allowed, else an M3ScoreError that lists what is."""
    if name not in allowed:
        raise M3ScoreError(f"unknown {what} {name!r}; allowed: {', '.join(allowed)}.")
    return name


def required_tokens(sufficient: Sequence[bool], ladder: Sequence[int], rule: str = "stays") -> int | None:
    """The fewest tokens per grid that are sufficient under `rule`, or None if no scale is.

    "stays": the smallest scale that is sufficient together with every finer one; "first": the smallest
    sufficient scale. Raises M3ScoreError for an unknown rule.
    """
    held = RULES[check_choice("rule", rule, RULES)]([float(value) for value in sufficient])
    return next((tokens for tokens, value in zip(ladder, held, strict=True) if value), None)


def complexity_of(agreement: Sequence[float], ladder: Sequence[int], rule: str = "stays") -> float:
    """Complexity in [0, 1] of one question from its agreement (or 0/1 correctness) at each scale.

    With t the ladder and A_k the agreement under the rule ("stays": the least over scales j >= k; "first":
    the greatest over j <= k),

        complexity = sum over k of (ln t_{k+1} - ln t_k) * (1 - A_k) / ln t_finest

    plus, for a ladder that does not begin at one token, ln t_1 / ln t_finest: its coarsest scale is not free.
    It is summed in the equal form sum over k of (A_k - A_{k-1}) * ln t_k / ln t_finest with A_finest = 1,
    which reads as the expected logarithm of the tokens needed, A_k being the chance that t_k are enough. In
    this form 0/1 agreement gives ln(required) / ln(finest) to the last bit, and never sufficient 1.0.

    Raises M3ScoreError for an unknown rule, a missing scale, or an agreement that is not a number.
    """
    if len(agreement) != len(ladder) or any(math.isnan(value) for value in agreement):
        raise M3ScoreError(f"agreement needs a number for each scale of {tuple(ladder)}, got {agreement}.")
    held = RULES[check_choice("rule", rule, RULES)]([min(1.0, max(0.0, value)) for value in agreement])
    if ladder[-1] == 1:  # a single scale of one token: no logarithm to divide by
        return 1.0 - held[-1]
    held[-1] = 1.0
    rises = [after - before for before, after in pairwise([0.0, *held])]
    logs = [math.log(tokens) for tokens in ladder]
    return min(1.0, sum(rise * log for rise, log in zip(rises, logs, strict=True)) / logs[-1])


def effective_tokens_of(complexity: float, ladder: Sequence[int]) -> float:
    """t_finest ** complexity, in tokens per grid; exactly a scale where rounding alone tells it from one."""
    tokens = float(ladder[-1]) ** complexity
    return next((float(scale) for scale in ladder if math.isclose(tokens, scale, rel_tol=1e-9)), tokens)


def is_monotone(sufficient: Sequence[bool]) -> bool:
    """False where some scale is sufficient and a finer one is not."""
    return all(finer or not coarser for coarser, finer in pairwise(sufficient))
