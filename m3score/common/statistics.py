"""Rank correlation, mean and median: the same for every table and report."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

FEWEST = 3
"""Pairs below which a rank correlation says nothing: of two it is 1 or -1, whatever they are."""


def spearman(x: np.ndarray, y: np.ndarray, fewest: int = FEWEST) -> np.ndarray:
    """Spearman's correlation along the last axis, ties in the middle: float64, NaN where it is undefined.

    Args:
        x, y: (..., n).
        fewest: pairs below which it is undefined; it also is where x or y is constant.
    """
    from scipy.stats import rankdata

    if np.shape(x)[-1] < fewest:
        return np.full(np.shape(x)[:-1], np.nan)
    one, other = rankdata(x, axis=-1), rankdata(y, axis=-1)
    one, other = one - one.mean(axis=-1, keepdims=True), other - other.mean(axis=-1, keepdims=True)
    norms = np.sqrt(np.square(one).sum(axis=-1) * np.square(other).sum(axis=-1))
    found = np.divide((one * other).sum(axis=-1), norms, out=np.full(norms.shape, np.nan), where=norms > 0)
    return np.clip(found, -1.0, 1.0)


_STEPS = 10_000


@dataclass
class Spread:
    """Mean and median of numbers from 0 to 1, taken in one by one in bounded memory: the median to 1e-4."""

    count: int = 0
    total: float = 0.0
    steps: Counter[int] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        """Take in a number."""
        self.count += 1
        self.total += value
        self.steps[round(value * _STEPS)] += 1

    @property
    def mean(self) -> float | None:
        """None of no numbers."""
        return self.total / self.count if self.count else None

    @property
    def median(self) -> float | None:
        """The number in the middle, of two the smaller one; None of no numbers."""
        seen = 0
        for step in sorted(self.steps):
            seen += self.steps[step]
            if 2 * seen >= self.count:
                return step / _STEPS
        return None
