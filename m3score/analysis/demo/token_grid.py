"""A picture under the grid of a model's visual tokens at one scale.

Knows how pictures are preprocessed (preprocess.py) and grids pooled (ladder.py); runs no model. The mosaic
averages colours cell by cell. The model averages features, so the mosaic only resembles what it sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from m3score.models.m3.config import M3Config
from m3score.models.m3.ladder import Size, pool_kernel
from m3score.models.m3.preprocess import best_canvas

_LONGEST = 576
"""Longest side of the result in pixels, before it is rounded to whole cells."""


@dataclass(frozen=True)
class Layout:
    """Where a model's grid is on a picture."""

    box: tuple[float, float, float, float]
    """(left, top, right, bottom) of the grid in the picture's pixels; it may reach beyond the picture."""
    tiles: Size
    """(columns, rows) of tiles that share the box; (1, 1) for a single grid."""


def layout(image: Size, config: M3Config) -> Layout:
    """Where a model's finest grid is on a picture of (width, height) pixels.

    With several tiles, the overview tile (the whole picture once more, squeezed) is left out.
    """
    width, height = image
    if config.image_aspect_ratio == "anyres":
        canvas = best_canvas(image, config.image_grid_pinpoints)
        scale = min(canvas[0] / width, canvas[1] / height)
        covered = canvas[0] / scale, canvas[1] / scale
        tiles = canvas[0] // config.image_size, canvas[1] // config.image_size
    else:
        side = float(max(image) if config.image_aspect_ratio == "pad" else min(image))
        covered, tiles = (side, side), (1, 1)
    left, top = (width - covered[0]) / 2, (height - covered[1]) / 2
    return Layout((left, top, left + covered[0], top + covered[1]), tiles)


def render_token_grid(
    image: Image.Image, config: M3Config, tokens: int
) -> tuple[Image.Image, Image.Image, Size]:
    """Draw a picture under its grid of visual tokens, and as a mosaic of them.

    Args:
        image: mode RGB.
        config: the model's image handling.
        tokens: visual tokens per grid.

    Returns:
        The picture with lines between the cells; the mosaic, which has the same size; and (columns, rows) of
        cells, including cells on padding.
    """
    laid = layout(image.size, config)
    kernel = pool_kernel(tokens, config.grid)
    side = config.grid // kernel
    columns, rows = laid.tiles[0] * side, laid.tiles[1] * side
    cell = max(1, round(_LONGEST / max(columns, rows)))
    whole = _shown(image, laid, config, (columns * cell, rows * cell))
    mosaic = whole.resize((columns, rows), Image.Resampling.BOX).resize(whole.size, Image.Resampling.NEAREST)
    return _ruled(whole, cell, side), mosaic, (columns, rows)


def _shown(image: Image.Image, laid: Layout, config: M3Config, size: Size) -> Image.Image:
    """The part of the picture in the grid's box, resized; padding has the colour that the model gets."""
    left, top, right, bottom = laid.box
    padding = (0, 0, 0)
    if config.image_aspect_ratio == "pad":
        red, green, blue = (int(channel * 255) for channel in config.image_mean)
        padding = (red, green, blue)
    shown = Image.new("RGB", size, padding)
    inside = max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height)
    scale = size[0] / (right - left), size[1] / (bottom - top)
    place = [round((value - (left, top)[i % 2]) * scale[i % 2]) for i, value in enumerate(inside)]
    part = max(1, place[2] - place[0]), max(1, place[3] - place[1])
    shown.paste(image.resize(part, Image.Resampling.LANCZOS, box=inside), (place[0], place[1]))
    return shown


def _ruled(picture: Image.Image, cell: int, side: int) -> Image.Image:
    """Draw white lines on black between cells, visible on any picture; wider ones between tiles."""
    lines = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(lines)
    dark, light = (0, 0, 0, 150), (255, 255, 255, 190)
    if cell < 32:  # many lines must not hide the picture
        dark, light = (0, 0, 0, 40), (255, 255, 255, 110)
    for axis, length in enumerate(picture.size):
        for number, at in enumerate(range(0, length + 1, cell)):
            wide = 1 if number % side else 2
            at = min(max(at, wide), length - wide)
            for colour, start, stop in ((dark, at - wide - 1, at + wide), (light, at - wide, at + wide - 1)):
                ends = (start, 0, stop, picture.height) if axis == 0 else (0, start, picture.width, stop)
                draw.rectangle(ends, fill=colour)
    return Image.alpha_composite(picture.convert("RGBA"), lines).convert("RGB")
