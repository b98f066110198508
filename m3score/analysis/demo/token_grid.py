"""What a model sees of a picture at one scale: the grid of its visual tokens, laid over the picture.

Knows how pictures are laid out for a model (preprocess.py) and grids pooled (ladder.py); runs no model. The
mosaic averages colours cell by cell. The model averages features, so this is a likeness, not a window.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from m3score.models.m3.config import M3Settings
from m3score.models.m3.ladder import Size, pool_kernel
from m3score.models.m3.preprocess import best_canvas

_LONGEST = 576
"""Side of a glimpse in pixels, before it is rounded to whole cells."""


@dataclass(frozen=True)
class Layout:
    """Where a model's grid lies on a picture."""

    box: tuple[float, float, float, float]
    """(left, top, right, bottom) of what the grid covers, in the picture's pixels, padding included."""
    tiles: Size
    """(columns, rows) of tiles that share the box; (1, 1) for a single grid."""


def layout(image: Size, settings: M3Settings) -> Layout:
    """Where the finest grid of a model lies on a picture of (width, height) pixels.

    With several tiles the overview, which shows the whole picture once more, squeezed, is left out.
    """
    width, height = image
    if settings.image_aspect_ratio == "anyres":
        canvas = best_canvas(image, settings.image_grid_pinpoints)
        scale = min(canvas[0] / width, canvas[1] / height)
        covered = canvas[0] / scale, canvas[1] / scale
        tiles = canvas[0] // settings.image_size, canvas[1] // settings.image_size
    else:
        side = float(max(image) if settings.image_aspect_ratio == "pad" else min(image))
        covered, tiles = (side, side), (1, 1)
    left, top = (width - covered[0]) / 2, (height - covered[1]) / 2
    return Layout((left, top, left + covered[0], top + covered[1]), tiles)


def glimpses(image: Image.Image, settings: M3Settings, tokens: int) -> tuple[Image.Image, Image.Image, Size]:
    """A picture under its grid of visual tokens, and as a mosaic of them.

    Args:
        image: mode RGB.
        settings: the model's image handling.
        tokens: visual tokens per grid.

    Returns:
        The picture with lines between the cells, the mosaic, both of the same size, and how many (columns,
        rows) of cells there are, those on padding included.
    """
    laid = layout(image.size, settings)
    kernel = pool_kernel(tokens, settings.grid)
    side = settings.grid // kernel
    columns, rows = laid.tiles[0] * side, laid.tiles[1] * side
    cell = max(1, round(_LONGEST / max(columns, rows)))
    whole = _shown(image, laid, settings, (columns * cell, rows * cell))
    mosaic = whole.resize((columns, rows), Image.Resampling.BOX).resize(whole.size, Image.Resampling.NEAREST)
    return _ruled(whole, cell, side), mosaic, (columns, rows)


def _shown(image: Image.Image, laid: Layout, settings: M3Settings, size: Size) -> Image.Image:
    """What lies in the grid's box, at the wanted size; padding has the colour that the model is given."""
    left, top, right, bottom = laid.box
    padding = (0, 0, 0)
    if settings.image_aspect_ratio == "pad":
        red, green, blue = (int(channel * 255) for channel in settings.image_mean)
        padding = (red, green, blue)
    shown = Image.new("RGB", size, padding)
    inside = max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height)
    scale = size[0] / (right - left), size[1] / (bottom - top)
    place = [round((value - (left, top)[i % 2]) * scale[i % 2]) for i, value in enumerate(inside)]
    part = max(1, place[2] - place[0]), max(1, place[3] - place[1])
    shown.paste(image.resize(part, Image.Resampling.LANCZOS, box=inside), (place[0], place[1]))
    return shown


def _ruled(picture: Image.Image, cell: int, side: int) -> Image.Image:
    """Lines between cells: white on black, so that they show on anything; tiles are parted by wider ones."""
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
