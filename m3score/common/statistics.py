"""Rank correlation, the same for every table and report."""

from __future__ import annotations

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
