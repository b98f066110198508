"""Backgrounds of drawings, and painters of scenes that are nothing else: noise, leaves, textures.

The structured ones follow the families that Baradad et al. 2021 (Learning to See by Looking at Noise,
arXiv 2106.05963) found to teach features that carry over to photographs.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from m3score.calibration.drawings.canvas import (
    COLOUR_NAMES,
    COLOURS,
    SIZE,
    Canvas,
    coloured_class,
    plain_class,
)


def any_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def shade(rng: np.random.Generator, colour: str, spread: int = 18) -> tuple[int, int, int]:
    """A random shade of a named colour, so that a name covers a neighbourhood and not a point."""
    red, green, blue = np.clip(np.array(COLOURS[colour]) + rng.integers(-spread, spread + 1, 3), 0, 255)
    return int(red), int(green), int(blue)


def contrast(rng: np.random.Generator, colour: tuple[int, ...]) -> tuple[int, int, int]:
    """A colour that stands out from `colour`."""
    grey = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    for _ in range(20):
        other = any_colour(rng) if rng.random() < 0.6 else ((15, 15, 15) if grey > 128 else (245, 245, 245))
        if abs(0.3 * other[0] + 0.59 * other[1] + 0.11 * other[2] - grey) > 85:
            return other
    return (0, 0, 0) if grey > 128 else (255, 255, 255)


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def _stretched(values: np.ndarray) -> Image.Image:
    return _to_image(values).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def flat(rng: np.random.Generator, base: np.ndarray) -> Image.Image:
    red, green, blue = (int(v) for v in base)
    return Image.new("RGB", (SIZE, SIZE), (red, green, blue))


def gradient(rng: np.random.Generator, base: np.ndarray) -> Image.Image:
    corners = base + rng.normal(0, 40, (2, 2, 3))
    return _stretched(corners)


def noise(rng: np.random.Generator, base: np.ndarray) -> Image.Image:
    side = int(rng.choice([24, 56, 112, 168, 336]))
    return _stretched(base + rng.normal(0, rng.uniform(5, 30), (side, side, 1)))


def texture(rng: np.random.Generator, base: np.ndarray) -> Image.Image:
    """Stripes, checks or waves of two shades."""
    y, x = np.mgrid[0:168, 0:168].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(3, 30)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    wave = np.sin(2 * np.pi * u / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * v / period)
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return _stretched(base + wave[..., None] * rng.uniform(8, 35) + np.zeros(3))


def clutter(rng: np.random.Generator, base: np.ndarray) -> Image.Image:
    image = flat(rng, base)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 40))):
        x, y = rng.integers(0, SIZE, 2)
        w, h = rng.integers(3, 60, 2)
        red, green, blue = (int(v) for v in np.clip(base + rng.normal(0, 35, 3), 0, 255))
        if rng.random() < 0.5:
            draw.line((x, y, x + w - 30, y + h - 30), fill=(red, green, blue), width=int(rng.integers(1, 5)))
        else:
            draw.ellipse((x, y, x + w, y + h), fill=(red, green, blue))
    return image


BACKDROPS = (flat, gradient, noise, texture, clutter)


def paint_backdrop(canvas: Canvas, *, plain: float = 0.4) -> np.ndarray:
    """Fill the picture with a backdrop; returns its base colour (3,). `plain`: probability of a flat one."""
    rng = canvas.rng
    base = (
        np.array(any_colour(rng))
        if rng.random() < 0.6
        else rng.choice([245.0, 225.0, 30.0, 128.0]) + np.zeros(3)
    )
    painter = flat if rng.random() < plain else BACKDROPS[int(rng.integers(1, len(BACKDROPS)))]
    canvas.image = painter(rng, base)
    return base


def power_noise(canvas: Canvas) -> str:
    """Coloured 1/f^a noise: clouds for a large exponent, grit for a small one. Returns its description."""
    rng = canvas.rng
    exponent = rng.uniform(0.4, 2.2)
    frequency = np.hypot(np.fft.fftfreq(168)[:, None], np.fft.rfftfreq(168)[None, :])
    frequency[0, 0] = 1.0
    spectrum = rng.normal(size=(3, 168, 85)) + 1j * rng.normal(size=(3, 168, 85))
    field = np.fft.irfft2(spectrum / frequency**exponent, s=(168, 168))
    field /= field.std(axis=(1, 2), keepdims=True)
    mix = rng.normal(0, 1, (3, 3)) * 20 + 25
    canvas.image = _stretched(np.einsum("cd,dxy->xyc", mix, field) + np.array(any_colour(rng)) * 0.6 + 50)
    return "smooth clouds" if exponent > 1.3 else "rough noise"


def dead_leaves(canvas: Canvas) -> str:
    """Textured shapes of all sizes that hide each other. Returns their description."""
    rng = canvas.rng
    paint_backdrop(canvas)
    draw = ImageDraw.Draw(canvas.image)
    smallest = float(rng.choice([8, 20, 45]))
    for size in sorted(np.minimum(smallest * (1 - rng.random(int(rng.integers(15, 90)))) ** -0.7, 170))[::-1]:
        x, y = rng.uniform(0, SIZE, 2)
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        points = np.stack([x + size * np.cos(turns), y + size * np.sin(turns)], axis=1)
        canvas.mark("objects", "polygon", points, plain_class("leaf"))
        colour = any_colour(rng)
        draw.polygon([tuple(p) for p in points.tolist()], fill=colour)
        if rng.random() < 0.3:
            darker = tuple(int(c * 0.7) for c in colour)
            for step in np.linspace(-0.7, 0.7, 5):
                draw.line((x - size, y + step * size, x + size, y + step * size), fill=darker)
    return "overlapping leaves"


def fractal(canvas: Canvas) -> str:
    """The attractor of a few random affine maps, plotted as points. Returns its description."""
    rng = canvas.rng
    base = paint_backdrop(canvas)
    maps = rng.uniform(-1, 1, (int(rng.integers(2, 5)), 2, 3))
    maps[:, :, :2] *= (
        0.75 / np.maximum(np.linalg.norm(maps[:, :, :2], ord=2, axis=(1, 2)), 0.75)[:, None, None]
    )
    points = rng.uniform(-1, 1, (6000, 2))
    for _ in range(12):
        chosen = maps[rng.integers(0, len(maps), len(points))]
        points = np.einsum("nij,nj->ni", chosen[:, :, :2], points) + chosen[:, :, 2]
    low, high = points.min(0), points.max(0)
    pixels = ((points - low) / np.maximum(high - low, 1e-6) * (SIZE - 20) + 10).astype(int)
    picture = np.array(canvas.image)
    picture[pixels[:, 1], pixels[:, 0]] = any_colour(rng) if rng.random() < 0.7 else 255 - base
    canvas.image = Image.fromarray(picture)
    return "a fractal"


def stripes(canvas: Canvas) -> str:
    """Stripes, checks or waves all over the picture. Returns their description."""
    base = np.array(any_colour(canvas.rng), dtype=float)
    canvas.image = texture(canvas.rng, base)
    return "a texture"


def regions(canvas: Canvas) -> tuple[str, int]:
    """A Voronoi diagram of up to six clearly different colours. Returns its description and their number."""
    rng = canvas.rng
    count = int(rng.integers(1, 7))
    names = [str(name) for name in rng.choice(COLOUR_NAMES, count, replace=False)]
    while True:
        seeds = rng.uniform(20, SIZE - 20, (count, 2))
        gaps = np.linalg.norm(seeds[:, None] - seeds[None], axis=2) + 999 * np.eye(count)
        if gaps.min() > 80:
            break
    y, x = np.mgrid[0:SIZE:2, 0:SIZE:2].astype(np.float32)
    owner = np.argmin([(x - sx) ** 2 + (y - sy) ** 2 for sx, sy in seeds], axis=0)
    table = np.array([shade(rng, name) for name in names], dtype=np.uint8)
    canvas.image = Image.fromarray(table[owner]).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    classes = np.array([coloured_class("region", name) + 1 for name in names], dtype=np.uint8)
    small = Image.fromarray(classes[owner])
    canvas.objects = small.resize(canvas.objects.size, Image.Resampling.NEAREST)
    for name, index in zip(names, range(count), strict=True):
        rows, columns = np.nonzero(owner == index)
        canvas.centres.append((coloured_class("region", name), 2 * columns.mean(), 2 * rows.mean()))
    return ("a plane in one colour" if count == 1 else f"{count} coloured regions"), count


NATURAL = (power_noise, dead_leaves, fractal, stripes)
