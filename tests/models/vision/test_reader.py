"""The reader finds print, tells how high its letters are, and sees none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from m3score.models.vision.prepare import LONGEST, luminance
from m3score.models.vision.reader import Reading, read

SIDE = 504


def page(size: float, lines: int, side: int = SIDE) -> Image.Image:
    """A page with so many lines of letters; a font's capitals are about .7 of its size high."""
    image = Image.new("RGB", (side, side), (245, 243, 238))
    font = ImageFont.load_default(size)
    words = "the quick brown fox jumps over some lazy dogs near an old river bank "
    for line in range(lines):
        text = (words * 4)[line * 3 : line * 3 + int(1.6 * side / size)]
        ImageDraw.Draw(image).text((12, 12 + 1.5 * size * line), text, fill=(25, 25, 30), font=font)
    return image


def reading(image: Image.Image) -> Reading:
    (found,) = read([luminance(image)])
    return found


def test_more_letters_take_more_tokens() -> None:
    few, many = reading(page(14, 3)), reading(page(14, 20))
    assert 5 < few.tokens < many.tokens / 4


def test_smaller_letters_take_more_tokens_on_the_same_area() -> None:
    small, large = reading(page(11, 28)), reading(page(22, 14))
    assert small.tokens > 2 * large.tokens


@pytest.mark.parametrize("size", [12, 20, 40])
def test_the_height_of_capitals(size: float) -> None:
    found = reading(page(size, 6))
    assert found.letter_height is not None
    # Said for a longest side of 336 pixels.
    assert found.letter_height == pytest.approx(0.72 * size * 336 / SIDE, rel=0.25)


def test_the_size_of_the_file_says_little() -> None:
    image = page(16, 12)
    twice = image.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    assert reading(twice).tokens == pytest.approx(reading(image).tokens, rel=0.25)


def test_the_map_holds_all_tokens_where_the_print_is() -> None:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    image.paste(page(14, 8, side=SIDE // 2), (SIDE // 2, 0))
    found = reading(image)
    assert found.cells.sum() == pytest.approx(found.tokens, rel=1e-4)
    assert found.cells[:12, 12:].sum() > 0.95 * found.tokens


def test_what_holds_no_print() -> None:
    random = np.random.default_rng(0)
    ramp = np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1))
    noise = random.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    coarse = np.asarray(Image.fromarray(noise[:32, :32]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    for name, pixels in (("black", ramp * 0), ("gradient", ramp), ("noise", noise), ("clouds", coarse)):
        (found,) = read([pixels])
        assert found.tokens < 4, name
    assert read([ramp * 0])[0].letter_height is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (5, 7)])
def test_any_shape(shape: tuple[int, int]) -> None:
    (found,) = read([np.zeros(shape, np.uint8)])
    assert found.tokens == 0 and found.cells.shape == (24, 24)


def test_large_pictures_are_shrunk_and_small_ones_left_alone() -> None:
    assert luminance(Image.new("RGB", (4000, 1000))).shape == (252, LONGEST)
    assert luminance(Image.new("RGB", (40, 30))).shape == (30, 40)
