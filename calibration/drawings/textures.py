"""Pictures of nothing: one colour, a gradient, and random textures that are everywhere alike.

For m3score/models/vision/whitening.py: how much a model's features vary over a picture that shows nothing is
no complexity. Knows colours and noise.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def blank(rng: np.random.Generator, side: int) -> Image.Image:
    """One colour: any, a grey, or one near the mean colour of photographs."""
    kind = rng.random()
    if kind < 0.4:
        colour = rng.uniform(0, 255, 3)
    elif kind < 0.6:
        colour = np.full(3, rng.uniform(0, 255))
    else:
        colour = np.array([122, 116, 104]) + rng.normal(0, 20) + rng.normal(0, 14, 3) * (rng.random() < 0.6)
    return Image.new("RGB", (side, side), tuple(int(v) for v in np.clip(colour, 0, 255)))


def gradient(rng: np.random.Generator, side: int) -> Image.Image:
    """From one colour to another, to its like, or from dark to light, along any direction."""
    start, end = rng.uniform(0, 255, (2, 3))
    kind = rng.random()
    if kind < 0.3:
        end = start + rng.normal(0, 25, 3)
    elif kind < 0.6:  # what varies most: from one end of the scale to the other
        start, end = rng.uniform(0, 20, 3), rng.uniform(235, 255, 3)
    if rng.random() < 0.3:
        start[:], end[:] = start[0], end[0]
    angle = rng.uniform(0, 2 * np.pi) if rng.random() < 0.6 else rng.integers(4) * np.pi / 2
    y, x = np.mgrid[0:side, 0:side]
    along = np.cos(angle) * x + np.sin(angle) * y
    along = (along - along.min()) / np.ptp(along)
    return _picture(start + (end - start) * along[..., None])


def random_texture(rng: np.random.Generator, side: int) -> Image.Image:
    """Noise of one kind all over: blocks of random brightness or colour, or a spectrum with random phases."""
    channels = 1 if rng.random() < 0.5 else 3
    field = _blocks(rng, side, channels) if rng.random() < 0.5 else _spectrum(rng, side, channels)
    base = rng.uniform(0, 255, 3) if rng.random() < 0.7 else np.full(3, 128.0)
    tint = rng.uniform(0.5, 1.2, 3) if rng.random() < 0.5 else np.ones(3)
    return _picture(base + np.exp(rng.uniform(np.log(8), np.log(80))) * field * tint)


def _blocks(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """(side, side, channels) of unit variance, alike within squares of 1 to 13 pixels a side."""
    block = float(np.exp(rng.uniform(0, np.log(14))))
    count = int(side / block) + 3
    values = (
        rng.normal(size=(count, count, channels))
        if rng.random() < 0.5
        else rng.uniform(-1.7, 1.7, (count, count, channels))
    )
    rows, columns = (((np.arange(side) + start) / block).astype(int) for start in rng.uniform(0, block, 2))
    return values[rows][:, columns]


def _spectrum(rng: np.random.Generator, side: int, channels: int) -> np.ndarray:
    """(side, side, channels) of unit variance: a falling spectrum cut off below 1/28, or a band."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    if rng.random() < 0.5:
        strength = np.maximum(frequency, 1 / 28) ** -rng.uniform(0, 1.5)
    else:
        middle, width = np.exp(rng.uniform(np.log(1 / 24), np.log(0.4))), rng.uniform(0.15, 0.6)
        strength = np.exp(-(np.log(np.maximum(frequency, 1e-4) / middle) ** 2) / (2 * width**2))
    shape = (channels, *frequency.shape)
    waves = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) * strength
    waves[:, 0, 0] = 0
    field = np.fft.irfft2(waves, s=(side, side)).transpose(1, 2, 0)
    return field / field.std()
