"""Drawn print, and drawings that only look like it: what m3score/models/vision/reader.py learns from.

`draw_print` gives a grey picture and, per pixel, how high the letters there are. Knows no models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from m3score.calibration.drawings.backdrops import any_colour
from m3score.calibration.drawings.unasked.lookalikes import LOOKALIKES, backdrop, contrasting
from m3score.calibration.drawings.unasked.typefaces import CAPITAL, Typeface, word

SIDE = 256
_SHEET = 384
"""Side of what is drawn before it is turned and cut."""
SMALLEST, LARGEST = 4.0, 60.0
"""Heights of capital letters that are drawn, in pixels."""


@dataclass(frozen=True, eq=False)
class Print:
    """A picture with what can be read in it."""

    pixels: np.ndarray
    """uint8 (SIDE, SIDE): luminance."""
    height: np.ndarray
    """float32 (SIDE, SIDE): height of the capital letters of the text that covers a pixel, in pixels; 0:
    none."""


class _Sheet:
    """A picture under the brush beside the heights of its letters."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.heights = Image.new("F", image.size, 0.0)
        self.brush = ImageDraw.Draw(image)
        self._marks = ImageDraw.Draw(self.heights)

    def write(
        self, x: float, baseline: float, text: str, face: Typeface, size: int, ink: tuple[int, ...]
    ) -> float:
        """Write a line, its words marked one by one; returns where it ends."""
        font = face.at(size)
        height, space = CAPITAL * size, font.getlength(" ") or size / 4
        for part in text.split(" "):
            width = font.getlength(part)
            if x > self.image.width:
                break
            self.brush.text((x, baseline), part, fill=ink, font=font, anchor="ls")
            self._marks.rectangle((x, baseline - height, x + width, baseline), fill=height)
            x += width + space
        return x


def draw_print(rng: np.random.Generator, faces: Sequence[Typeface], text: float = 0.6) -> Print:
    """One picture; a pure function of the generator's state and the typefaces.

    Args:
        rng: where chance comes from.
        faces: typefaces to choose from: half of the texts are in Latin letters.
        text: the share of pictures that have any.
    """
    if rng.random() >= text:
        sheet = _Sheet(LOOKALIKES[int(rng.integers(len(LOOKALIKES)))](rng, _SHEET))
    else:
        layout = _LAYOUTS[int(rng.integers(len(_LAYOUTS)))]
        sheet = layout(rng, faces)
    return _finish(rng, sheet)


# ---- layouts --------------------------------------------------------------------------------------------


def _face(rng: np.random.Generator, faces: Sequence[Typeface]) -> Typeface:
    wanted = [face for face in faces if face.latin] if rng.random() < 0.75 else list(faces)
    return wanted[int(rng.integers(len(wanted)))]


def _size(rng: np.random.Generator, smallest: float = SMALLEST, largest: float = LARGEST) -> int:
    """A font size whose capitals have a height in these bounds."""
    return max(5, round(float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))) / CAPITAL))


def _text(rng: np.random.Generator, face: Typeface, words: int) -> str:
    return " ".join(word(rng, face.letters) for _ in range(words))


def _paper(rng: np.random.Generator) -> tuple[_Sheet, tuple[int, ...]]:
    """A plain page, light or dark, with its ink."""
    paper = tuple(int(v) for v in rng.integers(200, 256, 3)) if rng.random() < 0.7 else any_colour(rng)
    return _Sheet(Image.new("RGB", (_SHEET, _SHEET), paper)), contrasting(rng, paper)


def _paragraphs(rng: np.random.Generator, faces: Sequence[Typeface]) -> _Sheet:
    """Blocks of running text."""
    sheet, ink = _paper(rng)
    y = rng.uniform(-10, 60)
    left, right = rng.uniform(0, 80), _SHEET - rng.uniform(0, 120)
    face, size = _face(rng, faces), _size(rng, SMALLEST, 24)
    while y < _SHEET:
        if rng.random() < 0.12:
            y += size * rng.uniform(0.5, 4)
            if rng.random() < 0.5:
                size = _size(rng, SMALLEST, 30)
        y += size * rng.uniform(1.05, 1.6)
        count = max(1, int((right - left) / (3.2 * size)))
        sheet.write(
            left, y, _text(rng, face, count if rng.random() < 0.85 else 1 + count // 2), face, size, ink
        )
    return sheet


def _receipt(rng: np.random.Generator, faces: Sequence[Typeface]) -> _Sheet:
    """Short lines, numbers at the right, rules of dashes."""
    sheet, ink = _paper(rng)
    face, size = _face(rng, faces), _size(rng, SMALLEST, 18)
    left, right, y = rng.uniform(5, 60), _SHEET - rng.uniform(5, 80), rng.uniform(0, 20)
    while y < _SHEET:
        y += size * rng.uniform(1.1, 2.2)
        kind = rng.random()
        if kind < 0.12:
            sheet.brush.line((left, y, right, y), fill=ink, width=int(rng.integers(1, 3)))
        elif kind < 0.3:
            text = _text(rng, face, int(rng.integers(1, 4)))
            middle = (left + right - face.at(size).getlength(text)) / 2
            sheet.write(middle, y, text, face, size, ink)
        else:
            sheet.write(left, y, _text(rng, face, int(rng.integers(1, 5))), face, size, ink)
            price = f"{rng.integers(0, 200)}.{rng.integers(0, 100):02d}"
            if face.latin and rng.random() < 0.7:
                sheet.write(right - face.at(size).getlength(price), y, price, face, size, ink)
    return sheet


def _scattered(rng: np.random.Generator, faces: Sequence[Typeface]) -> _Sheet:
    """Words of all sizes anywhere, over anything: signs, posters, labels."""
    sheet = _Sheet(backdrop(rng, _SHEET))
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(1, 25))):
        face, size = _face(rng, faces), _size(rng)
        text = _text(rng, face, int(rng.integers(1, 4)))
        x, y = rng.uniform(-20, _SHEET - 20), rng.uniform(10, _SHEET)
        box = (x - 0.3 * size, y - 1.1 * size, x + face.at(size).getlength(text) + 0.3 * size, y + 0.4 * size)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        if rng.random() < 0.5:
            board = any_colour(rng)
            sheet.brush.rectangle(box, fill=board)
        else:
            left, top, right, bottom = map(int, box)
            spot = sheet.image.crop((left, top, right, bottom)).resize((1, 1), Image.Resampling.BOX)
            board = spot.getpixel((0, 0))  # type: ignore[assignment]
        sheet.write(x, y, text, face, size, contrasting(rng, board))
    return sheet


def _chart(rng: np.random.Generator, faces: Sequence[Typeface]) -> _Sheet:
    """Axes with numbers, bars or lines, a legend."""
    sheet, ink = _paper(rng)
    face, size = _face(rng, faces), _size(rng, SMALLEST, 14)
    left, bottom, top = rng.uniform(30, 70), _SHEET - rng.uniform(30, 80), rng.uniform(10, 60)
    sheet.brush.line((left, top, left, bottom, _SHEET - 10, bottom), fill=ink)
    ticks = int(rng.integers(3, 10))
    soft = tuple(int(v) for v in rng.integers(150, 230, 3))
    for y in np.linspace(top, bottom, ticks):
        if rng.random() < 0.7:
            sheet.brush.line((left, y, _SHEET - 10, y), fill=soft)
        label = str(rng.integers(0, 10 ** int(rng.integers(1, 5))))
        sheet.write(left - face.at(size).getlength(label) - 4, y + size * 0.35, label, face, size, ink)
    places = np.linspace(left + 10, _SHEET - 30, int(rng.integers(3, 12)))
    tops = rng.uniform(top, bottom, len(places))
    colour = any_colour(rng)
    if rng.random() < 0.5:
        for x, y in zip(places, tops, strict=True):
            sheet.brush.rectangle((x, y, x + 0.6 * (places[1] - places[0]), bottom), fill=colour)
    else:
        sheet.brush.line([tuple(p) for p in zip(places, tops, strict=True)], fill=colour, width=2)
    for x, y in zip(places, tops, strict=True):
        sheet.write(x, bottom + 1.4 * size, _text(rng, face, 1)[:6], face, size, ink)
        if rng.random() < 0.5:
            sheet.write(x, y - 3, f"{rng.integers(0, 1000)}", face, size, ink)
    sheet.write(left, top - 6, _text(rng, face, 4), face, round(size * rng.uniform(1, 1.8)), ink)
    return sheet


def _table(rng: np.random.Generator, faces: Sequence[Typeface]) -> _Sheet:
    """Ruled cells, most of them with a word."""
    sheet, ink = _paper(rng)
    face, size = _face(rng, faces), _size(rng, SMALLEST, 16)
    xs = np.cumsum(rng.uniform(3, 9, 12) * size) - 10
    y, step = rng.uniform(0, 20), size * rng.uniform(1.3, 2.5)
    ruled = rng.random() < 0.7
    while y < _SHEET:
        y += step
        if ruled:
            sheet.brush.line((0, y + 0.3 * size, _SHEET, y + 0.3 * size), fill=ink)
        for x in xs[xs < _SHEET]:
            if rng.random() < 0.8:
                sheet.write(x + 3, y, word(rng, face.letters)[:5], face, size, ink)
    for x in xs if ruled else ():
        sheet.brush.line((x, 0, x, _SHEET), fill=ink)
    return sheet


_LAYOUTS = (_paragraphs, _receipt, _scattered, _scattered, _chart, _table)


# ---- as pictures come -----------------------------------------------------------------------------------


def _finish(rng: np.random.Generator, sheet: _Sheet) -> Print:
    """Turned, lit, blurred, compressed, cut to SIDE."""
    image, heights = sheet.image, sheet.heights
    angle = float(rng.normal(0, 2)) if rng.random() < 0.85 else float(rng.uniform(-90, 90))
    if rng.random() < 0.7:
        image = image.rotate(angle, Image.Resampling.BICUBIC)
        heights = heights.rotate(angle, Image.Resampling.NEAREST)
    grey = np.asarray(image.convert("L"), np.float32)
    start = (_SHEET - SIDE) // 2
    part = slice(start, start + SIDE)
    grey, height = grey[part, part], np.array(heights, np.float32)[part, part]
    if rng.random() < 0.5:
        grey = _lit(rng, grey)
    picture = Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.3:
        noisy = np.asarray(picture, np.float32) + rng.normal(0, rng.uniform(1, 10), (SIDE, SIDE))
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if rng.random() < 0.7:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=int(rng.integers(40, 96)))
        picture = Image.open(content)
    return Print(np.asarray(picture, np.uint8), height)


def _lit(rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """Less contrast, another brightness, light from one side; now and then a negative."""
    if rng.random() < 0.3:
        grey = 255 - grey
    slope = rng.normal(0, 30, 2) if rng.random() < 0.5 else np.zeros(2)
    y, x = np.mgrid[-0.5 : 0.5 : SIDE * 1j, -0.5 : 0.5 : SIDE * 1j]
    gain = rng.uniform(0.4, 1.1)
    return (grey - 128) * gain + 128 + rng.normal(0, 20) + slope[0] * x + slope[1] * y
