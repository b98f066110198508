"""Images drawn from a seed, with questions whose answers are known: endless, deterministic, free of licences.

`draw(seed, index)` is a pure function: the same picture on every machine. Training and evaluation use
different seeds. Kinds of picture: signs, shapes, bar charts, pages, regions, natural-looking scenes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from m3score.calibration.backdrops import NATURAL, any_colour, paint_backdrop, regions, shade
from m3score.calibration.canvas import (
    CHARS,
    COLOUR_NAMES,
    COLOURS,
    KEYS,
    SHAPES,
    SIZE,
    Canvas,
    Word,
    coloured_class,
    plain_class,
    render_word,
)
from m3score.calibration.wordings import pixel_questions, wording

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


@dataclass(frozen=True)
class Asked:
    """A question about a drawn image, its answer, and what it tests."""

    task: str
    question: str
    answer: str
    detail: dict[str, Any] = field(default_factory=dict)
    """What an analysis may want: the letter height in px, the size of a shape."""


@dataclass(frozen=True)
class Drawing:
    """A drawn image with its questions."""

    kind: str
    canvas: Canvas
    asked: tuple[Asked, ...]

    @property
    def image(self) -> Image.Image:
        """RGB, 336x336."""
        return self.canvas.image


Questions = list[Asked]


def _contrast(rng: np.random.Generator, colour: tuple[int, ...]) -> tuple[int, int, int]:
    """A colour that stands out from `colour`."""
    grey = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    for _ in range(20):
        other = any_colour(rng) if rng.random() < 0.6 else ((15, 15, 15) if grey > 128 else (245, 245, 245))
        if abs(0.3 * other[0] + 0.59 * other[1] + 0.11 * other[2] - grey) > 85:
            return other
    return (0, 0, 0) if grey > 128 else (255, 255, 255)


def _sign_text(rng: np.random.Generator, longest: int) -> tuple[str, str]:
    if rng.random() < 0.5:
        digits = int(rng.integers(1, min(longest, 3) + 1))
        return "number", str(int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits)))
    fitting = [word for word in WORDS if len(word) <= max(longest, 3)]
    return "word", fitting[int(rng.integers(len(fitting)))]


def _sign_word(rng: np.random.Generator) -> tuple[str, Word, int]:
    height = round(float(np.exp(rng.uniform(np.log(8), np.log(121)))))
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


def sign(canvas: Canvas) -> Questions:
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
        box, fill=board, outline=_contrast(rng, board) if rng.random() < 0.4 else None
    )
    canvas.mark("objects", "rectangle", box, plain_class("board"))
    canvas.write(word, x, y, _contrast(rng, board))
    detail = {"height": height}
    return [
        Asked(kind, wording(rng, kind), word.text, detail),
        Asked("describe", wording(rng, "describe"), f"a sign that says {word.text}", detail),
    ]


def words(canvas: Canvas) -> Questions:
    """Words and random letters of many sizes all over the picture: dense labels for learning to read."""
    rng = canvas.rng
    paint_backdrop(canvas)
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(60):
        _, word, height = _sign_word(rng)
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
        board = any_colour(rng)
        ImageDraw.Draw(canvas.image).rectangle(box, fill=board)
        canvas.mark("objects", "rectangle", box, plain_class("board"))
        canvas.write(word, x, y, _contrast(rng, board))
    return [Asked("describe", wording(rng, "describe"), f"{len(taken)} signs")]


def _outline(kind: str, x: float, y: float, size: float) -> list[tuple[float, float]]:
    """Corner points of a shape with centre (x, y) and half-width `size`."""
    if kind == "cross":
        a, b = size, size * 0.36
        ring = [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
        return [(x + u, y + v) for u, v in ring]
    corners = {"square": 4, "triangle": 3, "diamond": 4, "star": 10}[kind]
    radii = [size * (1.25 if kind == "square" else 1.1)] * corners
    if kind == "star":
        radii = [size * (1.15 if step % 2 == 0 else 0.48) for step in range(corners)]
    start = np.pi / 4 if kind == "square" else -np.pi / 2
    turns = start + 2 * np.pi * np.arange(corners) / corners
    narrow = 0.72 if kind == "diamond" else 1.0
    return [(x + narrow * r * np.cos(t), y + r * np.sin(t)) for r, t in zip(radii, turns, strict=True)]


def _stamp(canvas: Canvas, kind: str, colour: str, x: float, y: float, size: float) -> None:
    draw = ImageDraw.Draw(canvas.image)
    fill, label = shade(canvas.rng, colour), coloured_class(kind, colour)
    if kind == "circle":
        box = (x - size, y - size, x + size, y + size)
        draw.ellipse(box, fill=fill)
        canvas.mark("objects", "ellipse", box, label)
    else:
        points = _outline(kind, x, y, size)
        draw.polygon(points, fill=fill)
        canvas.mark("objects", "polygon", points, label)
    canvas.centres.append((label, x, y))


def place_name(x: float, y: float) -> str:
    """Which of the nine places of a 3x3 grid a point lies in."""
    column = ("left", "", "right")[min(int(3 * x / SIZE), 2)]
    row = ("top", "", "bottom")[min(int(3 * y / SIZE), 2)]
    return f"{row} {column}".strip() or "middle"


def _scatter(
    rng: np.random.Generator, count: int, smallest: float, largest: float
) -> list[tuple[float, float, float]]:
    """Circles (x, y, radius) that don't touch."""
    placed: list[tuple[float, float, float]] = []
    for _ in range(200):
        size = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
        x, y = rng.uniform(size * 1.3, SIZE - size * 1.3, 2)
        if all(np.hypot(x - u, y - v) > 1.3 * (size + s) for u, v, s in placed):
            placed.append((float(x), float(y), size))
        if len(placed) == count:
            break
    return placed


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _plural(kind: str) -> str:
    return kind + ("es" if kind.endswith("s") else "s")


def shapes(canvas: Canvas) -> Questions:
    """One to six coloured shapes: how many, which colour, where, is there a ..."""
    rng = canvas.rng
    base = paint_backdrop(canvas)
    visible = [name for name in COLOUR_NAMES if np.abs(np.array(COLOURS[name]) - base).max() > 70]
    count = int(rng.integers(1, 7))
    spots = _scatter(rng, count, 9, 90 if count < 3 else 55)
    things = [(str(rng.choice(SHAPES)), str(rng.choice(visible)), *spot) for spot in spots]
    for thing in things:
        _stamp(canvas, *thing)
    asked = [Asked("count", wording(rng, "count"), str(len(things)))]
    kinds = [thing[0] for thing in things]
    kind, colour, x, y, size = things[int(rng.integers(len(things)))]
    same = sum(thing[:2] == (kind, colour) for thing in things)
    asked.append(Asked("count", wording(rng, "count kind", kinds=_plural(kind)), str(kinds.count(kind))))
    if kinds.count(kind) == 1:
        asked.append(Asked("colour", wording(rng, "colour", kind=kind), colour, {"size": 2 * size}))
    if same == 1:
        asked.append(
            Asked(
                "place", wording(rng, "place", thing=f"{colour} {kind}"), place_name(x, y), {"size": 2 * size}
            )
        )
    other = (str(rng.choice(SHAPES)), str(rng.choice(visible))) if rng.random() < 0.5 else (kind, colour)
    there = any(thing[:2] == other for thing in things)
    asked.append(
        Asked(
            "presence",
            wording(rng, "presence", thing=_article(f"{other[1]} {other[0]}")),
            "yes" if there else "no",
        )
    )
    ordered = sorted(things, key=lambda thing: -thing[4])[:2]
    told = " and ".join(_article(f"{thing[1]} {thing[0]}") for thing in ordered)
    asked.append(
        Asked("describe", wording(rng, "describe"), told if len(things) < 3 else f"{len(things)} shapes")
    )
    return asked


def chart(canvas: Canvas) -> Questions:
    """A bar chart with an axis from 0 to 10: the highest bar, the value of a bar."""
    rng = canvas.rng
    paper = int(rng.integers(225, 256))
    canvas.image = Image.new("RGB", (SIZE, SIZE), (paper, paper, paper))
    draw = ImageDraw.Draw(canvas.image)
    count = int(rng.integers(2, 6))
    names = [
        str(name) for name in rng.choice([n for n in COLOUR_NAMES if n != "white"], count, replace=False)
    ]
    values = [int(value) for value in rng.choice(np.arange(1, 11), count, replace=False)]
    left, right = int(rng.integers(34, 70)), int(rng.integers(250, 326))
    bottom, top = int(rng.integers(240, 318)), int(rng.integers(14, 80))
    ink, unit = (60, 60, 60), (bottom - top) / 10
    draw.line((left, top, left, bottom, right, bottom), fill=ink, width=2)
    canvas.mark("objects", "line", (left, top, left, bottom, right, bottom), plain_class("axis"))
    for tick in range(0, 11, 2):
        y = bottom - tick * unit
        draw.line(
            (left - 4, y, right if rng.random() < 0.9 else left, y), fill=(185, 185, 185) if tick else ink
        )
        label = render_word(str(tick), 9)
        canvas.write(label, left - 8 - label.mask.width, int(y) - 5, ink, label=plain_class("axis"))
    slot = (right - left) / count
    width = slot * rng.uniform(0.45, 0.85)
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        x = left + (index + 0.5) * slot
        box = (x - width / 2, bottom - value * unit, x + width / 2, bottom - 1)
        draw.rectangle(box, fill=shade(rng, name))
        canvas.mark("objects", "rectangle", box, coloured_class("bar", name))
        canvas.centres.append((coloured_class("bar", name), x, bottom - value * unit + 1))
    chosen = int(rng.integers(count))
    return [
        Asked("highest", wording(rng, "highest"), names[int(np.argmax(values))]),
        Asked("highest", wording(rng, "lowest"), names[int(np.argmin(values))]),
        Asked("value", wording(rng, "value", colour=names[chosen]), str(values[chosen])),
        Asked("count", wording(rng, "count bars"), str(count)),
        Asked("describe", wording(rng, "describe"), f"a bar chart with {count} bars"),
    ]


def page(canvas: Canvas) -> Questions:
    """A small document: key: value lines; read one field."""
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
    asked = []
    for line, key in enumerate(rng.choice(KEYS, count, replace=False)):
        y = int(top + height * 0.7 + line * leading)
        label = render_word(f"{key}:", height)
        canvas.write(label, left + 8, y, ink, label=plain_class(f"key {key}"))
        x = left + 8 + label.mask.width + height // 2
        _, text = _sign_text(rng, max(3, int((SIZE - x) / (0.85 * height))))
        value = render_word(text, height)
        if x + value.mask.width < SIZE:
            canvas.write(value, x, y, ink)
            asked.append(Asked("field", wording(rng, "field", key=str(key)), text, {"height": height}))
    order = [asked[i] for i in rng.permutation(len(asked))[:3]]
    return [
        *order,
        Asked("describe", wording(rng, "describe"), f"a page with {count} line{'s' * (count > 1)}"),
    ]


def plane(canvas: Canvas) -> Questions:
    """A few regions of different colours: how many?"""
    told, count = regions(canvas)
    rng = canvas.rng
    return [
        Asked("regions", wording(rng, "regions"), str(count)),
        Asked("describe", wording(rng, "describe"), told),
    ]


def scene(canvas: Canvas) -> Questions:
    """A natural-looking scene: noise, leaves, a fractal, a texture."""
    painter = NATURAL[int(canvas.rng.integers(len(NATURAL)))]
    return [Asked("describe", wording(canvas.rng, "describe"), painter(canvas))]


KINDS = {
    "sign": sign,
    "words": words,
    "shapes": shapes,
    "chart": chart,
    "page": page,
    "plane": plane,
    "scene": scene,
}
# "words" is drawn only where a recipe asks for it: it teaches the vision tower to read.
SHARES = {"sign": 0.32, "shapes": 0.24, "chart": 0.14, "page": 0.12, "plane": 0.06, "scene": 0.12}


def draw(seed: int, index: int, kind: str | None = None) -> Drawing:
    """The `index`-th drawing of the stream `seed`; a pure function of its arguments.

    Args:
        seed: which endless stream; training and evaluation use different ones.
        index: which drawing in it.
        kind: one of KINDS; by default drawn with the odds SHARES.
    """
    rng = np.random.default_rng((seed, index))
    chosen = kind or str(rng.choice(list(SHARES), p=list(SHARES.values())))
    canvas = Canvas(rng)
    asked = KINDS[chosen](canvas)
    asked += [
        Asked(*item)
        for item in pixel_questions(rng, canvas.pixels(), 3 if chosen in ("scene", "plane") else 1)
    ]
    return Drawing(chosen, canvas, tuple(asked))
