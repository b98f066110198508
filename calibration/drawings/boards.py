"""Signs and pages of any size, all of whose text has one letter height: what a model of dynamic resolution
learns to read, and is measured by.

How few visual tokens a question needs then hangs on the letters' height beside the picture's size. Knows no
models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from m3score.calibration.drawings.backdrops import contrast, paint_backdrop, shade
from m3score.calibration.drawings.canvas import (
    CHARS,
    COLOUR_NAMES,
    GLYPH_CLASSES,
    KEYS,
    SLOTS,
    Canvas,
    Word,
    coverage,
    render_word,
)
from m3score.calibration.drawings.drawing import Drawing
from m3score.calibration.drawings.questions import SHORT, DrawnQuestion
from m3score.calibration.drawings.text import WORDS

CELLS = 8
"""Cells of the class maps along a visual token's side: small letters keep cells of their own."""
CLASSES = (*COLOUR_NAMES, *KEYS, "page")
"""What dense labels know beside letters: a board by its colour, a page's keys, and the page."""
LABEL_WIDTH = GLYPH_CLASSES + len(CLASSES)
DIGITS = "0123456789"
MOST_BOARDS, MOST_LINES = 5, 8


@dataclass(frozen=True)
class Style:
    """What pictures have in them."""

    sides: tuple[int, int] = (280, 1000)
    """Shortest and longest side, in pixels."""
    smallest: int = 8
    """Letters are at least this high, in pixels: those that the whole picture shows can be read."""
    largest: float = 0.14
    """They are at most this share of the picture's longer side."""
    pages: float = 0.4
    """Share of pages among the pictures; the others have signs."""
    words: float = 0.5
    """Share of words among the texts; the others are numbers."""
    digits: tuple[int, int] = (2, 4)
    """Fewest and most digits of a number."""
    coloured_ink: float = 0.6
    """Share of signs with letters of any colour; the others' are black or white."""

    @property
    def chars(self) -> str:
        """What random words are made of."""
        return CHARS if self.words else DIGITS


DEFAULT = Style()

WORDINGS = {
    "board": (
        "What does the {colour} sign say?",
        "Read the {colour} sign.",
        "What is written on the {colour} sign?",
    ),
    "only": ("What does the sign say?", "Read the sign.", "What is written on the sign?"),
    "boards": ("How many signs are there?", "Count the signs.", "How many signs do you see?"),
    "field": ("What is the {key}?", "What does the page say for {key}?", "Read the field {key}."),
    "lines": ("How many lines does the page have?", "Count the lines.", "How many lines are there?"),
}
READING = ("board", "only", "field")
"""Tasks whose answers stand in the picture; the others are counting."""


def _ask(rng: np.random.Generator, task: str, answer: str, height: int, **words: str) -> DrawnQuestion:
    text = str(rng.choice(WORDINGS[task])).format(**words)
    asked = text + SHORT if rng.random() < 0.15 else text
    return DrawnQuestion(task, asked, answer, {"height": height})


def _text(rng: np.random.Generator, longest: int, style: Style) -> str:
    """A number or a word, if possible of at most `longest` characters."""
    fitting = [word for word in WORDS if len(word) <= longest]
    if fitting and rng.random() < style.words:
        return fitting[int(rng.integers(len(fitting)))]
    fewest, most = style.digits
    digits = int(rng.integers(fewest, max(fewest, min(longest, most)) + 1))
    return str(int(rng.integers(10 ** (digits - 1), 10**digits)))


def _ink(rng: np.random.Generator, board: tuple[int, ...], style: Style) -> tuple[int, ...]:
    """A colour that stands out from the board's."""
    if rng.random() < style.coloured_ink:
        return contrast(rng, board)
    light = 0.3 * board[0] + 0.59 * board[1] + 0.11 * board[2] > 128
    return (15, 15, 15) if light else (245, 245, 245)


def _free_box(
    rng: np.random.Generator, size: tuple[int, int], wanted: tuple[int, int], taken: list[tuple[int, ...]]
) -> tuple[int, int, int, int] | None:
    """A place for something (width, height) that overlaps nothing taken, or None."""
    room = size[0] - wanted[0] - 4, size[1] - wanted[1] - 4
    if min(room) <= 0:
        return None
    for _ in range(12):
        x, y = (2 + int(rng.integers(side)) for side in room)
        box = (x, y, x + wanted[0], y + wanted[1])
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            return box
    return None


def signs(canvas: Canvas, height: int, style: Style) -> list[DrawnQuestion]:
    """One to five boards of different colours, each with a word or a number."""
    rng, brush = canvas.rng, ImageDraw.Draw(canvas.image)
    taken: list[tuple[int, ...]] = []
    said: list[tuple[str, str]] = []
    for colour in map(str, rng.permutation(COLOUR_NAMES)[: int(rng.integers(1, MOST_BOARDS + 1))]):
        word = _sign_word(rng, height, canvas.size[0], style)
        pads = [int(rng.uniform(0.2, 0.6) * height) + 2 for _ in range(2)]
        wanted = word.size[0] + 2 * pads[0], word.size[1] + 2 * pads[1]
        box = _free_box(rng, canvas.size, wanted, taken)
        if box is None:
            continue
        taken.append(box)
        said.append((colour, word.text))
        board = shade(rng, colour)
        brush.rectangle(box, fill=board, outline=contrast(rng, board) if rng.random() < 0.4 else None)
        canvas.mark("objects", "rectangle", box, CLASSES.index(colour))
        canvas.write(word, box[0] + pads[0], box[1] + pads[1], _ink(rng, board, style))
    if len(said) == 1 and rng.random() < 0.5:
        questions = [_ask(rng, "only", said[0][1], height)]
    else:
        questions = [_ask(rng, "board", text, height, colour=colour) for colour, text in said]
    return [*questions, _ask(rng, "boards", str(len(said)), height)]


def _sign_word(rng: np.random.Generator, height: int, width: int, style: Style) -> Word:
    text = _text(rng, int((width - 1.3 * height - 8) / (0.85 * height)), style)
    bold = int(rng.integers(0, 1 + max(1, height // 16)))
    word = render_word(
        text, height, bold=bold, stretch=rng.uniform(0.8, 1.15), spacing=float(rng.uniform(0, 0.15))
    )
    room = int(width - 1.3 * height - 8)
    return word if word.mask.width <= room else render_word(text, height, stretch=0.8)


def page(canvas: Canvas, height: int, style: Style) -> list[DrawnQuestion]:
    """A sheet with lines of "KEY: value"."""
    rng = canvas.rng
    width, tall = canvas.size
    leading = height * rng.uniform(1.5, 2.1)
    count = int(rng.integers(1, max(1, min(MOST_LINES, int((tall - 2 * height) / leading))) + 1))
    sheet_width = min(width - 4, round(rng.uniform(10, 12) * height) + 20)
    sheet_height = min(tall - 4, round(count * leading + 1.2 * height))
    left, top = int(rng.integers(2, width - sheet_width)), int(rng.integers(2, tall - sheet_height))
    paper = (int(rng.integers(215, 256)),) * 3
    sheet = (left, top, left + sheet_width, top + sheet_height)
    ImageDraw.Draw(canvas.image).rectangle(sheet, fill=paper)
    canvas.mark("objects", "rectangle", sheet, CLASSES.index("page"))
    ink = tuple(int(v) for v in rng.integers(0, 90, 3))
    questions = []
    for line, key in enumerate(map(str, rng.choice(KEYS, count, replace=False))):
        y = round(top + 0.8 * height + line * leading)
        label = render_word(f"{key}:", height)
        canvas.write(label, left + height // 2 + 2, y, ink, label=CLASSES.index(key))
        x = left + height + 2 + label.mask.width
        value = render_word(_text(rng, int((sheet[2] - x) / (0.85 * height)), style), height)
        canvas.write(value, x, y, ink)
        questions.append(_ask(rng, "field", value.text, height, key=key))
    return [*questions, _ask(rng, "lines", str(count), height)]


def crowd(canvas: Canvas, heights: tuple[float, float], style: Style, plain_share: float) -> None:
    """Random words of many heights all over the picture: what teaches letters. Boards have any colour, or all
    is black on white, as most print is."""
    rng, brush = canvas.rng, ImageDraw.Draw(canvas.image)
    plain = rng.random() < plain_share
    taken: list[tuple[int, ...]] = []
    missed = 0
    while missed < 5 and len(taken) < 60:
        height = round(float(np.exp(rng.uniform(*np.log(heights)))))
        text = "".join(rng.choice(list(style.chars), int(rng.integers(1, SLOTS + 1))))
        bold = int(rng.integers(0, 1 + max(1, height // 16)))
        stretch, spacing = rng.uniform(0.8, 1.15), float(rng.uniform(0, 0.15))
        word = render_word(text, height, bold=bold, stretch=stretch, spacing=spacing)
        pad = int(rng.uniform(0.15, 0.4) * height) + 1
        box = _free_box(rng, canvas.size, (word.size[0] + 2 * pad, word.size[1] + 2 * pad), taken)
        if box is None:
            missed += 1
            continue
        taken.append(box)
        colour = str(rng.choice(COLOUR_NAMES))
        board = (245, 245, 245) if plain else shade(rng, colour)
        brush.rectangle(box, fill=board)
        canvas.mark("objects", "rectangle", box, CLASSES.index("white" if plain else colour))
        canvas.write(word, box[0] + pad, box[1] + pad, (20, 20, 20) if plain else _ink(rng, board, style))


def _with_backdrop(rng: np.random.Generator, size: tuple[int, int], grid: tuple[int, int]) -> Canvas:
    canvas = Canvas(rng, size, (grid[1] * CELLS, grid[0] * CELLS))
    backdrop = Canvas(rng)
    paint_backdrop(backdrop, plain=0.5)
    canvas.image = backdrop.image.resize(size, Image.Resampling.BILINEAR)
    return canvas


def draw_crowd(
    rng: np.random.Generator,
    size: tuple[int, int],
    heights: tuple[float, float],
    grid: tuple[int, int],
    style: Style = DEFAULT,
    plain: float = 0.5,
) -> Drawing:
    """A picture full of words, about which nothing is asked.

    Args:
        rng: where chance comes from.
        size: (width, height) of the picture in pixels.
        heights: bounds of the letters' heights, in pixels.
        grid: (rows, columns) of visual tokens that dense labels are wanted for.
        style: what pictures have in them.
        plain: probability of black on white.
    """
    canvas = _with_backdrop(rng, size, grid)
    crowd(canvas, heights, style, plain)
    return Drawing("crowd", canvas, ())


def draw_boards(
    rng: np.random.Generator,
    size: tuple[int, int],
    height: int,
    grid: tuple[int, int] = (1, 1),
    style: Style = DEFAULT,
) -> Drawing:
    """Signs or a page on a backdrop, with everything that can be asked.

    Args:
        rng: where chance comes from.
        size: (width, height) of the picture in pixels, at least 112 each.
        height: of its capitals, in pixels.
        grid: (rows, columns) of visual tokens that dense labels are wanted for.
        style: what pictures have in them.
    """
    canvas = _with_backdrop(rng, size, grid)
    paged = rng.random() < style.pages and size[0] > 10 * height + 30 and size[1] > 4 * height
    questions = (page if paged else signs)(canvas, height, style)
    return Drawing("page" if paged else "sign", canvas, tuple(questions))


def dense_labels(canvas: Canvas) -> np.ndarray:
    """What is in each visual token: (rows * columns, LABEL_WIDTH) uint8, coverage from 0 to 255."""
    rows, columns = canvas.map_size[1] // CELLS, canvas.map_size[0] // CELLS
    out = np.zeros((rows * columns, LABEL_WIDTH), np.uint8)
    coverage(canvas.glyphs, CELLS, out[:, :GLYPH_CLASSES])
    coverage(canvas.objects, CELLS, out[:, GLYPH_CLASSES:])
    return out
