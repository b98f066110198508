"""From an image to the tiles that the vision tower sees.

Knows Pillow, numpy and the model's M3Config; knows no torch. There are three ways, by `image_aspect_ratio`:

- "pad" (LLaVA-1.5): pad to a square with the mean colour, then resize: one tile.
- "anyres" (LLaVA-NeXT): a squeezed overview tile, then the image on the best-fitting canvas, cut into tiles.
- "square": resize the shortest side, crop the centre, as for CLIP: one tile.

Resampling is Pillow's bicubic on 8-bit pixels, so that pixels equal those of the authors' code. One
difference is intended: images that are 1 or 3 pixels high work. The authors' code takes such an array for one
with channels first, and fails or silently swaps axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from m3score.images.video import Frames
from m3score.models.m3.config import M3Config
from m3score.models.m3.ladder import Size

_LONGEST_PADDED_SIDE = 16_384
"""Longer images are shrunk before padding. Up to this length pixels equal those of the authors' code."""
_PIXELS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Tiles:
    """One preprocessed image."""

    pixel_values: np.ndarray
    """float32 (n, 3, image_size, image_size); of several tiles the overview comes first."""
    size: Size
    """(width, height) of the original image in pixels."""
    tiles: Size | None
    """(columns, rows) of tiles beside the overview; None for a single-grid image, or one grid per frame."""


def preprocess(image: Image.Image, config: M3Config) -> Tiles:
    """Cut, resize and normalise one RGB image.

    Args:
        image: mode RGB, any size.
        config: of the model.
    """
    if config.image_aspect_ratio == "anyres":
        canvas = best_canvas(image.size, config.image_grid_pinpoints)
        side = config.image_size
        pictures = [image.resize((side, side)), *_cut(_fit_on_canvas(image, canvas), side)]
        tiles = (canvas[0] // side, canvas[1] // side)
        return Tiles(_normalise(pictures, config), image.size, tiles)
    if config.image_aspect_ratio == "pad":
        picture = _pad_and_resize(image, config.image_size, config.image_mean)
    else:
        picture = _resize_and_crop(image, config.image_size)
    return Tiles(_normalise([picture], config), image.size, None)


def preprocess_frames(frames: Sequence[Image.Image], config: M3Config) -> Tiles:
    """Preprocess the frames of a video, in order, as one input with a grid per frame.

    For a model with several tiles, only the overview tile of each frame is used.
    """
    parts = [preprocess(frame, config).pixel_values[:1] for frame in frames]
    return Tiles(np.concatenate(parts), frames[0].size, None)


def tiles_in_worker(image: Image.Image | Frames, config: dict[str, Any]) -> tuple[Any, ...]:
    """Preprocess in a worker process (images/sandbox.py): `config` and result are plain values.

    Args:
        image: a picture, or the frames of a video.
        config: the fields of an M3Config.

    Returns:
        The fields of Tiles.
    """
    m3_config = M3Config(**config)
    tiles = (
        preprocess_frames(image.pictures, m3_config)
        if isinstance(image, Frames)
        else preprocess(image, m3_config)
    )
    return tiles.pixel_values, tiles.size, tiles.tiles


def tiles_from_worker(fields: tuple[Any, ...]) -> Tiles:
    """Tiles from what `tiles_in_worker` returned."""
    return Tiles(*fields)


def best_canvas(image: Size, canvases: Sequence[Size]) -> Size:
    """The canvas (width, height) that shows most pixels of the image; of equals, that which wastes fewest.

    Enlarging the image beyond its own pixels counts for nothing. Of remaining ties the first listed wins.
    """

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / image[0], canvas[1] / image[1])
        shown = int(image[0] * scale) * int(image[1] * scale)
        useful = min(shown, image[0] * image[1])
        return useful, useful - canvas[0] * canvas[1]

    return max(canvases, key=merit)


def _fit_on_canvas(image: Image.Image, canvas: Size) -> Image.Image:
    """Resize to fit, and centre on black. Sides are rounded up, as in the authors' code."""
    horizontal, vertical = canvas[0] / image.width, canvas[1] / image.height
    if horizontal < vertical:
        size = canvas[0], min(math.ceil(image.height * horizontal), canvas[1])
    else:
        size = min(math.ceil(image.width * vertical), canvas[0]), canvas[1]
    fitted = Image.new("RGB", canvas)
    fitted.paste(image.resize(size), ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2))
    return fitted


def _cut(canvas: Image.Image, side: int) -> list[Image.Image]:
    """Square tiles, row by row."""
    return [
        canvas.crop((left, top, left + side, top + side))
        for top in range(0, canvas.height, side)
        for left in range(0, canvas.width, side)
    ]


def _pad_and_resize(image: Image.Image, side: int, mean: Sequence[float]) -> Image.Image:
    """Centre the image on a square of the mean colour (truncated to 8 bits, not rounded), then resize.

    The square is made in strips. Pillow resizes rows first and then columns, so pixels are the same, and a
    long image needs no more memory than another.
    """
    image = _bounded(image)
    colour = tuple(int(channel * 255) for channel in mean)
    longest = max(image.size)
    left, top = (longest - image.width) // 2, (longest - image.height) // 2
    narrow = Image.new("RGB", (side, longest), colour)
    step = max(1, _PIXELS_AT_ONCE // longest)
    for start in range(0, image.height, step):
        rows = min(step, image.height - start)
        strip = Image.new("RGB", (longest, rows), colour)
        strip.paste(image.crop((0, start, image.width, start + rows)), (left, 0))
        narrow.paste(strip.resize((side, rows), Image.Resampling.BICUBIC), (0, top + start))
    return narrow.resize((side, side), Image.Resampling.BICUBIC)


def _bounded(image: Image.Image) -> Image.Image:
    """Shrink images whose square would be huge: 100000 x 1 pixels would make 10 billion."""
    longest = max(image.size)
    if longest <= _LONGEST_PADDED_SIDE:
        return image
    width, height = (max(1, round(length * _LONGEST_PADDED_SIDE / longest)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Resize the shortest side to `side`, then crop the centre."""
    shortest = min(image.size)
    width, height = (max(side, int(side * length / shortest)) for length in image.size)
    if (width, height) != image.size:
        # Only the part that is shown is resampled: a 1 x 10000 image must not become 336 x 3360000.
        return _resized_centre(image, (width, height), side)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _resized_centre(image: Image.Image, size: Size, side: int) -> Image.Image:
    if max(size) <= 8 * side:
        resized = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return resized.crop((left, top, left + side, top + side))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    scale = image.width / size[0], image.height / size[1]
    box = (left * scale[0], top * scale[1], (left + side) * scale[0], (top + side) * scale[1])
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box)


def _normalise(pictures: Sequence[Image.Image], config: M3Config) -> np.ndarray:
    """8-bit RGB pictures of one size -> float32 (n, 3, height, width), (value / 255 - mean) / std."""
    values = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    # A byte has 256 values: looking them up is ten times as fast as working out each pixel's.
    scaled = (np.arange(256, dtype=np.uint8) * (1 / 255)).astype(np.float32)[:, None]
    mean = np.asarray(config.image_mean, dtype=np.float32)
    std = np.asarray(config.image_std, dtype=np.float32)
    table = np.ascontiguousarray(((scaled - mean) / std).T)
    out = np.empty((len(values), 3, *values.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(table[channel], values[..., channel], out=out[:, channel], mode="clip")
    return out
