"""Draws the pictures in this folder: from nothing on them to a page full of text.

python examples/draw.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from m3score.calibration.drawings.canvas import COLOURS
from m3score.calibration.drawings.drawing import draw

HERE = Path(__file__).parent
TEXT = (
    "The number of visual tokens that a picture needs depends on the picture and on what is asked about it. "
    "A blank wall is told from a single token; the small print of a receipt is not told from a hundred. "
)


def empty() -> Image.Image:
    return Image.new("RGB", (640, 480), (214, 220, 226))


def sunset() -> Image.Image:
    ramp = np.linspace(0, 1, 480)[:, None, None] ** 1.5
    sky = (1 - ramp) * np.array([40, 60, 140]) + ramp * np.array([250, 150, 60])
    image = Image.fromarray(np.broadcast_to(sky, (480, 640, 3)).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((270, 300, 370, 400), fill=(255, 230, 140))
    return image


def one_shape() -> Image.Image:
    image = Image.new("RGB", (640, 480), (245, 245, 245))
    ImageDraw.Draw(image).ellipse((220, 130, 420, 330), fill=COLOURS["red"])
    return image


def crowd() -> Image.Image:
    """Two hundred shapes over each other."""
    rng = np.random.default_rng(3)
    image = Image.new("RGB", (800, 600), (250, 248, 240))
    brush = ImageDraw.Draw(image)
    for _ in range(200):
        x, y = rng.integers(0, (800, 600))
        size = int(rng.integers(8, 45))
        name = str(rng.choice(list(COLOURS)))
        box = (x - size, y - size, x + size, y + size)
        paint = brush.ellipse if rng.random() < 0.5 else brush.rectangle
        paint(box, fill=COLOURS[name], outline=(30, 30, 30))
    return image


def page_of_text() -> Image.Image:
    image = Image.new("RGB", (620, 800), (252, 252, 250))
    brush = ImageDraw.Draw(image)
    font, words, y = ImageFont.load_default(15), (TEXT * 9).split(), 40
    while words and y < 760:
        line = []
        while words and brush.textlength(" ".join([*line, words[0]]), font=font) < 540:
            line.append(words.pop(0))
        brush.text((40, y), " ".join(line), fill=(30, 30, 34), font=font)
        y += 23
    return image


def map_of_streets() -> Image.Image:
    rng = np.random.default_rng(5)
    image = Image.new("RGB", (700, 700), (238, 234, 224))
    brush = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, 700, 2)
        brush.ellipse((x - 70, y - 50, x + 70, y + 50), fill=(190, 220, 180))
    for _ in range(45):
        (x, y), (u, v) = rng.integers(-50, 750, (2, 2))
        brush.line((x, y, u, v), fill=(200, 196, 190), width=9)
        brush.line((x, y, u, v), fill=(255, 255, 255), width=6)
    font = ImageFont.load_default(12)
    for number in range(40):
        x, y = rng.integers(10, 660, 2)
        brush.text((x, y), f"St. {number + 1}", fill=(70, 70, 80), font=font)
    return image


def blurred_crowd() -> Image.Image:
    return crowd().filter(ImageFilter.GaussianBlur(25))


def main() -> None:
    pictures = {
        "empty": empty(),
        "sunset": sunset(),
        "one_shape": one_shape(),
        "crowd": crowd(),
        "blurred_crowd": blurred_crowd(),
        "page_of_text": page_of_text(),
        "street_map": map_of_streets(),
        "sign": draw(4, 13, "sign").image,
        "small_sign": draw(4, 3, "sign").image,
        "bar_chart": draw(4, 3, "chart").image,
        "form": draw(4, 5, "page").image,
        "leaves": draw(4, 1, "scene").image,
    }
    for name, picture in pictures.items():
        picture.save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
