"""What a picture holds at its own size: detail and print that are too fine for the square of 288 pixels.

Knows numpy and the bands of rows that are kept of a picture's luminance (images/reduce.py). Sizes in names
are those of the longest side in pixels.
"""

from __future__ import annotations

import math

import numpy as np

from m3score.images.reduce import BAND
from m3score.routing.features.measures import log_rms

SIDES = (2048, 1024, 512)
"""Longest sides that a picture might be made as small as."""
_CONTRAST = 48
"""Grey levels between the darkest and the lightest pixel of a cell that may hold letters."""
_TEXT = 0.7
"""Share of a cell's pixels that are clearly dark or clearly light, where it looks like print."""


def native(bands: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """What shows at the picture's own size.

    Args:
        bands: uint8 (rows, columns), of reduce.bands_of.
        size: (width, height) of the whole picture in pixels.
    """
    pixels = size[0] * size[1]
    lost = _lost(bands, max(size))
    values = {f"native_{side}": log_rms(energy) for side, energy in zip(SIDES, lost, strict=True)}
    letters, share = _letters(bands.reshape(len(bands) // BAND, BAND, -1))
    return values | {
        "pixels": math.log(pixels),
        "letters": math.log1p(letters * pixels),
        "letters_share": share,
    }


def _lost(bands: np.ndarray, longest: int) -> list[float]:
    """The mean square that is lost when the longest side is made as small as each of SIDES.

    Measured at whole halvings and interpolated in between, so that it changes little where size does.
    """
    halvings = [min(max(0.0, math.log2(longest / side)), math.log2(BAND)) for side in SIDES]
    means = bands.astype(np.float32)
    means -= 128
    energies = [_square(means)] if halvings[-1] > 0 else []
    for _ in range(math.ceil(halvings[-1])):
        rows = means[::2] + means[1::2]
        means = (rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25)
        energies.append(_square(means))
    lost = [energies[0] - energy for energy in energies] + [0.0]
    return [
        lost[int(h)] + (h - int(h)) * (lost[int(h) + 1] - lost[int(h)]) if h > 0 else 0.0 for h in halvings
    ]


def _square(values: np.ndarray) -> float:
    return float(np.add.reduce(values * values, axis=None)) / values.size


def _letters(bands: np.ndarray) -> tuple[float, float]:
    """(letters per pixel, share of cells that look like print), of uint8 (bands, BAND, columns).

    In print, ink and paper take turns along rows and along columns, about as often as there are letters; so
    the product of both rates goes by the number of letters, whatever their size. A texture does so as well,
    but has many shades in between.
    """
    high, low = _by_cells(np.maximum, bands.max(1)), _by_cells(np.minimum, bands.min(1))
    span = high - low  # uint8 (bands, cells)
    middle, quarter = low + (span >> 1), span >> 2
    dark, between, light = (_for_pixels(one) for one in (middle - quarter, middle, middle + quarter))
    ink = (bands > between).view(np.uint8)
    across = np.zeros((len(bands), bands.shape[2]), np.uint8)
    across[:, 1:] = np.add.reduce(ink[:, :, 1:] ^ ink[:, :, :-1], axis=1, dtype=np.uint8)
    across[:, ::BAND] = 0  # cells have thresholds of their own
    down = np.add.reduce(ink[:, 1:] ^ ink[:, :-1], axis=1, dtype=np.uint8)
    clear = np.add.reduce((bands > light).view(np.uint8) | (bands < dark), axis=1, dtype=np.uint8)
    rates = [_by_cells(np.add, counts, np.int32) / np.float32(BAND**2) for counts in (across, down, clear)]
    alive = span > _CONTRAST
    density = alive * rates[0] * rates[1] * np.maximum(rates[2] - np.float32(0.5), 0)
    return float(density.mean()), float((alive & (rates[2] > _TEXT)).mean())


def _by_cells(how: np.ufunc, lines: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    """(bands, columns) -> (bands, cells)."""
    return how.reduce(lines.reshape(len(lines), -1, BAND), axis=2, dtype=dtype)


def _for_pixels(cells: np.ndarray) -> np.ndarray:
    """(bands, cells) -> (bands, 1, columns)."""
    return np.repeat(cells, BAND, axis=1)[:, None]
