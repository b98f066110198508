"""The complexity of a picture without a question: how many distinct visual tokens it has, and what there is
to read.

Distinct tokens. The features F (tokens x width) that the projector would get are whitened by the model's
features over drawings (whitening.py), and tokens that lie in random texture all become the same token: nobody
needs tokens for noise. Of the covariance of a picture's whitened tokens take the eigenvalues l, whose
sum S is the picture's variance. A picture of nothing has a variance too, at most S0: it counts as one token
of its own,

    p_0 = S0 / S,  p_i = (1 - S0 / S) l_i / S,  distinct_tokens = exp(-sum p ln p)   (1 where S <= S0)

This is the effective rank (Roy and Vetterli 2007; with a kernel: the Vendi score, Friedman and Dieng 2023).

Reading. A page of small print looks like one texture at the model's resolution, but needs many tokens: as
many as it has cells of the letters' height with text in them (reader.py).

The harder demand counts:

    effective_tokens = max(distinct_tokens, min(reading_tokens, t_finest))
    complexity = ln effective_tokens / ln t_finest,  required_tokens = the first scale with so many

Knows features and readings; does not know where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from m3score.common.errors import M3ScoreError
from m3score.models.m3.ladder import pool, round_up
from m3score.models.vision.reader import Reading
from m3score.models.vision.whitening import Whitening

VERSION = 2
"""Raised when a number changes."""
JUDGED_BY = "vision"
_LEAST = 1e-12
_AT_ONCE = 8
"""Pictures that are worked out together: as many as stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class VisionScore:
    """What the vision tower and the reader say of one picture."""

    complexity: float
    """In [0, 1]: 0 = one token is enough, 1 = the finest scale is."""
    effective_tokens: float
    required_tokens: int
    distinct_tokens: float
    reading_tokens: float
    letter_height: float | None
    """Height of the capital letters, were the picture's longest side 336 pixels; None without text."""
    ladder: tuple[int, ...]
    kept: tuple[float, ...]
    """For each scale but the finest the share of the tokens' variance that is left after pooling to it."""
    map: np.ndarray
    """float32 (side, side), one number a patch, of the sum effective_tokens: where the complexity is. Of a
    picture in tiles: of the overview."""

    def to_row(self) -> dict[str, float | int | str | None]:
        """Columns of a score table."""
        names = ("complexity", "effective_tokens", "required_tokens", "distinct_tokens", "reading_tokens")
        row = {name: getattr(self, name) for name in (*names, "letter_height")}
        row |= {f"kept_{t}": share for t, share in zip(self.ladder[:-1], self.kept, strict=True)}
        return row | {"judged_by": JUDGED_BY}


@dataclass(frozen=True, eq=False)
class Distinct:
    """How many distinct tokens a picture has, and where."""

    tokens: float
    kept: tuple[float, ...]
    shares: np.ndarray
    """float32 (side, side): each patch's share of the variance of the first grid, of the sum 1."""


@torch.inference_mode()
def score_pictures(
    features: Sequence[torch.Tensor],
    readings: Sequence[Reading],
    whitening: Whitening,
    ladder: Sequence[int],
) -> list[VisionScore]:
    """The vision scores of several pictures.

    Args:
        features: per picture (grids, tokens, width): what the projector gets of its overview and tiles.
        readings: per picture, what there is to read.
        whitening: the model's statistics, on the features' device.
        ladder: tokens per grid, coarsest first.
    """
    found = distinct_tokens(features, whitening, ladder)
    return [combine(one, reading, ladder) for one, reading in zip(found, readings, strict=True)]


def combine(distinct: Distinct, reading: Reading, ladder: Sequence[int]) -> VisionScore:
    """The score of the harder of the two demands."""
    finest = ladder[-1]
    read = min(reading.tokens, float(finest))
    effective = min(max(distinct.tokens, read, 1.0), float(finest))
    shares = distinct.shares
    if read > distinct.tokens:
        shares = _resampled(reading.cells, len(shares)) / max(reading.tokens, _LEAST)
    return VisionScore(
        complexity=math.log(effective) / math.log(finest) if finest > 1 else 0.0,
        effective_tokens=effective,
        required_tokens=round_up(effective, ladder),
        distinct_tokens=distinct.tokens,
        reading_tokens=reading.tokens,
        letter_height=reading.letter_height,
        ladder=tuple(ladder),
        kept=distinct.kept,
        map=(shares * effective).astype(np.float32),
    )


def distinct_tokens(
    features: Sequence[torch.Tensor], whitening: Whitening, ladder: Sequence[int]
) -> list[Distinct]:
    """How many distinct tokens each picture has; pictures with equally many grids are worked out together.

    The arguments are those of `score_pictures`.
    """
    found: dict[int, Distinct] = {}
    for grids in {len(picture) for picture in features}:
        alike = [index for index, picture in enumerate(features) if len(picture) == grids]
        for start in range(0, len(alike), _AT_ONCE):
            part = alike[start : start + _AT_ONCE]
            stack = torch.stack([features[index] for index in part])
            found.update(zip(part, _distinct(stack, whitening, ladder), strict=True))
    return [found[index] for index in range(len(features))]


def _distinct(features: torch.Tensor, whitening: Whitening, ladder: Sequence[int]) -> list[Distinct]:
    """(pictures, grids, tokens, width) -> one each."""
    count, grids, tokens, width = features.shape
    whitened = whitening.whiten(features).flatten(0, 1)
    texture = whitening.texture(whitened).reshape(count, grids * tokens, 1)
    whitened = whitened.reshape(count, grids * tokens, width)
    middle = (texture.transpose(1, 2) @ whitened) / texture.sum(1, keepdim=True).clamp(min=_LEAST)
    whitened.lerp_(middle, texture)  # "fine texture", said at every place, is said once
    centred = whitened.sub_(whitened.mean(dim=1, keepdim=True))
    variance = centred.square().sum(dim=2)
    if not torch.isfinite(variance).all():
        raise M3ScoreError("the vision tower's features are not finite")
    numbers = torch.exp(spectral_entropy(_eigenvalues(centred), whitening.nothing)).cpu().tolist()
    kept = _kept(centred.reshape(count, grids, tokens, width), variance.sum(1), ladder[:-1])
    overview = variance[:, :tokens]
    side = round(tokens**0.5)
    shares = (overview / overview.sum(1, keepdim=True).clamp(min=_LEAST)).reshape(count, side, side)
    return [
        Distinct(number, tuple(row), share)
        for number, row, share in zip(numbers, kept, shares.cpu().numpy(), strict=True)
    ]


def _eigenvalues(centred: torch.Tensor) -> torch.Tensor:
    """Of the covariance of (n, tokens, width): (n, min(tokens, width)), the others being 0."""
    tokens, width = centred.shape[1:]
    turned = centred.transpose(1, 2)
    products = turned @ centred if width <= tokens else centred @ turned
    if products.device.type != "cuda":
        products = products.cpu()  # not every kind of device has eigenvalues
    return torch.linalg.eigvalsh(products / tokens).clamp(min=0)


def spectral_entropy(eigenvalues: torch.Tensor, nothing: torch.Tensor | float) -> torch.Tensor:
    """Entropy in nats of spectra (n, k), beside what a picture of nothing has: see the head of this file."""
    total = eigenvalues.sum(dim=-1, keepdim=True).clamp(min=_LEAST)
    empty = (torch.as_tensor(nothing, device=total.device) / total).clamp(max=1)
    shares = torch.cat([empty, (1 - empty) * eigenvalues / total], dim=-1)
    return -torch.special.xlogy(shares, shares).sum(dim=-1).clamp(max=0)


def _kept(centred: torch.Tensor, variance: torch.Tensor, ladder: Sequence[int]) -> list[list[float]]:
    """Per picture of (n, grids, tokens, width) and scale the share of the variance that pooling leaves."""
    if not ladder:
        return [[] for _ in centred]
    pooling, counts = _pooling(centred.shape[2], tuple(ladder))
    left = (pooling.to(centred.device) @ centred).square().sum(dim=(1, 3))
    shares = [part.sum(1) / variance.clamp(min=_LEAST) for part in left.split(counts, dim=1)]
    kept = torch.stack(shares, dim=1).clamp(0, 1).cpu().tolist()
    return [[round(share, 6) for share in row] for row in kept]


@lru_cache(maxsize=8)
def _pooling(tokens: int, ladder: tuple[int, ...]) -> tuple[torch.Tensor, list[int]]:
    """(rows, tokens) that averages all windows of all scales, times the root of a window's size, so that
    squares sum to what is left of a variance; and how many rows each scale has."""
    rows = [pool(torch.eye(tokens)[None], scale)[0] for scale in ladder]
    return torch.cat([part * (tokens / len(part)) ** 0.5 for part in rows]), [len(part) for part in rows]


def _resampled(cells: np.ndarray, side: int) -> np.ndarray:
    """A square of sums over places on a grid of another side, of the same sum."""
    if len(cells) == side:
        return cells
    edges = np.linspace(0, len(cells), side + 1)
    first = np.arange(len(cells))
    overlap = np.clip(np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first), 0, None)
    return overlap @ cells @ overlap.T
