"""Pages of print at any size: running text, receipts, tables, charts, labels. Same on every machine.

Only Pillow's own typeface is used, so that pictures hang on their seed alone. Knows no models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from m3score.calibration.drawings.backdrops import any_colour
from m3score.calibration.drawings.unasked.lookalikes import contrasting
from m3score.calibration.drawings.unasked.typefaces import CAPITAL, LATIN, Typeface, word

_FACE = Typeface(None, LATIN)
Ink = tuple[int, ...]


def printed(
    rng: np.random.Generator, size: tuple[int, int], layouts: str = "page", paper: Image.Image | None = None
) -> Image.Image:
    """A page.

    Args:
        rng: where chance comes from.
        size: (width, height) in pixels.
        layouts: one of LAYOUTS.
        paper: what it is printed on; by default a plain sheet, mostly white or nearly.
    """
    paper = paper or Image.new("RGB", size, _sheet(rng))
    spot: Ink = paper.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[assignment]
    choice = LAYOUTS[layouts]
    choice[int(rng.integers(len(choice)))](rng, paper, _ink(rng, spot))
    return paper


def _sheet(rng: np.random.Generator) -> Ink:
    kind = rng.random()
    if kind < 0.5:
        return (255, 255, 255)
    if kind < 0.65:
        return (int(rng.integers(190, 255)),) * 3
    return tuple(int(v) for v in rng.integers(200, 256, 3)) if kind < 0.87 else any_colour(rng)


def _ink(rng: np.random.Generator, paper: Ink) -> Ink:
    """Mostly dark, grey or nearly; else anything that stands out."""
    if sum(paper) < 450 or rng.random() < 0.2:
        return contrasting(rng, paper)
    grey = rng.uniform(0, 100) * (rng.random() < 0.7)
    return tuple(int(v) for v in np.clip(grey + rng.normal(0, 25, 3) * (rng.random() < 0.4), 0, 255))


def _letters(
    rng: np.random.Generator, image: Image.Image, largest: float = 7.0, smallest: float = 2.2
) -> int:
    """A font's size, at least 7 pixels. The bounds are of its capitals, were the longest side 336 pixels."""
    height = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
    return max(7, round(height / CAPITAL * max(image.size) / 336))


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(word(rng, LATIN) for _ in range(max(1, count)))


def _write(image: Image.Image, x: float, y: float, text: str, size: int, ink: Ink) -> None:
    bold = size // 16 if ink[0] % 3 == 0 else 0  # as chance has it
    ImageDraw.Draw(image).text((x, y), text, fill=ink, font=_FACE.at(size), anchor="ls", stroke_width=bold)


def _paragraphs(rng: np.random.Generator, image: Image.Image, ink: Ink) -> None:
    width, height = image.size
    size = _letters(rng, image, 9)
    columns = int(rng.choice([1, 1, 2, 3]))
    margin, gap = width * rng.uniform(0, 0.12), width * 0.03
    column = (width - 2 * margin - gap * (columns - 1)) / columns
    for k in range(columns):
        left, y = margin + k * (column + gap), height * rng.uniform(0, 0.15)
        end, lead = height * rng.uniform(0.4, 1), rng.uniform(1.1, 1.7)
        while y < end:
            y += size * lead
            full = rng.random() < 0.85
            _write(image, left, y, _words(rng, int(column / (3 * size) * (1 if full else 0.5))), size, ink)
            if rng.random() < 0.1:
                y += size * rng.uniform(0.5, 3)


def _receipt(rng: np.random.Generator, image: Image.Image, ink: Ink) -> None:
    width, height = image.size
    size = _letters(rng, image)
    left, right = width * rng.uniform(0, 0.25), width * rng.uniform(0.75, 1)
    y, end, lead = height * rng.uniform(0, 0.12), height * rng.uniform(0.7, 1), rng.uniform(1.1, 1.8)
    most = max(2, int((right - left) / (3.4 * size)))
    while y < end:
        y += size * lead * (1 if rng.random() < 0.85 else 2)
        kind = rng.random()
        if kind < 0.1:
            ImageDraw.Draw(image).line((left, y, right, y), fill=ink)
        elif kind < 0.3:
            text = _words(rng, int(rng.integers(1, most + 1)))
            _write(image, (left + right) / 2 - 0.28 * size * len(text), y, text, size, ink)
        else:
            _write(image, left, y, _words(rng, int(rng.integers(1, max(2, most)))), size, ink)
            price = f"{rng.integers(0, 200)}.{rng.integers(0, 100):02d}"
            _write(image, right - 0.55 * size * len(price), y, price, size, ink)


def _table(rng: np.random.Generator, image: Image.Image, ink: Ink) -> None:
    width, height = image.size
    size, brush = _letters(rng, image, 6), ImageDraw.Draw(image)
    xs = np.cumsum(rng.uniform(3, 10, 40) * size)
    xs, y, ruled = xs[xs < width], height * rng.uniform(0, 0.1), rng.random() < 0.6
    step, filled = size * rng.uniform(1.3, 2.5), rng.uniform(0.4, 1)
    while y < height:
        y += step
        if ruled:
            brush.line((0, y + 0.3 * size, width, y + 0.3 * size), fill=ink)
        for x in xs:
            if rng.random() < filled:
                _write(image, x + 3, y, word(rng, LATIN)[:6], size, ink)
    for x in xs if ruled else ():
        brush.line((x, 0, x, height), fill=ink)


def _labels(rng: np.random.Generator, image: Image.Image, ink: Ink) -> None:
    """A few words of any size: signs, posters, captions."""
    width, height = image.size
    for _ in range(int(np.exp(rng.uniform(0, np.log(20))))):
        size = _letters(rng, image, 60, 3)
        place = rng.uniform(-0.1, 0.8) * width, rng.uniform(0.05, 1) * height
        text = _words(rng, int(rng.integers(1, 5)))
        if rng.random() < 0.4:
            box = (place[0] - 3, place[1] - size, place[0] + 0.6 * size * len(text), place[1] + 0.3 * size)
            board = any_colour(rng)
            ImageDraw.Draw(image).rectangle(box, fill=board)
            _write(image, *place, text, size, contrasting(rng, board))
        else:
            _write(image, *place, text, size, ink)


def _chart(rng: np.random.Generator, image: Image.Image, ink: Ink) -> None:
    """A heading; axes with numbers; bars, lines or dots with theirs; a key; where it is from."""
    width, height = image.size
    size, brush = _letters(rng, image, 5), ImageDraw.Draw(image)
    left, right = width * rng.uniform(0.06, 0.35), width * rng.uniform(0.75, 0.97)
    top, bottom = height * rng.uniform(0.08, 0.3), height * rng.uniform(0.65, 0.92)
    plot = (left, top, right, bottom)
    y = size * rng.uniform(1, 2)
    for _ in range(int(rng.integers(0, 4))):
        count = int(rng.uniform(0.3, 1) * width / (3.4 * size))
        _write(image, width * 0.02, y, _words(rng, count), round(size * rng.uniform(0.9, 1.4)), ink)
        y += 1.5 * size
    (_sideways if rng.random() < 0.35 else _upright)(rng, image, brush, plot, size, ink)
    for _ in range(int(rng.integers(0, 5))):  # the key
        x, y = rng.uniform(left, right), bottom + rng.uniform(2, 4) * size
        brush.rectangle((x - size, y - size, x, y), fill=any_colour(rng))
        _write(image, x + 0.3 * size, y, word(rng, LATIN), size, ink)
    y = bottom + 4 * size
    for _ in range(int(rng.integers(0, 5))):
        _write(
            image, width * 0.02, y, _words(rng, int(rng.uniform(0.2, 1) * width / (3.2 * size))), size, ink
        )
        y += 1.4 * size


Plot = tuple[float, float, float, float]


def _upright(
    rng: np.random.Generator, image: Image.Image, brush: ImageDraw.ImageDraw, plot: Plot, size: int, ink: Ink
) -> None:
    left, top, right, bottom = plot
    soft = tuple(int(v) for v in rng.integers(170, 240, 3))
    for y in np.linspace(top, bottom, int(rng.integers(3, 11))):
        brush.line((left, y, right, y), fill=soft)
        _write(image, left - 2.6 * size, y + 0.35 * size, str(rng.integers(0, 10000)), size, ink)
    count = int(np.exp(rng.uniform(np.log(3), np.log(30))))
    places = np.linspace(left + 5, right - (right - left) / count, count)
    labelled = rng.random() < 0.6
    for _ in range(int(rng.choice([1, 1, 2, 3, 4]))):
        colour, tops, kind = any_colour(rng), rng.uniform(top, bottom, count), rng.random()
        if rng.random() < 0.5:
            tops = np.clip(top + np.cumsum(rng.normal(0, 0.1, count)) * (bottom - top) + size, top, bottom)
        if kind < 0.5:
            wide = rng.uniform(0.3, 0.8) * (right - left) / count
            for x, y in zip(places, tops, strict=True):
                brush.rectangle((x, y, x + wide, bottom), fill=colour)
        elif kind < 0.85:
            brush.line(list(zip(places, tops, strict=True)), fill=colour, width=int(rng.integers(1, 4)))
        if kind > 0.7:
            for x, y in zip(places, tops, strict=True):
                brush.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        for x, y in zip(places, tops, strict=True):
            if labelled:
                _write(image, x, y - 3, f"{rng.integers(0, 100)}.{rng.integers(0, 100)}", size, ink)
    for x in places[:: max(1, int(count * 3 * size / (right - left)))]:
        _write(image, x, bottom + 1.4 * size, word(rng, LATIN)[:6], size, ink)


def _sideways(
    rng: np.random.Generator, image: Image.Image, brush: ImageDraw.ImageDraw, plot: Plot, size: int, ink: Ink
) -> None:
    """Bars from left to right, one name a row."""
    left, top, right, bottom = plot
    rows = np.arange(top + size, bottom, size * rng.uniform(1.3, 3.5))
    colours = [any_colour(rng) for _ in range(int(rng.integers(1, 5)))]
    for y in rows:
        name = _words(rng, int(rng.integers(1, 4)))
        _write(image, max(2, left - 0.55 * size * len(name)), y, name, size, ink)
        x = left
        for colour in colours:
            end = x + rng.uniform(0.05, 1) * (right - left) / len(colours)
            brush.rectangle((x, y - size, end, y + 0.1 * size), fill=colour)
            if rng.random() < 0.8:
                number = str(rng.integers(0, 1000))
                inside = len(colours) > 1
                _write(
                    image,
                    x + 3 if inside else end + 3,
                    y,
                    number,
                    size,
                    contrasting(rng, colour) if inside else ink,
                )
            x = end


def _network(rng: np.random.Generator, image: Image.Image, ink: Ink) -> None:
    """Boxes with words, joined by lines: diagrams, maps, organigrams."""
    size, brush = _letters(rng, image), ImageDraw.Draw(image)
    centres = rng.uniform(0.05, 0.95, (int(np.exp(rng.uniform(np.log(3), np.log(60)))), 2)) * image.size
    for one in centres:
        for other in centres[rng.integers(0, len(centres), int(rng.integers(0, 3)))]:
            brush.line([tuple(one), tuple(other)], fill=ink, width=int(rng.integers(1, 3)))
    colour = any_colour(rng)
    for x, y in centres:
        text = word(rng, LATIN)
        reach = 0.3 * size * len(text) + 4
        if rng.random() < 0.7:
            brush.rectangle((x - reach, y - size, x + reach, y + size), fill=colour, outline=ink)
        _write(image, x - reach + 4, y + 0.35 * size, text, size, contrasting(rng, colour))


_Layout = Callable[[np.random.Generator, Image.Image, Ink], None]
LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    "receipt": (_receipt,),
    "chart": (_chart,),
    "page": (_paragraphs, _paragraphs, _table, _network, _labels),
    "words": (_labels,),
}
"""What `printed` chooses from."""
