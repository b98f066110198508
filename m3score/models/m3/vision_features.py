"""The feature set "vision": what a model's own vision tower made of an image, pooled to one vector.

For routing inside a serving stack, where the encoder has run anyway and the language model's prefill is the
cost: Embedder.vision_features. Knows arrays, no models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from m3score.models.m3.ladder import pooled_side


def vision_feature_names(hidden: int, ladder: Sequence[int]) -> tuple[str, ...]:
    """Names of the features: the shares of variance lost at each coarser scale, then the mean features."""
    lost = [f"lost_{tokens}" for tokens in ladder[:-1]]
    return (*lost, "ln_variance", *(f"mean_{i}" for i in range(hidden)))


def vision_statistics(features: np.ndarray, ladder: Sequence[int]) -> np.ndarray:
    """float32 (features,), named by `vision_feature_names`.

    Args:
        features: (side, side, hidden), one grid of projected features, before pooling.
        ladder: tokens per grid, coarsest first.

    Returns:
        For each coarser scale the share of the variance (over positions, summed over channels) that pooling
        to that scale loses; ln(1 + that variance); and the mean over positions of each channel.
    """
    grid = np.asarray(features, np.float64)
    mean = grid.mean(axis=(0, 1))
    variance = float(((grid - mean) ** 2).sum(axis=2).mean())
    lost = [_lost(grid, tokens) / max(variance, 1e-12) for tokens in ladder[:-1]]
    return np.array([*np.clip(lost, 0, 1), np.log1p(variance), *mean], np.float32)


def _lost(grid: np.ndarray, tokens: int) -> float:
    """Mean squared distance of each position's features from those of the visual token that it goes into."""
    small = pooled_side(tokens, len(grid))
    kernel = len(grid) // small
    used = grid[: small * kernel, : small * kernel]
    windows = used.reshape(small, kernel, small, kernel, -1)
    pooled = windows.mean(axis=(1, 3), keepdims=True)
    return float(((windows - pooled) ** 2).sum(axis=4).mean())
