"""The feature set "vision": one vector of statistics of an image's projected features.

For routing inside a serving stack, where the vision tower has run anyway and the language model's prefill is
what costs. Used by Embedder.vision_features. Knows arrays, no models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3score.models.m3.ladder import pooled_side


def vision_feature_names(hidden: int, ladder: Sequence[int]) -> tuple[str, ...]:
    """Feature names: variance lost at each coarser scale, ln(1 + variance), the mean of each channel."""
    lost = [f"lost_{tokens}" for tokens in ladder[:-1]]
    return (*lost, "ln_variance", *(f"mean_{i}" for i in range(hidden)))


def vision_statistics(features: np.ndarray, ladder: Sequence[int]) -> np.ndarray:
    """Statistics of one grid: float32 (features,), named by `vision_feature_names`.

    Args:
        features: (side, side, hidden): one grid of projected features, before pooling.
        ladder: tokens per grid, coarsest first.

    Returns:
        For each coarser scale, the share of the variance (over positions, summed over channels) that pooling
        loses; ln(1 + that variance); and each channel's mean over positions.
    """
    grid = np.asarray(features, np.float64)
    mean = grid.mean(axis=(0, 1))
    variance = float(((grid - mean) ** 2).sum(axis=2).mean())
    lost = [_lost(grid, tokens) / max(variance, 1e-12) for tokens in ladder[:-1]]
    return np.array([*np.clip(lost, 0, 1), np.log1p(variance), *mean], np.float32)


def _lost(grid: np.ndarray, tokens: int) -> float:
    """Mean squared distance between each position's features and the visual token that it is pooled into."""
    small = pooled_side(tokens, len(grid))
    kernel = len(grid) // small
    used = grid[: small * kernel, : small * kernel]
    windows = used.reshape(small, kernel, small, kernel, -1)
    pooled = windows.mean(axis=(1, 3), keepdims=True)
    return float(((windows - pooled) ** 2).sum(axis=4).mean())
