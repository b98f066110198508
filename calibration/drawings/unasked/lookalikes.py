"""Drawings without any text that are easily taken for it: textures, foliage, fences, windows, scribbles.

Each painter takes a generator and a side in pixels and gives an RGB picture. Knows no letters.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from m3score.calibration.drawings.backdrops import any_colour
from m3score.calibration.drawings.textures import random_texture


def contrasting(rng: np.random.Generator, colour: tuple[int, ...]) -> tuple[int, ...]:
    """A colour that stands out from another: mostly clearly, now and then hardly."""
    luma = np.array([0.299, 0.587, 0.114])
    least = 90 if rng.random() < 0.7 else 40
    away = 255 if luma @ np.array(colour[:3]) < 128 else 0
    other = np.array(any_colour(rng), float)
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        mixed = share * other + (1 - share) * away
        if abs(luma @ (mixed - np.array(colour[:3]))) >= least:
            break
    return tuple(int(v) for v in mixed)


def _plain(rng: np.random.Generator, side: int) -> Image.Image:
    corners = np.array(any_colour(rng)) + rng.normal(0, 30, (2, 2, 3)) * (rng.random() < 0.6)
    small = Image.fromarray(np.clip(corners, 0, 255).astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BILINEAR)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def texture(rng: np.random.Generator, side: int) -> Image.Image:
    """Random, and everywhere alike."""
    return random_texture(rng, side)


def stripes(rng: np.random.Generator, side: int) -> Image.Image:
    """Bars, checks or waves, straight or bent."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), _log_uniform(rng, 3, 60)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    u = u + rng.uniform(0, 2) * period * np.sin(v / _log_uniform(rng, 10, 120)) * (rng.random() < 0.4)
    wave = np.sin(2 * np.pi * u / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * v / (period * rng.uniform(0.5, 3)))
    if rng.random() < 0.5:
        wave = np.sign(wave + rng.uniform(-0.7, 0.7))
    base, other = np.array(any_colour(rng)), np.array(any_colour(rng))
    mixed = base + (other - base) * (wave[..., None] + 1) / 2
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def leaves(rng: np.random.Generator, side: int) -> Image.Image:
    """Blades, leaves or pebbles in layers: many alike, light and dark."""
    image = _plain(rng, side)
    brush = ImageDraw.Draw(image)
    base, size = np.array(any_colour(rng), float), _log_uniform(rng, 3, 40)
    turn, spread = rng.uniform(0, np.pi), rng.uniform(0.1, 3)
    long = rng.uniform(0.5, 6)
    for _ in range(int(min(3000, 1.5 * (side / size) ** 2))):
        x, y = rng.uniform(0, side, 2)
        angle, scale = turn + rng.normal(0, spread), size * rng.uniform(0.5, 1.5)
        along = scale * np.array([np.cos(angle), np.sin(angle)]) * long / 2
        across = scale * np.array([-np.sin(angle), np.cos(angle)]) / 2
        points = np.array([x, y]) + np.stack([along, across, -along, -across])
        colour = np.clip(base * rng.uniform(0.3, 1.3) + rng.normal(0, 12, 3), 0, 255)
        brush.polygon([tuple(p) for p in points], fill=tuple(int(c) for c in colour))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))


def ripples(rng: np.random.Generator, side: int) -> Image.Image:
    """Water, sand, gravel, lawns: long, mostly level flecks that get finer upwards, or one of their kind."""
    length, step = rng.uniform(1.5, 9), _log_uniform(rng, 2, 20)
    rows, columns = np.fft.fftfreq(2 * side), np.fft.rfftfreq(2 * side)
    turn = rng.normal(0, 0.15)
    along = np.cos(turn) * columns[None] + np.sin(turn) * rows[:, None]
    across = np.cos(turn) * rows[:, None] - np.sin(turn) * columns[None]
    frequency = np.hypot(along * length, across) * step
    strength = frequency ** rng.uniform(0, 2) * np.exp(-(frequency**2))
    waves = (rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)) * strength
    field = np.fft.irfft2(waves, s=(2 * side, 2 * side))
    field /= field.std()
    far = rng.uniform(1, 2.5) if rng.random() < 0.6 else 1.0
    places = ((np.arange(side) / side) ** (1 / far) * side).astype(int)
    field = field[places][:, :side]
    if rng.random() < 0.5:  # glints, or shadows, on a still surface
        field = np.maximum(field - rng.uniform(-0.5, 1.5), 0) * rng.choice([-1.5, 1.5])
    field = np.sign(field) * np.abs(field) ** rng.uniform(0.5, 1.5)
    base = np.asarray(_plain(rng, side), float)
    mixed = base + _log_uniform(rng, 10, 90) * field[..., None] * rng.uniform(0.6, 1.2, 3)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def strokes(rng: np.random.Generator, side: int) -> Image.Image:
    """Scribbles, hair, cracks, twigs: bent lines of one pen."""
    image = backdrop(rng, side) if rng.random() < 0.4 else _plain(rng, side)
    brush = ImageDraw.Draw(image)
    ink = any_colour(rng)
    width, bend, step = int(rng.integers(1, 5)), rng.uniform(0.05, 1.2), _log_uniform(rng, 2, 12)
    turn, spread = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 3)
    for _ in range(int(_log_uniform(rng, 5, 250))):
        count = int(rng.integers(4, 40))
        angles = turn + rng.normal(0, spread) + np.cumsum(rng.normal(0, bend, count))
        steps = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        path = rng.uniform(0, side, 2) + step * np.cumsum(steps, axis=0)
        brush.line([tuple(p) for p in path], fill=ink, width=width)
    return image


def grid(rng: np.random.Generator, side: int) -> Image.Image:
    """Windows, bricks, keys, tiles, fences: rows of small boxes."""
    image = _plain(rng, side)
    brush = ImageDraw.Draw(image)
    wide, high = _log_uniform(rng, 3, 50), _log_uniform(rng, 3, 50)
    if rng.random() < 0.2:
        high = side
    gap_x, gap_y = wide * rng.uniform(0.1, 1.5), min(high, 40) * rng.uniform(0.1, 1.5)
    shift, missing, jitter = rng.random() < 0.3, rng.choice([0, 0, 0.2, 0.5]), rng.choice([0, 0, 0.1, 0.3])
    colours = [any_colour(rng) for _ in range(int(rng.integers(1, 4)))]
    round_boxes = rng.random() < 0.25
    for row, y in enumerate(np.arange(-high / 2, side, high + gap_y)):
        for x in np.arange(-wide, side, wide + gap_x) + (shift and row % 2) * wide / 2:
            if rng.random() < missing:
                continue
            dx, dy = rng.normal(0, jitter, 2) * (wide, min(high, wide))
            box = (x + dx, y + dy, x + dx + wide * (1 + abs(dx) / wide), y + dy + high)
            draw = brush.ellipse if round_boxes else brush.rectangle
            draw(box, fill=colours[int(rng.integers(len(colours)))])
    return image.rotate(float(rng.normal(0, 8)), Image.Resampling.BICUBIC) if rng.random() < 0.5 else image


def clutter(rng: np.random.Generator, side: int) -> Image.Image:
    """Overlapping shapes of all sizes, some with texture: things, and their edges."""
    image = _plain(rng, side)
    smallest = _log_uniform(rng, 3, 30)
    sizes = np.minimum(smallest * (1 - rng.random(int(rng.integers(20, 300)))) ** -0.6, side / 2)
    for size in np.sort(sizes)[::-1]:
        x, y = rng.uniform(0, side, 2)
        mask = Image.new("L", (side, side), 0)
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        points = [(x + size * np.cos(t), y + size * np.sin(t) * rng.uniform(0.3, 1)) for t in turns]
        kind = rng.random()
        if size > 40 and kind < 0.4:
            ImageDraw.Draw(mask).polygon(points, fill=255)
            inner = LOOKALIKES[int(rng.integers(4))](rng, side)
            image.paste(inner, (0, 0), mask)
        elif kind < 0.7:
            ImageDraw.Draw(image).polygon(points, fill=any_colour(rng))
        else:
            box = (x, y, x + size, y + size * rng.uniform(0.3, 1.5))
            ImageDraw.Draw(image).ellipse(box, fill=any_colour(rng), outline=any_colour(rng))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1))) if rng.random() < 0.5 else image


def plot(rng: np.random.Generator, side: int) -> Image.Image:
    """Lines, dashes, dots, hatching, crosses: a chart or map whose words are gone."""
    image = _plain(rng, side)
    brush = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        ink, width = any_colour(rng), int(rng.integers(1, 4))
        start, end = rng.uniform(0, side, (2, 2))
        if rng.random() < 0.5:
            start[0], end[0] = (start[0], start[0]) if rng.random() < 0.5 else (0, side)
            end[1] = end[1] if start[0] == end[0] else start[1]
        places = np.linspace(0, 1, max(2, int(np.hypot(*(end - start)) / _log_uniform(rng, 3, 30))))
        points = start + (end - start) * places[:, None]
        kind, r = rng.random(), _log_uniform(rng, 1, 8)
        if kind < 0.35:
            brush.line([tuple(start), tuple(end)], fill=ink, width=width)
        elif kind < 0.6:
            for a, b in zip(points[::2], points[1::2], strict=False):
                brush.line([tuple(a), tuple(b)], fill=ink, width=width)
        elif kind < 0.8:
            for x, y in points + rng.normal(0, rng.choice([0, 20]), points.shape):
                brush.ellipse((x - r, y - r, x + r, y + r), fill=ink)
        else:
            for x, y in points:
                brush.line((x - r, y - r, x + r, y + r), fill=ink, width=width)
                brush.line((x - r, y + r, x + r, y - r), fill=ink, width=width)
    return image


def backdrop(rng: np.random.Generator, side: int) -> Image.Image:
    """Anything without text."""
    painter = (_plain, _plain, *LOOKALIKES)[int(rng.integers(2 + len(LOOKALIKES)))]
    return painter(rng, side)


LOOKALIKES = (texture, stripes, leaves, ripples, strokes, grid, clutter, plot, ripples, leaves, strokes)
"""What is no text, however much it may look like it; what fools more comes twice."""
