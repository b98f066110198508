"""Routing by price: each question gets the scale whose utility, less its tokens' price, is best.

A safety margin serves who wants accuracy kept: it moves every question up. Whoever has few tokens to spend
needs something else: a negative margin gives hard questions almost, but not quite, what they need, and those
tokens are lost. With a price per token the hard ones are given up first and the easy ones are served. Without
any knowledge of the questions this is the best random mixing of fixed scales.

Knows numbers only. The utility of a scale to a question is the chance that it suffices, less that of the
coarsest scale or not: only differences count. It is learnt (gains.py); where it is not, `SufficiencyCurve`
estimates it from calibration questions: the share for which a scale sufficed, as a function that falls with
the predicted ln(tokens) (isotonic regression).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 64
_LEAST = 20
"""Questions in a bin, at least."""


@dataclass(frozen=True, eq=False)
class SufficiencyCurve:
    """The chance that each scale suffices, by prediction."""

    predictions: np.ndarray
    """float64 (k,) ascending, ln(tokens)."""
    chance: np.ndarray
    """float64 (k, scales), falling in the prediction."""

    @classmethod
    def of(cls, predictions: np.ndarray, sufficient: np.ndarray) -> SufficiencyCurve:
        """From (n,) predictions in ln(tokens) and bool (n, scales) of the same questions, n at least 1."""
        from scipy.optimize import isotonic_regression

        order = np.argsort(predictions, kind="stable")
        bins = np.array_split(order, max(1, min(_BINS, len(order) // _LEAST)))
        places = np.array([np.mean(np.asarray(predictions, float)[part]) for part in bins])
        shares = np.array([sufficient[part].mean(axis=0) for part in bins])
        sizes = np.array([len(part) for part in bins], float)
        falling = [isotonic_regression(one, weights=sizes, increasing=False).x for one in shares.T]
        return cls(places, np.column_stack(falling))

    def at(self, predictions: np.ndarray) -> np.ndarray:
        """float64 (n, scales)"""
        columns = [np.interp(predictions, self.predictions, column) for column in self.chance.T]
        return np.column_stack(columns)


def levels(
    utility: np.ndarray, price: float, ladder: Sequence[int], spent: np.ndarray | None = None
) -> np.ndarray:
    """int (n,) positions on the ladder.

    Args:
        utility: (n, scales) of each question and scale.
        price: of the finest scale's tokens, in chances of an answer; less is charged for fewer in proportion.
            Of equally good scales the coarser is taken.
        ladder: scales, coarsest first.
        spent: (n, scales) visual tokens of each question's image at each scale, where they are not the
            ladder's own numbers.
    """
    cost = price * np.asarray(ladder if spent is None else spent, float) / ladder[-1]
    return np.argmax(np.round(utility - cost, 9), axis=1)


def price_for(mean_tokens: float, utility: np.ndarray, ladder: Sequence[int]) -> float:
    """The least price at which these questions take `mean_tokens` per grid on the average, or less.

    The average falls in steps as the price rises: it may be well below `mean_tokens`, and where more tokens
    are worth nothing it is.
    """
    tokens = np.asarray(ladder, float)
    low, high = 0.0, 1e6
    if tokens[levels(utility, low, ladder)].mean() <= mean_tokens:
        return low
    for _ in range(80):  # halving, on a logarithmic scale once away from zero
        middle = math.sqrt(low * high) if low > 1e-9 else max(high * 1e-3, 1e-9)
        if tokens[levels(utility, middle, ladder)].mean() <= mean_tokens:
            high = middle
        else:
            low = middle
        if high <= low * (1 + 1e-9):
            break
    return high
