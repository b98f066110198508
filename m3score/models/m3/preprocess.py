"""From a picture to the tiles that the vision tower sees.

Knows Pillow, numpy and the settings of a model; knows no torch. Three ways, by `image_aspect_ratio`:

- "pad" (LLaVA-1.5): padded to a square with the mean colour, then resized: one tile.
- "anyres" (LLaVA-NeXT): a squeezed overview tile, then the image on the best-fitting canvas, cut into tiles.
- "square": shortest side resized, centre cropped, as CLIP was trained: one tile.

Resampling is Pillow's bicubic on 8-bit pixels, so that pixels equal those of the authors' stack. One
difference is meant: an image 1 or 3 pixels high is an image here like any other, while the authors' stack
takes such an array for one with its channels first, and fails or silently swaps axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from m3score.models.m3.config import M3Settings
from m3score.models.m3.ladder import Size

_LONGEST_PADDED_SIDE = 16_384
"""Longer images are shrunk before they are padded to a square; up to here pixels equal the authors'."""
_PIXELS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Tiles:
    """One preprocessed image."""

    pixel_values: np.ndarray
    """float32 (n, 3, image_size, image_size); with several tiles the overview comes first."""
    size: Size
    """(width, height) of the original image in pixels."""
    tiles: Size | None
    """(columns, rows) of tiles beside the overview; None for a single-grid image, or one grid per frame."""


def preprocess(image: Image.Image, settings: M3Settings) -> Tiles:
    """Cut, resize and normalise one RGB image.

    Args:
        image: mode RGB, any size.
        settings: the model's image handling.
    """
    if settings.image_aspect_ratio == "anyres":
        canvas = best_canvas(image.size, settings.image_grid_pinpoints)
        side = settings.image_size
        pictures = [image.resize((side, side)), *_cut(_fit_on_canvas(image, canvas), side)]
        tiles = (canvas[0] // side, canvas[1] // side)
        return Tiles(_normalise(pictures, settings), image.size, tiles)
    if settings.image_aspect_ratio == "pad":
        picture = _pad_and_resize(image, settings.image_size, settings.image_mean)
    else:
        picture = _resize_and_crop(image, settings.image_size)
    return Tiles(_normalise([picture], settings), image.size, None)


def preprocess_frames(frames: Sequence[Image.Image], settings: M3Settings) -> Tiles:
    """Several RGB pictures as one input with a grid for each: frames of a video, in their order.

    A model of several tiles gets its overview tile of each.
    """
    parts = [preprocess(frame, settings).pixel_values[:1] for frame in frames]
    return Tiles(np.concatenate(parts), frames[0].size, None)


def best_canvas(image: Size, canvases: Sequence[Size]) -> Size:
    """The canvas (width, height) that shows the most pixels of the image, then the one that wastes fewest.

    What the image has is the limit: enlarging gains nothing. Of equals, the first listed wins.
    """

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / image[0], canvas[1] / image[1])
        shown = int(image[0] * scale) * int(image[1] * scale)
        useful = min(shown, image[0] * image[1])
        return useful, useful - canvas[0] * canvas[1]

    return max(canvases, key=merit)


def _fit_on_canvas(image: Image.Image, canvas: Size) -> Image.Image:
    """Resize, keeping the aspect ratio, and centre on black. Sides are rounded up, as the authors do."""
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

    The square itself never exists, only strips of it: Pillow resizes rows first and columns then, so pixels
    are the same, and a long image takes no more memory than another.
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
    """Shrink what would become a monstrous square: 100000 x 1 pixels are few, their square are 10 billion."""
    longest = max(image.size)
    if longest <= _LONGEST_PADDED_SIDE:
        return image
    width, height = (max(1, round(length * _LONGEST_PADDED_SIDE / longest)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    """Shortest side to `side`, then the centre square."""
    shortest = min(image.size)
    width, height = (max(side, int(side * length / shortest)) for length in image.size)
    if (width, height) != image.size:
        # Only the shown part is resampled: a 1 x 10000 image must not become 336 x 3360000.
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


def _normalise(pictures: Sequence[Image.Image], settings: M3Settings) -> np.ndarray:
    """8-bit RGB pictures of one size -> float32 (n, 3, height, width), (value / 255 - mean) / std."""
    values = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
    # A byte has 256 values: looking them up is ten times as fast as working out each pixel's.
    scaled = (np.arange(256, dtype=np.uint8) * (1 / 255)).astype(np.float32)[:, None]
    mean = np.asarray(settings.image_mean, dtype=np.float32)
    std = np.asarray(settings.image_std, dtype=np.float32)
    table = np.ascontiguousarray(((scaled - mean) / std).T)
    out = np.empty((len(values), 3, *values.shape[1:3]), np.float32)
    for channel in range(3):
        np.take(table[channel], values[..., channel], out=out[:, channel], mode="clip")
    return out
