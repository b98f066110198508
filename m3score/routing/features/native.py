"""What a picture holds at its own size: detail and print that are too fine for the square of 288 pixels.

Knows numpy and the cells that are kept of a picture's luminance (images/reduce.py). Sizes in names are those
of the longest side in pixels.
"""

from __future__ import annotations

import math

import numpy as np

from m3score.images.reduce import CELL
from m3score.routing.features.measures import log_rms

SIDES = (2048, 1024, 512)
"""Longest sides that a picture might be made as small as."""
_CONTRAST = 48
"""Grey levels between the darkest and the lightest pixel of a cell that may hold letters."""
_TEXT = 0.7
"""Share of a cell's pixels that are clearly dark or clearly light, where it looks like print."""


def native(cells: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """What shows at the picture's own size.

    Args:
        cells: uint8 (rows, columns), of reduce.sampled_cells.
        size: (width, height) of the whole picture in pixels.
    """
    rows = cells.reshape(len(cells) // CELL, CELL, -1)
    letters, share = _letters(rows)
    lost = _lost(rows[::2], max(size))  # half of them say enough
    return {
        "pixels": math.log(size[0] * size[1]),
        **{f"native_{side}": loss for side, loss in zip(SIDES, lost, strict=True)},
        "letters": math.log1p(letters * size[0] * size[1]),
        "letters_share": share,
    }


def _lost(rows: np.ndarray, longest: int) -> list[float]:
    """What is lost when the longest side is made as small as each of SIDES, in log rms.

    Measured at whole halvings and interpolated in between, so that it changes little where size does.
    """
    halvings = [min(max(0.0, math.log2(longest / side)), math.log2(CELL)) for side in SIDES]
    if halvings[-1] == 0:
        return [0.0] * len(SIDES)
    means = rows.reshape(-1, rows.shape[2]).astype(np.float32)
    means -= 128
    energies = [_mean_square(means)]
    for _ in range(math.ceil(halvings[-1])):
        pairs = means[::2] + means[1::2]
        means = pairs[:, ::2] + pairs[:, 1::2]
        means *= np.float32(0.25)
        energies.append(_mean_square(means))
    lost = [log_rms(energies[0] - energy) for energy in energies]
    return np.interp(halvings, range(len(lost)), lost).tolist()


def _mean_square(values: np.ndarray) -> float:
    return float(np.add.reduce(values * values, axis=None)) / values.size


def _letters(rows: np.ndarray) -> tuple[float, float]:
    """(letters per pixel, share of cells that look like print), of uint8 (rows of cells, CELL, columns).

    In print, ink and paper take turns along rows and along columns, about as often as there are letters; so
    the product of both rates goes by the number of letters, whatever their size. A texture does so as well,
    but has many shades in between.
    """
    high, low = _by_cells(np.maximum, rows.max(1)), _by_cells(np.minimum, rows.min(1))
    span = high - low  # uint8 (rows of cells, cells)
    middle, quarter = low + (span >> 1), span >> 2
    dark, between, light = (_for_pixels(one) for one in (middle - quarter, middle, middle + quarter))
    ink = (rows > between).view(np.uint8)
    across = np.zeros((len(rows), rows.shape[2]), np.uint8)
    across[:, 1:] = _counts(ink[:, :, 1:] ^ ink[:, :, :-1])
    across[:, ::CELL] = 0  # cells have thresholds of their own
    down, clear = _counts(ink[:, 1:] ^ ink[:, :-1]), _counts((rows > light) | (rows < dark))
    rates = [_by_cells(np.add, counts, np.int32) / np.float32(CELL**2) for counts in (across, down, clear)]
    alive = span > _CONTRAST
    density = alive * rates[0] * rates[1] * np.maximum(rates[2] - np.float32(0.5), 0)
    return float(density.mean()), float((alive & (rates[2] > _TEXT)).mean())


def _counts(there: np.ndarray) -> np.ndarray:
    """(rows of cells, pixels, columns) -> uint8 (rows of cells, columns): how many are true."""
    return np.add.reduce(there.view(np.uint8), axis=1, dtype=np.uint8)


def _by_cells(how: np.ufunc, lines: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    """(rows of cells, columns) -> (rows of cells, cells)."""
    return how.reduce(lines.reshape(len(lines), -1, CELL), axis=2, dtype=dtype)


def _for_pixels(cells: np.ndarray) -> np.ndarray:
    """(rows of cells, cells) -> (rows of cells, 1, columns)."""
    return np.repeat(cells, CELL, axis=1)[:, None]
