"""A 336x336 picture, and a record of what was drawn in every 14x14 patch.

Every element is drawn twice: on the picture, and on small class maps (4x4 cells per patch). The maps give
the dense labels that train the vision tower of a small M3, long before answers alone could teach it. Knows
nothing about questions; the painters (shapes.py, text.py) ask those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = 336
PATCH = 14
GRID = SIZE // PATCH
CELLS = 4
"""Cells of the class maps along a patch side: coverage is known in sixteenths of a patch."""
_MAP = GRID * CELLS

CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SLOTS = 6
"""A word or number has at most this many characters; a character's slot is its place in the word."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 36),
    "orange": (245, 134, 24),
    "yellow": (247, 218, 42),
    "green": (44, 158, 62),
    "blue": (36, 84, 206),
    "purple": (126, 50, 168),
    "pink": (246, 138, 186),
    "brown": (124, 76, 38),
    "black": (18, 18, 20),
    "gray": (128, 128, 130),
    "white": (246, 246, 246),
}
COLOUR_NAMES = tuple(COLOURS)

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURED = (*SHAPES, "bar", "region")
"""Object kinds that have a class per colour."""
KEYS = ("NAME", "DATE", "TOTAL", "CITY", "CODE", "ITEM", "ROOM", "PAGE")
PLAIN = ("board", "page", "line", "axis", "leaf", "clutter", *(f"key {key}" for key in KEYS))

GLYPH_CLASSES = len(CHARS) * SLOTS
OBJECT_CLASSES = len(COLOURED) * len(COLOURS) + len(PLAIN)
CENTRE_CLASSES = len(COLOURED) * len(COLOURS)
PIXEL_CHANNELS = 6
LABEL_WIDTH = GLYPH_CLASSES + OBJECT_CLASSES + CENTRE_CLASSES + PIXEL_CHANNELS
"""Numbers for one patch: coverage per (character, slot) and per object, centres, and pixel statistics."""


def coloured_class(kind: str, colour: str) -> int:
    """Index of an object kind in a colour, below CENTRE_CLASSES."""
    return COLOURED.index(kind) * len(COLOURS) + COLOUR_NAMES.index(colour)


def plain_class(kind: str) -> int:
    """Index of an object kind whose colour does not matter."""
    return CENTRE_CLASSES + PLAIN.index(kind)


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own typeface: its outlines, and so the pictures, are the same on every machine.
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: drawn images need it.")
    return font


@lru_cache(maxsize=2048)
def _cap_size(height: int) -> int:
    """The font size at which capitals are `height` pixels high."""
    size = max(4, round(height / 0.72))
    while size > 4 and _font(size).getbbox("H")[3] - _font(size).getbbox("H")[1] > height:
        size -= 1
    return size


@dataclass
class Word:
    """A rendered word: its mask, and where each character begins and ends in it, in pixels."""

    text: str
    mask: Image.Image
    edges: list[float]

    @property
    def size(self) -> tuple[int, int]:
        return self.mask.size


def render_word(text: str, height: int, *, bold: int = 0, stretch: float = 1.0, spacing: float = 0.0) -> Word:
    """Render `text` with capitals `height` pixels high, stretched sideways, as an 8-bit mask."""
    font = _font(_cap_size(height))
    gap = spacing * height
    edges = [0.0]
    for char in text:
        edges.append(edges[-1] + font.getlength(char) + 2 * bold + gap)
    top, bottom = round(font.getbbox("H")[1]), round(font.getbbox("H")[3])
    mask = Image.new("L", (max(1, round(edges[-1])), bottom - top + 2 * bold + 2), 0)
    draw = ImageDraw.Draw(mask)
    for char, left in zip(text, edges, strict=False):
        draw.text((left + bold, bold + 1 - top), char, fill=255, font=font, stroke_width=bold)
    if stretch != 1.0:
        mask = mask.resize((max(1, round(mask.width * stretch)), mask.height), Image.Resampling.BILINEAR)
        edges = [edge * stretch for edge in edges]
    return Word(text, mask, edges)


@dataclass
class Canvas:
    """A picture being drawn, with the class maps that record what is where."""

    rng: np.random.Generator
    size: tuple[int, int] = (SIZE, SIZE)
    """Width and height of the picture, in pixels."""
    map_size: tuple[int, int] = (_MAP, _MAP)
    """Columns and rows of the class maps."""
    image: Image.Image = field(init=False)
    glyphs: Image.Image = field(init=False)
    objects: Image.Image = field(init=False)
    centres: list[tuple[int, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", self.size)
        self.glyphs, self.objects = (Image.new("L", self.map_size, 0) for _ in range(2))

    def mark(self, draw_on: str, shape: str, xy: object, label: int) -> None:
        """Draw one primitive (an ImageDraw method's name) on a class map; xy in picture pixels."""
        target = getattr(self, draw_on)
        scale = np.divide(self.map_size, self.size)
        points = (np.asarray(xy, dtype=float).reshape(-1, 2) * scale).ravel().tolist()
        getattr(ImageDraw.Draw(target), shape)(points, fill=label + 1)

    def write(self, word: Word, x: int, y: int, colour: tuple[int, ...], label: int | None = None) -> None:
        """Paint a word. It is marked on the glyph map, or with a `label` on the object map instead."""
        self.image.paste(tuple(colour), (x, y), word.mask)
        bottom = y + word.mask.height
        if label is not None:
            self.mark("objects", "rectangle", (x, y, x + word.mask.width, bottom), label)
            return
        for slot, char in enumerate(word.text[:SLOTS]):
            if char in CHARS:
                box = (x + word.edges[slot], y, x + word.edges[slot + 1] - 1, bottom)
                self.mark("glyphs", "rectangle", box, CHARS.index(char) * SLOTS + slot)

    def pixels(self) -> np.ndarray:
        """The picture, (336, 336, 3) uint8."""
        return np.asarray(self.image)

    def labels(self) -> np.ndarray:
        """What is in each patch: (576, LABEL_WIDTH) uint8, coverage and statistics from 0 to 255."""
        out = np.zeros((GRID * GRID, LABEL_WIDTH), np.uint8)
        coverage(self.glyphs, CELLS, out[:, :GLYPH_CLASSES])
        coverage(self.objects, CELLS, out[:, GLYPH_CLASSES : GLYPH_CLASSES + OBJECT_CLASSES])
        start = GLYPH_CLASSES + OBJECT_CLASSES
        for label, x, y in self.centres:
            column, row = min(int(x // PATCH), GRID - 1), min(int(y // PATCH), GRID - 1)
            out[row * GRID + column, start + label] = 255
        out[:, start + CENTRE_CLASSES :] = pixel_statistics(self.pixels())
        return out


def coverage(classes: Image.Image, side: int, out: np.ndarray) -> None:
    """How much of each patch a class covers, from 0 to 255.

    Args:
        classes: a class map, `side` cells per patch side.
        side: how many.
        out: (patches, classes) uint8, written to; patches in rows from the top left.
    """
    rows, columns = classes.height // side, classes.width // side
    squares = np.asarray(classes).reshape(rows, side, columns, side).transpose(0, 2, 1, 3)
    cells = squares.reshape(rows * columns, -1)
    patch, cell = np.nonzero(cells)
    where = patch * out.shape[1] + cells[patch, cell].astype(int) - 1
    counts = np.bincount(where, minlength=out.size).reshape(out.shape)
    out[:] = np.minimum(counts * (256 // side**2), 255)


def pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """Per patch: mean red, green, blue; deviation; fine and medium texture. (576, 6) uint8."""
    blocks = pixels.reshape(GRID, PATCH, GRID, PATCH, 3)
    mean = blocks.mean(axis=(1, 3), dtype=np.float32).reshape(-1, 3)
    grey = pixels.mean(axis=2, dtype=np.float32)
    tiles = grey.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(-1, PATCH, PATCH)
    fine = np.abs(np.diff(tiles, axis=2)).mean(axis=(1, 2)) + np.abs(np.diff(tiles, axis=1)).mean(axis=(1, 2))
    halves = tiles.reshape(-1, 2, 7, 2, 7).mean(axis=(2, 4)).reshape(-1, 4)
    stats = np.column_stack([mean, tiles.std(axis=(1, 2)) * 2, fine * 2, halves.std(axis=1) * 2])
    return np.clip(stats, 0, 255).astype(np.uint8)
