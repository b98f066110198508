"""Accuracy kept against mean visual tokens: routers, fixed scales, random mixing of scales, and the ceiling.

Knows no models, images, files or regressors: a router is a number per question, and `sufficient`, bool (n,
scales) from the coarsest scale on, says at which scales a question is answered. Where scales are budgets,
`spent`, (n, scales), says how many visual tokens each question's image really has; otherwise a scale costs
its tokens per grid.

Random mixing answers each question at a scale drawn by lot. Every mean number of tokens between two scales is
such a mix, and the best mixes lie on the upper concave hull of the fixed scales: that hull is what a router
has to beat, not the fixed scales alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3score.routing.promises.certify import route_levels
from m3score.routing.regression.prices import levels
from m3score.scoring.rules import required_tokens

POINTS = 400
"""Margins that a router's frontier is made of: at quantiles of where its routes change."""


@dataclass(frozen=True)
class Curve:
    """Accuracy at every mean number of tokens: straight between its points, a mix of the two neighbours."""

    tokens: np.ndarray
    """(k,) mean visual tokens per grid, ascending."""
    accuracy: np.ndarray
    """(k,) share of the questions that are answered."""

    def at(self, tokens: float | np.ndarray) -> np.ndarray:
        """Accuracy at mean token numbers; beyond its ends that of the ends."""
        return np.interp(tokens, self.tokens, self.accuracy)

    def tokens_for(self, accuracy: float) -> float:
        """The fewest mean tokens with at least this accuracy; NaN if the curve never gets there."""
        reached = np.flatnonzero(self.accuracy >= accuracy - 1e-12)
        if not len(reached):
            return math.nan
        i = int(reached[0])
        if i == 0:
            return float(self.tokens[0])
        (x0, x1), (y0, y1) = self.tokens[i - 1 : i + 1], self.accuracy[i - 1 : i + 1]
        return float(x0 + (x1 - x0) * min(1.0, max(0.0, (accuracy - y0) / (y1 - y0))))

    def log_mean(self, coarsest: float, finest: float) -> float:
        """Mean accuracy over the logarithm of the tokens between two scales: a frontier as one number."""
        if finest <= coarsest:
            return float(self.at(finest))
        logs = np.linspace(math.log(coarsest), math.log(finest), 257)
        return float(np.mean(self.at(np.exp(logs))))


def upper_hull(tokens: Sequence[float] | np.ndarray, accuracy: Sequence[float] | np.ndarray) -> Curve:
    """The best that mixing points at random gives for at most so many tokens: concave, never falling."""
    hull: list[tuple[float, float]] = []
    for point in sorted(zip(map(float, tokens), map(float, accuracy), strict=True)):
        if hull and point[1] <= hull[-1][1]:
            continue  # dearer and no better: spend less instead
        if hull and point[0] == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return Curve(np.array([x for x, _ in hull]), np.array([y for _, y in hull]))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def fixed_scales(sufficient: np.ndarray, ladder: Sequence[int], spent: np.ndarray | None = None) -> Curve:
    """Every question at one scale. `sufficient` is (n, scales), coarsest first."""
    tokens = np.array(ladder, float) if spent is None else np.asarray(spent, float).mean(axis=0)
    return Curve(tokens, np.asarray(sufficient, float).mean(axis=0))


def mixing(sufficient: np.ndarray, ladder: Sequence[int], spent: np.ndarray | None = None) -> Curve:
    """The best random mixes of fixed scales."""
    fixed = fixed_scales(sufficient, ladder, spent)
    return upper_hull(fixed.tokens, fixed.accuracy)


def ceiling(sufficient: np.ndarray, ladder: Sequence[int], spent: np.ndarray | None = None) -> Curve:
    """What no choice of scales can beat: the paper's oracle (arXiv 2405.17430, section 4.2), at every price.

    It knows at which scales each question is answered, whatever finer ones do (the rule "first"), and spends
    tokens where they cost least: all questions begin at the coarsest scale and are raised to the first scale
    that answers them, the cheapest first. Those that no scale answers stay: they are lost at any price.
    """
    return _raised(sufficient, ladder, "first", spent)


def stays(sufficient: np.ndarray, ladder: Sequence[int], spent: np.ndarray | None = None) -> Curve:
    """Who knows the *required tokens* of every question: the fewest that suffice with every finer scale.

    What a perfect predictor of them would reach. No ceiling: a coarser scale may be right by luck.
    """
    return _raised(sufficient, ladder, "stays", spent)


def _raised(sufficient: np.ndarray, ladder: Sequence[int], rule: str, spent: np.ndarray | None) -> Curve:
    """From the coarsest scale to that which the rule names, the cheapest questions first."""
    kinds, which, counts = np.unique(
        np.asarray(sufficient, bool), axis=0, return_inverse=True, return_counts=True
    )
    needed = np.array([required_tokens(list(kind), ladder, rule) or ladder[0] for kind in kinds])
    level = np.searchsorted(ladder, needed)
    gain = kinds[np.arange(len(kinds)), level].astype(float) - kinds[:, 0]
    if spent is None:
        least, more = float(ladder[0]), np.asarray(needed - ladder[0], float)
    else:  # questions of a kind cost differently: each is one of its own
        which = which.ravel()
        costs = np.asarray(spent, float)
        least = float(costs[:, 0].mean())
        more = costs[np.arange(len(costs)), level[which]] - costs[:, 0]
        kinds, gain, counts = kinds[which], gain[which], np.ones(len(costs), int)
    order = np.lexsort((np.arange(len(more)) if spent is None else which, more))
    paid, won = (np.append(0, np.cumsum((what * counts)[order])) for what in (more, gain))
    answered = kinds[:, 0] @ counts + won  # whole numbers, so that equal shares are equal
    return upper_hull(least + paid / counts.sum(), answered / counts.sum())


def routed(
    predictions: np.ndarray,
    sufficient: np.ndarray,
    ladder: Sequence[int],
    points: int = POINTS,
    *,
    spent: np.ndarray | None = None,
) -> Curve:
    """A router's frontier: every margin that makes a difference, or so many of them.

    Args:
        predictions: (n,) ln of the tokens that each question is thought to need.
        sufficient: (n, scales) bool.
        ladder: tokens per grid, coarsest first.
        points: how many margins at most, at quantiles of where routes change.
        spent: (n, scales) visual tokens, where they are not the ladder's.
    """
    logs = np.log(np.asarray(ladder, float))
    predicted = np.asarray(predictions, float)
    changes = np.unique((logs[:-1, None] - predicted[None, :]).ravel())  # above it the next scale is taken
    if len(changes) > points:
        changes = np.quantile(changes, np.linspace(0, 1, points))
    margins = [changes[0] - 1.0, *(changes + 1e-5), changes[-1] + 1.0] if len(changes) else [0.0]
    routes = (route_levels(predicted, margin, ladder) for margin in margins)
    found = [outcome(route, sufficient, ladder, spent) for route in routes]
    return Curve(np.array([tokens for tokens, _ in found]), np.array([right for _, right in found]))


def priced(
    utility: np.ndarray, sufficient: np.ndarray, ladder: Sequence[int], spent: np.ndarray | None = None
) -> Curve:
    """A router's frontier when tokens have a price (prices.py): every price, from none to too much.

    It ends where tokens are free, which need not be the finest scale: nobody spends what buys nothing.

    Args:
        utility: (n, scales) what each scale is worth to each question, as prices.levels takes it.
        sufficient: (n, scales) bool.
        spent: (n, scales) visual tokens, where they are not the ladder's.
    """
    prices = [0.0, *np.geomspace(1e-4, 1e4, POINTS), 1e6]
    chosen = (levels(utility, price, ladder, spent) for price in reversed(prices))
    points = list(dict.fromkeys(outcome(level, sufficient, ladder, spent) for level in chosen))
    return Curve(np.array([tokens for tokens, _ in points]), np.array([right for _, right in points]))


def outcome(
    scales: np.ndarray, sufficient: np.ndarray, ladder: Sequence[int], spent: np.ndarray | None = None
) -> tuple[float, float]:
    """Mean tokens and accuracy of the scales (indices) that were chosen."""
    rows = np.arange(len(scales))
    tokens = np.asarray(ladder, float)[scales] if spent is None else np.asarray(spent, float)[rows, scales]
    return float(tokens.mean()), float(sufficient[rows, scales].mean())


def lead(router: Curve, baseline: Curve) -> tuple[float, float]:
    """The least and the mean lead of a router over a baseline at equal tokens, over the router's points."""
    ahead = router.accuracy - baseline.at(router.tokens)
    return float(ahead.min()), float(ahead.mean())


def gap_closed(tokens: float, accuracy: float, baseline: Curve, ceiling: Curve) -> float | None:
    """Share of the gap between baseline and ceiling, at these tokens, that is closed; None where none is."""
    low, high = float(baseline.at(tokens)), float(ceiling.at(tokens))
    return (accuracy - low) / (high - low) if high - low > 1e-9 else None
