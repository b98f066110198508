"""The token ladder: how many visual tokens each scale has, how they are pooled and joined.

Knows grids, tiles and counts; knows nothing about models, files or pixels. All of it is arithmetic on a
square grid of patch features; only `pool` and `join_tiles` work on torch tensors.

The definitions are those of "Matryoshka Multimodal Models" (arXiv 2405.17430, section 3) and of its published
code: features are average-pooled *after* the projector with kernel = stride, and tiles are pooled one by one
before they are joined. If the kernel does not divide the grid, the remainder is dropped, as in that code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
"""(width, height), as Pillow has it."""


def default_ladder(grid: int) -> tuple[int, ...]:
    """The ladder of a model that doesn't name its own: halve the side while it is even, then one token.

    A 24x24 grid has the paper's five scales, (1, 9, 36, 144, 576).
    """
    if grid < 1:
        raise M3ScoreError(f"A grid needs at least one patch a side, not {grid}.")
    sides = [grid]
    while sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return tuple(sorted({side * side for side in sides} | {1}))


def make_ladder(scales: Iterable[int], grid: int) -> tuple[int, ...]:
    """Sort scales into a ladder, coarsest first, and check that a grid x grid of patches has each of them.

    (The authors' files list the finest first.) M3ScoreError for a scale that the grid doesn't have.
    """
    ladder = tuple(sorted({int(scale) for scale in scales}))
    if not ladder:
        raise M3ScoreError("A token ladder needs at least one scale.")
    for scale in ladder:
        side = pooled_side(scale, grid)
        if side * side != scale:
            raise M3ScoreError(
                f"A {grid}x{grid} grid has no scale of {scale} tokens: pooling gives {side * side} instead."
            )
    return ladder


def round_up(tokens: float, ladder: Sequence[int]) -> int:
    """The smallest scale of the ladder with at least this many tokens, else the finest one."""
    return next((scale for scale in ladder if scale >= tokens), ladder[-1])


def pool_kernel(tokens: int, grid: int) -> int:
    """Side of the pooling window for about `tokens` tokens, by the authors' int(sqrt(all / tokens)).

    M3ScoreError unless 1 <= tokens <= grid * grid.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= grid * grid:
        raise M3ScoreError(
            f"{tokens!r} is no number of visual tokens per grid: "
            f"a {grid}x{grid} grid allows whole numbers from 1 to {grid * grid}."
        )
    return int(math.sqrt(grid * grid / tokens))


def pooled_side(tokens: int, grid: int) -> int:
    """Side of the pooled grid; a remainder is dropped."""
    return grid // pool_kernel(tokens, grid)


def pool(features: torch.Tensor, tokens: int) -> torch.Tensor:
    """Average-pool projected patch features.

    Args:
        features: (n, grid * grid, hidden): the row-major patches of n tiles, after the projector.
        tokens: wanted tokens per tile.

    Returns:
        (n, side * side, hidden), row-major; side * side is `tokens` for the scales of the ladder.
    """
    count, patches, hidden = features.shape
    grid = math.isqrt(patches)
    kernel = pool_kernel(tokens, grid)
    if kernel == 1:
        return features
    side = grid // kernel
    used = features.reshape(count, grid, grid, hidden)[:, : side * kernel, : side * kernel]
    windows = used.reshape(count, side, kernel, side, kernel, hidden)
    return windows.mean(dim=(2, 4)).reshape(count, side * side, hidden)


@dataclass(frozen=True)
class Window:
    """The rows and columns of a joined grid that show the image and not its padding."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        return max(0, self.bottom - self.top)

    @property
    def columns(self) -> int:
        return max(0, self.right - self.left)


def unpad_window(joined: Size, image: Size) -> Window:
    """Which part of a (pooled) joined grid shows the image, computed as in the authors' code.

    Args:
        joined: (columns, rows) of the grid of all tiles, after pooling.
        image: (width, height) of the original image in pixels.

    The rounding matters: scale = current / original, new = int(original * scale), and the floor of half the
    rest is cut on both sides. A window may have no rows or no columns; then only the overview tile is left,
    which happens to small images at coarse scales. (LLaVA-NeXT in transformers rounds to nearest here, so its
    counts differ.)
    """
    columns, rows = joined
    width, height = image
    if width / height > columns / rows:
        shown = int(height * (columns / width))
        cut = (rows - shown) // 2
        return Window(cut, rows - cut, 0, columns)
    shown = int(width * (rows / height))
    cut = (columns - shown) // 2
    return Window(0, rows, cut, columns - cut)


def count_visual_tokens(
    tokens: int, grid: int, image: Size, tiles: Size | None, merge: str = "spatial_unpad"
) -> int:
    """How many visual tokens of one image enter the language model.

    Args:
        tokens: visual tokens per grid.
        grid: patches per side of one tile.
        image: (width, height) in pixels.
        tiles: (columns, rows) of tiles beside the overview tile, or None for a single-grid image.
        merge: how tiles are joined, see `join_tiles`.
    """
    side = pooled_side(tokens, grid)
    if tiles is None:
        return side * side
    if merge != "spatial_unpad":
        return side * side * (1 + tiles[0] * tiles[1])
    window = unpad_window((tiles[0] * side, tiles[1] * side), image)
    return side * side + window.rows * (window.columns + 1)


def join_tiles(
    pooled: torch.Tensor,
    image: Size,
    tiles: Size | None,
    newline: torch.Tensor | None,
    merge: str = "spatial_unpad",
) -> torch.Tensor:
    """Join the pooled tiles of one image in the order in which the language model reads them.

    Args:
        pooled: (n, side * side, hidden), the overview tile first, the others row-major.
        image: (width, height) of the image in pixels.
        tiles: (columns, rows) of tiles beside the overview; None: all rows stay as they are.
        newline: (hidden,): the learnt embedding that ends each row of the joined grid.
        merge: "flat": tile after tile; "spatial": row by row over all tiles; "spatial_unpad": that, with the
            padding cut off and a newline after each row.

    Returns:
        (visual tokens, hidden)
    """
    count, patches, hidden = pooled.shape
    if tiles is None or merge == "flat":
        return pooled.reshape(count * patches, hidden)
    side = math.isqrt(patches)
    columns, rows = tiles
    joined = pooled[1:].reshape(rows, columns, side, side, hidden).transpose(1, 2)
    joined = joined.reshape(rows * side, columns * side, hidden)
    if merge == "spatial_unpad":
        if newline is None:
            raise M3ScoreError("Tiles joined as 'spatial_unpad' need the model's image_newline.")
        joined = _unpad(joined, image, newline)
    return _concatenate([pooled[0], joined.reshape(-1, hidden)], axis=0)


def _unpad(joined: torch.Tensor, image: Size, newline: torch.Tensor) -> torch.Tensor:
    """(rows, columns, hidden) -> the image's window, with a newline at the end of each row."""
    rows, columns, hidden = joined.shape
    window = unpad_window((columns, rows), image)
    shown = joined[window.top : window.bottom, window.left : window.right]
    ends = newline.to(shown).expand(shown.shape[0], 1, hidden)
    return _concatenate([shown, ends], axis=1)


def _concatenate(parts: list[torch.Tensor], axis: int) -> torch.Tensor:
    import torch  # not at the top: counting tokens needs no torch

    return torch.cat(parts, dim=axis)
