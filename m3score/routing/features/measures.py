"""What can be measured cheaply on a picture: how much detail, where, and of which kind.

Knows numpy, Pillow and the square that a model sees (patch_grid.py); knows no files, models or questions.

Amounts of detail are ln(1 + root mean square in grey levels of 0..255), "log rms" for short; densities are
shares of the square in [0, 1]. Each function returns features by name; image.py says what they mean.
Arrays stay below 128 kB where they can: beyond, the C library asks the system for fresh memory each time.
"""

from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
from PIL import Image

from m3score.routing.features.patch_grid import CELLS, COARSE, SIDE, Square, pooled

_EDGES = (16, 48)
"""Grey levels between neighbours: a visible edge, a strong one."""
_STROKE = np.uint8(24)
_TOP = np.uint8(255 - 24)
"""Grey levels that a thin line differs from both its sides."""
_CORNER = 64.0
_BUSY = 20.0
"""Root mean square, in grey levels, of what looks busy."""
_STEPS = (10, 20, 40)
"""Differences between neighbours, over the three planes together: from barely seen to strong."""
_SAME = 20
"""Neighbours that differ by no more belong to one region."""


def _mean(values: np.ndarray) -> float:
    """The mean of all; numpy's own takes several times as long on arrays as small as ours."""
    return float(np.add.reduce(values, axis=None)) / values.size


def log_rms(energy: float) -> float:
    """Mean square in grey levels -> ln(1 + root mean square)."""
    return math.log1p(math.sqrt(max(0.0, float(energy))))


# --- what pooling loses -----------------------------------------------------------------------------------


def losses(square: Square, levels: dict[int, np.ndarray]) -> tuple[dict[str, float], np.ndarray]:
    """What each step of the ladder loses, in luminance and chroma; and the (24, 24) map of the finest loss.

    A map's entry is the mean square that is lost when the pixels (or finer cells) of a cell become one.
    """
    weights = square.weights
    energies = [_squares(square.luma), *(pooled(levels[side] * levels[side], CELLS) for side in (144, 72))]
    chroma = square.colour[1:].astype(np.float32) - np.float32(128)
    planes = np.concatenate([pooled(levels[72], CELLS)[None], pooled(chroma, CELLS)])  # (3, 24, 24)
    squares = planes * planes
    energies.append(squares[0])
    fine = [np.maximum(one - other, 0) * weights for one, other in pairwise(energies)]
    cells = fine[0] + fine[1] + fine[2]
    below = np.maximum(pooled(chroma * chroma, CELLS) - squares[1:], 0).sum(0) * weights
    values = {f"luma_{k}px": log_rms(_mean(band)) for k, band in zip((1, 2, 4), fine, strict=True)}
    maps = {CELLS: cells}
    values |= {"chroma_24": log_rms(_mean(below)), "chroma_24_peak": log_rms(below.max())}
    for side in (12, 6, 3, 1):
        mean_square, planes, weights = pooled(squares, side), pooled(planes, side), pooled(weights, side)
        squares = planes * planes
        lost = np.maximum(mean_square - squares, 0) * weights
        maps[side] = lost[0]
        values[f"chroma_{side}"] = log_rms(float(lost[1:].sum()) / side**2)
    means = {side: _mean(band) for side, band in maps.items()}
    total = sum(means.values()) + 1.0
    for side, band in maps.items():
        values[f"luma_{side}"] = log_rms(means[side])
        if side >= 6:
            values[f"luma_{side}_peak"] = log_rms(band.max())
        if side >= 12:
            values[f"luma_{side}_share"] = means[side] / total
    return values, cells


def _squares(luma: np.ndarray) -> np.ndarray:
    """float32 (24, 24): the mean of (luminance - 128)^2 in each cell."""
    values = luma.astype(np.float32)
    values -= 128
    values *= values
    return pooled(values, CELLS)


def spread(cells: np.ndarray) -> dict[str, float]:
    """Where the fine detail is: everywhere or in few cells, at the middle or at the rim."""
    total = float(cells.sum()) + 1e-3
    parts = cells / total
    ordered = np.sort(cells, axis=None)
    place = (np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS - 0.5
    down, across = parts.sum(1), parts.sum(0)
    centre = float((down * place).sum()), float((across * place).sum())
    squares = float((down * place * place).sum() + (across * place * place).sum())
    return {
        "detail_cells": math.exp(-float((parts * np.log(parts + 1e-12)).sum())) / cells.size,
        "detail_top": float(ordered[-29:].sum()) / total,
        "detail_median": log_rms(ordered[288]),
        "detail_high": log_rms(ordered[-58]),
        "detail_busy": np.count_nonzero(cells > _BUSY**2) / cells.size,
        "detail_spread": math.sqrt(max(0.0, squares - centre[0] ** 2 - centre[1] ** 2)),
    }


# --- edges, corners, strokes ------------------------------------------------------------------------------


def edges(square: Square, levels: dict[int, np.ndarray]) -> dict[str, float]:
    """Edges and corners of the luminance."""
    luma = square.luma[square.rows, square.columns]
    across, down = _histogram(_apart(luma[:, 1:], luma[:, :-1])), _histogram(_apart(luma[1:], luma[:-1]))
    steps = across + down
    mean = [float((one * np.arange(256)).sum()) / SIDE**2 for one in (across, down)]
    values = {
        "edges": float(steps[_EDGES[0] :].sum()) / (2 * SIDE**2),
        "edges_strong": float(steps[_EDGES[1] :].sum()) / (2 * SIDE**2),
        "edges_mean": math.log1p(sum(mean)),
        "edges_upright": mean[0] / (sum(mean) + 0.1),
        "edges_entropy": entropy(steps),
    }
    return values | _corners(square, levels[144])


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.maximum(one, other) - np.minimum(one, other)


def _histogram(values: np.ndarray) -> np.ndarray:
    """Counts of 0..255 in a uint8 (h, w) array, float64 (256,). Pillow counts faster than numpy."""
    if not values.size:
        return np.zeros(256)
    return np.array(Image.fromarray(values).histogram(), np.float64)


def _corners(square: Square, luma: np.ndarray) -> dict[str, float]:
    """Shi and Tomasi (1994): the lesser eigenvalue of the structure tensor, over windows of 4 pixels."""
    across, down = np.zeros_like(luma), np.zeros_like(luma)
    across[:, :-1] = luma[:, 1:] - luma[:, :-1]
    down[:-1] = luma[1:] - luma[:-1]
    xx, yy, xy = (pooled(product, 72) for product in (across * across, down * down, across * down))
    least = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    least = least[square.shown(72)]
    return {
        "corners": np.count_nonzero(least > _CORNER) / 72**2,
        "corners_mean": log_rms(float(least.sum()) / 72**2),
    }


def strokes(square: Square, levels: dict[int, np.ndarray], detail: np.ndarray) -> dict[str, float]:
    """Thin lines darker or lighter than both their sides, at four scales, and the cells that look like text.

    Text is made of strokes: fine, high in contrast, of two values, in lines.
    """
    values: dict[str, float] = {}
    weights = square.weights
    dense = np.zeros((CELLS, CELLS), np.float32)
    for side, cells in ((288, 24), (144, 24), (72, 24), (36, 12)):
        luma = square.luma if side == SIDE else (levels[side] + np.float32(128.5)).astype(np.uint8)
        raised = np.minimum(luma, _TOP) + _STROKE
        upright = _ridges(luma, raised, 1)
        density = _density(upright | _ridges(luma, raised, 0), cells) * pooled(weights, cells)
        scale = SIDE // side
        values[f"strokes_{scale}px"] = _mean(density)
        if side > 36:
            values[f"strokes_{scale}px_peak"] = _mean(np.partition(density, -4, axis=None)[-4:])
        if side >= 144:
            dense = np.maximum(dense, density)
            values[f"lines_{scale}px"] = _lines(upright)
    blocks = square.luma.reshape(CELLS, 12, SIDE)
    high = blocks.max(1).reshape(CELLS, CELLS, 12).max(2).astype(np.float32)
    low = blocks.min(1).reshape(CELLS, CELLS, 12).min(2).astype(np.float32)
    span = high - low
    two_valued = 4 * detail / np.maximum(span, 1) ** 2  # 1: two values only; 1/3: all values alike
    sharp = (span > 64) * weights
    text = sharp * (two_valued > 0.3) * (dense > 0.1)
    return values | {
        "contrast": _mean(span * weights) / 255,
        "two_valued": float((two_valued * sharp).sum() / (sharp.sum() + 1)),
        "text_cells": _mean(text),
        "text_rows": float((text.sum(1) > 1).mean()),
    }


def _ridges(luma: np.ndarray, raised: np.ndarray, axis: int) -> np.ndarray:
    """Which pixels of uint8 (n, n) differ from both the pixels two away along the axis, the same way.

    `raised` is the same with _STROKE added and kept within 255.
    """
    reach = 2 * luma.shape[1] if axis == 0 else 2
    line = luma.reshape(-1)  # in one line numpy is several times as fast
    limit = raised.reshape(-1)
    near, middle, far = slice(None, -2 * reach), slice(reach, -reach), slice(2 * reach, None)
    ridges = np.zeros(luma.shape, bool)
    darker = np.minimum(line[near], line[far]) > limit[middle]
    lighter = line[middle] > np.maximum(limit[near], limit[far])
    np.logical_or(darker, lighter, out=ridges.reshape(-1)[reach:-reach])
    if axis == 1:  # at the rim, neighbours in the line are not neighbours in the picture
        ridges[:, :2] = ridges[:, -2:] = False
    return ridges


def _density(there: np.ndarray, cells: int) -> np.ndarray:
    """Which share of each cell is true: bool (n, n) -> float32 (cells, cells)."""
    step = len(there) // cells
    sums = np.add.reduce(there.view(np.uint8).reshape(cells, step, -1), axis=1, dtype=np.uint8)
    return np.add.reduce(sums.reshape(cells, cells, step), axis=2, dtype=np.float32) / np.float32(step**2)


def _lines(upright: np.ndarray) -> float:
    """How much upright strokes come in rows with gaps between them, in quarters of the width."""
    side = len(upright)
    quarters = np.add.reduce(upright.view(np.uint8).reshape(side, 4, -1), axis=2, dtype=np.uint8)
    quarters = quarters.astype(np.float32) / np.float32(side / 4)
    return log_rms(1e4 * float(np.square(np.diff(quarters, axis=0)).mean()))


# --- colours, order ---------------------------------------------------------------------------------------


def colours(square: Square) -> dict[str, float]:
    """Grey levels and colours: how many, how even, how strong."""
    grey = _histogram(square.luma[square.rows, square.columns])
    shares = grey / grey.sum()
    mean = float((shares * np.arange(256)).sum())
    y, cb, cr = square.colour[:, *square.shown(COARSE)].reshape(3, -1)
    codes = np.left_shift(y >> 4, 8, dtype=np.int64) | (cb & 0xF0) | (cr >> 4)
    counts = np.bincount(codes)
    blue, red = cb.astype(np.float32) - np.float32(128), cr.astype(np.float32) - np.float32(128)
    strength = np.sqrt(blue * blue + red * red)
    coloured = strength > 16
    turns = (np.arctan2(red, blue) * np.float32(6 / math.pi) + 6).astype(np.int32)
    return {
        "grey_mean": mean / 255,
        "grey_deviation": math.sqrt(float((shares * (np.arange(256) - mean) ** 2).sum())) / 255,
        "grey_entropy": entropy(grey),
        "colours": math.log1p(np.count_nonzero(counts > 1)),
        "colours_entropy": entropy(counts),
        "colour_strength": math.log1p(_mean(strength)),
        "colour_deviation": log_rms(float(blue.var() + red.var())),
        "hues_entropy": entropy(np.bincount(turns[coloured])),
    }


def steps(square: Square) -> dict[str, float]:
    """How often colours change from one place to the next, and the regions between the changes."""
    values = {}
    pixels = square.colour[:, *square.shown(COARSE)].astype(np.int16)
    fine = _changes(pixels)
    rows, columns = (length // 2 for length in pixels.shape[1:])
    pairs = pixels[:, : 2 * rows, : 2 * columns]
    pairs = pairs[:, ::2, ::2] + pairs[:, 1::2, ::2] + pairs[:, ::2, 1::2] + pairs[:, 1::2, 1::2]
    for name, changes in (("4px", fine), ("8px", _changes(pairs >> 2))):
        both = np.concatenate([one.ravel() for one in changes])
        for least in _STEPS:
            values[f"steps_{name}_{least}"] = np.count_nonzero(both > least) / max(1, both.size)
    sizes = np.sort(_regions(fine[0] <= _SAME, fine[1] <= _SAME))
    area = pixels[0].size
    return values | {
        "regions_some": math.log1p(np.count_nonzero(sizes >= 4)),
        "regions_large": math.log1p(np.count_nonzero(sizes >= 26)),
        "regions_tiny": float(sizes[sizes < 4].sum()) / area,
        "regions_first": float(sizes[-1]) / area,
        "regions_five": float(sizes[-5:].sum()) / area,
    }


def _changes(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int16 (planes, h, w) -> the difference of each pixel from its right one, and from the one below."""
    across, down = np.abs(pixels[:, :, 1:] - pixels[:, :, :-1]), np.abs(pixels[:, 1:] - pixels[:, :-1])
    return across[0] + across[1] + across[2], down[0] + down[1] + down[2]


def _regions(right: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Sizes in pixels of the connected regions of an (h, w) picture, in no order of meaning.

    Args:
        right: bool (h, w - 1), which pixels are of one region with the one to their right.
        below: bool (h - 1, w), the same for the one below.
    """
    height, width = len(right), below.shape[1]
    linked = np.zeros((2, height, width), bool)
    linked[0, :, :-1], linked[1, :-1] = right, below
    across, down = np.flatnonzero(linked[0]), np.flatnonzero(linked[1])
    one, other = np.concatenate([across, down]), np.concatenate([across + 1, down + width])
    root = np.arange(height * width)
    while len(one):  # hang the later root on the earlier, then let every pixel point at its root
        root[np.maximum(one, other)] = np.minimum(one, other)
        while not np.array_equal(up := root.take(root), root):  # `take` is faster than an index
            root = up
        one, other = root.take(one), root.take(other)
        apart = np.flatnonzero(one != other)
        one, other = one.take(apart), other.take(apart)
    sizes = np.bincount(root)
    return sizes[sizes > 0]


def order(square: Square, levels: dict[int, np.ndarray]) -> dict[str, float]:
    """How well one part predicts another: compressed size, symmetry."""
    packed = io.BytesIO()
    rows, columns = square.shown(144)
    luma = levels[144][rows, columns] + np.float32(128.5)
    Image.fromarray(luma.astype(np.uint8)).save(packed, "JPEG", quality=75)
    cells = pooled(levels[36], 12)
    cells = cells - cells.mean()
    norm = float((cells * cells).sum()) + 144.0
    return {
        "jpeg_bytes": math.log(packed.tell()),
        "mirrored": float((cells * cells[:, ::-1]).sum()) / norm,
    }


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy of counts, in bits; 0 of none."""
    some = counts[counts > 0]
    if not len(some):
        return 0.0
    parts = some / some.sum()
    return -float((parts * np.log2(parts)).sum())
