"""Painters of things to count, name, find and compare: coloured shapes and bar charts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from m3score.calibration.drawings.backdrops import paint_backdrop, shade
from m3score.calibration.drawings.canvas import (
    COLOUR_NAMES,
    COLOURS,
    SHAPES,
    SIZE,
    Canvas,
    coloured_class,
    plain_class,
    render_word,
)
from m3score.calibration.drawings.questions import DrawnQuestion, wording


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


@dataclass(frozen=True)
class _Thing:
    """A coloured shape: centre and half-width in pixels."""

    kind: str
    colour: str
    x: float
    y: float
    size: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


def _stamp(canvas: Canvas, thing: _Thing) -> None:
    kind, colour, x, y, size = thing.kind, thing.colour, thing.x, thing.y, thing.size
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
    """Up to `count` circles (x, y, radius) in pixels that don't touch."""
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


def shapes(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """One to six coloured shapes. Questions: how many, which colour, where, is there a ...

    They are about one of the shapes, or with `ask_all` about each of them.
    """
    rng = canvas.rng
    base = paint_backdrop(canvas)
    visible = [name for name in COLOUR_NAMES if np.abs(np.array(COLOURS[name]) - base).max() > 70]
    count = int(rng.integers(1, 7))
    spots = _scatter(rng, count, 9, 90 if count < 3 else 55)
    things = [_Thing(str(rng.choice(SHAPES)), str(rng.choice(visible)), *spot) for spot in spots]
    for thing in things:
        _stamp(canvas, thing)
    questions = [DrawnQuestion("count", wording(rng, "count"), str(len(things)))]
    chosen = [things[int(rng.integers(len(things)))]]
    for thing in things if ask_all else chosen:
        questions += _about(rng, thing, things, visible)
    ordered = sorted(things, key=lambda thing: -thing.size)[:2]
    names = " and ".join(_article(thing.name) for thing in ordered)
    description = names if len(things) < 3 else f"{len(things)} shapes"
    questions.append(DrawnQuestion("describe", wording(rng, "describe"), description))
    return questions


def _about(
    rng: np.random.Generator, thing: _Thing, things: list[_Thing], visible: list[str]
) -> list[DrawnQuestion]:
    """Questions about one of the things; ambiguous ones are left out."""
    alike = [other for other in things if other.kind == thing.kind]
    detail = {"size": 2 * thing.size}
    questions = [
        DrawnQuestion("count", wording(rng, "count kind", kinds=_plural(thing.kind)), str(len(alike)))
    ]
    if len(alike) == 1:
        questions.append(
            DrawnQuestion("colour", wording(rng, "colour", kind=thing.kind), thing.colour, detail)
        )
    if sum(other.name == thing.name for other in things) == 1:
        place = place_name(thing.x, thing.y)
        questions.append(DrawnQuestion("place", wording(rng, "place", thing=thing.name), place, detail))
    name = thing.name
    if rng.random() < 0.5:
        kind, colour = rng.choice(SHAPES), rng.choice(visible)
        name = f"{colour} {kind}"
    there = any(other.name == name for other in things)
    questions.append(
        DrawnQuestion("presence", wording(rng, "presence", thing=_article(name)), "yes" if there else "no")
    )
    return questions


def chart(canvas: Canvas, ask_all: bool = False) -> list[DrawnQuestion]:
    """A bar chart from 0 to 10. Questions: the highest bar, the value of one (`ask_all`: each)."""
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
    chosen = list(range(count)) if ask_all else [int(rng.integers(count))]
    return [
        DrawnQuestion("highest", wording(rng, "highest"), names[int(np.argmax(values))]),
        DrawnQuestion("highest", wording(rng, "lowest"), names[int(np.argmin(values))]),
        *(DrawnQuestion("value", wording(rng, "value", colour=names[i]), str(values[i])) for i in chosen),
        DrawnQuestion("count", wording(rng, "count bars"), str(count)),
        DrawnQuestion("describe", wording(rng, "describe"), f"a bar chart with {count} bars"),
    ]
