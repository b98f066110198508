"""Painters of text to read: signs, pictures full of words, pages."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from m3score.calibration.drawings.backdrops import any_colour, contrast, paint_backdrop
from m3score.calibration.drawings.canvas import CHARS, KEYS, SIZE, Canvas, Word, plain_class, render_word
from m3score.calibration.drawings.questions import DrawnQuestion, wording

# fmt: off
WORDS = (
    "AIR", "ANT", "ARM", "ART", "BAG", "BAR", "BED", "BEE", "BOX", "BUS", "CAB", "CAT", "COW", "CUP",
    "DAY", "DOG", "EAR", "EGG", "EXIT", "EYE", "FAN", "FISH", "FIRE", "FOX", "GAS", "GATE", "GOLD",
    "HAT", "HEN", "HILL", "HOME", "ICE", "INN", "JAM", "JET", "JOB", "KEY", "KING", "LAKE", "LAMP",
    "LEG", "LION", "MAP", "MILK", "MOON", "NET", "NUT", "OAK", "OIL", "OPEN", "OWL", "PARK", "PEN",
    "PIG", "PIZZA", "QUIZ", "RAIN", "RED", "RIVER", "ROAD", "SALE", "SEA", "SHOP", "SKY", "SNOW",
    "STAR", "STOP", "SUN", "TAXI", "TEA", "TIGER", "TOY", "TRAIN", "TREE", "URN", "VAN", "VASE",
    "WATER", "WAX", "WIND", "WOLF", "YAK", "YARD", "ZEBRA", "ZERO", "ZOO",
)
# fmt: on


def _sign_text(rng: np.random.Generator, longest: int) -> tuple[str, str]:
    if rng.random() < 0.5:
        digits = int(rng.integers(1, min(longest, 3) + 1))
        return "number", str(int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits)))
    fitting = [word for word in WORDS if len(word) <= max(longest, 3)]
    return "word", fitting[int(rng.integers(len(fitting)))]


def _sign_word(rng: np.random.Generator, least: int = 8, most: int = 121) -> tuple[str, Word, int]:
    height = round(float(np.exp(rng.uniform(np.log(least), np.log(most)))))
    kind, text = _sign_text(rng, int((SIZE - 24) / (0.82 * height)))
    bold = int(rng.integers(0, 1 + max(1, height // 16)))
    style: dict[str, float] = {
        "stretch": float(rng.uniform(0.75, 1.15)),
        "spacing": float(rng.uniform(0, 0.15)),
    }
    word = render_word(text, height, bold=bold, stretch=style["stretch"], spacing=style["spacing"])
    if word.mask.width > SIZE - 12:
        word = render_word(text, height, stretch=0.98 * (SIZE - 12) / render_word(text, height).mask.width)
    return kind, word, height


def sign(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """One sign with a word or a number, letters 8 to 120 px high."""
    rng = canvas.rng
    paint_backdrop(canvas)
    kind, word, height = _sign_word(rng)
    width, tall = word.size
    pad_x, pad_y = (int(rng.uniform(0.15, 0.6) * height) + 2 for _ in range(2))
    x = int(rng.integers(min(6, SIZE - width), max(7, SIZE - width - 5)))
    y = int(rng.integers(6, max(7, SIZE - tall - 6)))
    board = any_colour(rng)
    box = (
        max(0, x - pad_x),
        max(0, y - pad_y),
        min(SIZE - 1, x + width + pad_x),
        min(SIZE - 1, y + tall + pad_y),
    )
    ImageDraw.Draw(canvas.image).rectangle(
        box, fill=board, outline=contrast(rng, board) if rng.random() < 0.4 else None
    )
    canvas.mark("objects", "rectangle", box, plain_class("board"))
    canvas.write(word, x, y, contrast(rng, board))
    detail = {"height": height}
    return [
        DrawnQuestion(kind, wording(rng, kind), word.text, detail),
        DrawnQuestion("describe", wording(rng, "describe"), f"a sign that says {word.text}", detail),
    ]


def words(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """Words and random letters of many sizes all over the picture; its dense labels teach reading."""
    rng = canvas.rng
    paint_backdrop(canvas)
    plain = rng.random() < 0.5  # black on white, as most print is
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(60):
        _, word, height = _sign_word(rng, 12, 90)
        if rng.random() < 0.5:
            text = "".join(rng.choice(list(CHARS), len(word.text)))
            word = render_word(text, height, bold=int(rng.integers(0, 1 + max(1, height // 16))))
        width, tall = word.size
        if width > SIZE - 8 or tall > SIZE - 8:
            continue
        x, y = int(rng.integers(4, SIZE - width - 3)), int(rng.integers(4, SIZE - tall - 3))
        pad = int(rng.uniform(0.15, 0.4) * height) + 1
        box = (
            max(0, x - pad),
            max(0, y - pad),
            min(SIZE - 1, x + width + pad),
            min(SIZE - 1, y + tall + pad),
        )
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        board, ink = any_colour(rng), None
        if plain:
            board, ink = (245, 245, 245), (20, 20, 20)
        ImageDraw.Draw(canvas.image).rectangle(box, fill=board)
        canvas.mark("objects", "rectangle", box, plain_class("board"))
        canvas.write(word, x, y, ink or contrast(rng, board))
    return [DrawnQuestion("describe", wording(rng, "describe"), f"{len(taken)} signs")]


def page(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """A small document of "key: value" lines. Questions about up to three fields, or with `ask_all` all."""
    rng = canvas.rng
    paint_backdrop(canvas)
    count = int(rng.integers(1, 7))
    height = int(rng.integers(10, min(33, 170 // count) + 1))
    paper = int(rng.integers(215, 256))
    leading = height * rng.uniform(1.7, 2.2)
    left, top = int(rng.integers(4, 40)), int(rng.integers(4, max(5, int(SIZE - count * leading - height))))
    sheet = (
        left,
        top,
        min(SIZE - 2, left + int(rng.uniform(9, 11) * height) + 20),
        int(top + count * leading + height),
    )
    ImageDraw.Draw(canvas.image).rectangle(sheet, fill=(paper, paper, paper))
    canvas.mark("objects", "rectangle", sheet, plain_class("page"))
    ink = tuple(int(v) for v in rng.integers(0, 90, 3))
    questions = []
    for line, key in enumerate(rng.choice(KEYS, count, replace=False)):
        y = int(top + height * 0.7 + line * leading)
        label = render_word(f"{key}:", height)
        canvas.write(label, left + 8, y, ink, label=plain_class(f"key {key}"))
        x = left + 8 + label.mask.width + height // 2
        _, text = _sign_text(rng, max(3, int((SIZE - x) / (0.85 * height))))
        value = render_word(text, height)
        if x + value.mask.width < SIZE:
            canvas.write(value, x, y, ink)
            questions.append(
                DrawnQuestion("field", wording(rng, "field", key=str(key)), text, {"height": height})
            )
    order = [questions[i] for i in rng.permutation(len(questions))[: None if ask_all else 3]]
    return [
        *order,
        DrawnQuestion("describe", wording(rng, "describe"), f"a page with {count} line{'s' * (count > 1)}"),
    ]
