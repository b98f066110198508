"""Features of a picture at its own size: what the square of 288 pixels can't tell."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from m3score.images.reduce import CELL, CELLS_ACROSS, CELLS_DOWN, sampled_cells
from m3score.routing.features.native import native


def page(side: int, letters: int, lines: int) -> Image.Image:
    """A square page of dark print: so many lines with letters of so many pixels."""
    image = Image.new("RGB", (side, side), "white")
    font = ImageFont.load_default(letters)
    words = "The quick brown fox 1842 jumps over the lazy dog " * 8
    for line in range(lines):
        place = (0, side * line / lines)
        ImageDraw.Draw(image).text(place, words[line % 7 :], "black", font)
    return image


def seen(image: Image.Image) -> dict[str, float]:
    return native(sampled_cells(image), image.size)


def smaller(image: Image.Image, side: int) -> Image.Image:
    """Made as small as that and as large again: the same to whoever looks at fewer pixels."""
    return image.resize((side, side), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def test_what_is_lost_is_told_at_each_size() -> None:
    fine = page(2048, 12, 120)
    whole, half = seen(fine), seen(smaller(fine, 1024))
    assert (
        whole["native_1024"] > 3 > 0.1 > half["native_1024"]
    )  # 4096 tokens of 16 pixels would show more than 1024
    assert half["native_512"] > half["native_1024"] + 1
    assert whole["native_2048"] == 0
    assert seen(page(512, 12, 30))["native_512"] == 0


@pytest.mark.parametrize(("width", "close"), [(1023, 1025), (511, 514), (2047, 2049)])
def test_features_hardly_change_with_a_pixel_of_size(width: int, close: int) -> None:
    fine = page(2048, 14, 100)
    one, other = (seen(fine.resize((side, side), Image.Resampling.BOX)) for side in (width, close))
    for name in (name for name in one if name.startswith("native_")):
        assert one[name] == pytest.approx(other[name], abs=0.15)


def test_letters_are_counted_whatever_their_size() -> None:
    counts = []
    for letters, lines in ((40, 12), (20, 24), (10, 48)):
        at_sizes = [seen(page(side, letters * side // 640, lines))["letters"] for side in (640, 1280)]
        assert at_sizes[0] == pytest.approx(at_sizes[1], abs=0.4)
        counts.append(at_sizes[1])
    steps = np.diff(counts)  # half the height: four times as many
    assert ((steps > 0.8) & (steps < 1.9)).all()


def test_print_is_told_from_shades() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (640, 640), dtype=np.uint8))
    soft = noise.resize((40, 40), Image.Resampling.BOX).resize((640, 640), Image.Resampling.BICUBIC)
    text = seen(page(640, 14, 36))
    for other in (noise, soft, Image.new("L", (640, 640), 90)):
        found = seen(other.convert("RGB"))
        assert text["letters_share"] > found["letters_share"] + 0.3
    assert text["letters"] > seen(soft.convert("RGB"))["letters"] + 2


def test_a_large_picture_costs_no_more_cells() -> None:
    cells = sampled_cells(Image.new("RGB", (4000, 3000)))
    assert cells.shape == (CELLS_DOWN * CELL, CELLS_ACROSS * CELL)


@pytest.mark.parametrize("size", [(1, 1), (31, 700), (700, 31), (33, 40), (1100, 5)])
def test_small_pictures_are_continued(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    cells = sampled_cells(image)
    assert cells.shape[0] % CELL == cells.shape[1] % CELL == 0 and cells.size
    assert (cells == image.convert("L").getpixel((0, 0))).all()


def test_cells_are_the_pictures_own_pixels() -> None:
    grey = np.random.default_rng(1).integers(0, 256, (500, 1500), dtype=np.uint8)
    cells = sampled_cells(Image.fromarray(grey).convert("RGB"))
    assert np.array_equal(cells[:CELL, :CELL], grey[:CELL, :CELL])
    rows, columns = (length // CELL * CELL for length in grey.shape)
    assert np.array_equal(cells[-CELL:, -CELL:], grey[rows - CELL : rows, columns - CELL : columns])
