"""The map of a vision score lies on its picture where the complexity is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import m3score
from m3score.analysis.where import Where, grid_box, overlay, where
from m3score.models.vision.complexity import Distinct, combine
from m3score.models.vision.prepare import luminance
from m3score.models.vision.reader import read


@pytest.fixture(scope="module")
def model() -> Any:
    return m3score.load_model("m3-tiny", device="cpu")


def busy_corner() -> Image.Image:
    """Coloured patches at the right end of a wide, plain picture."""
    picture = np.full((200, 600, 3), 200, np.uint8)
    blocks = np.random.default_rng(1).integers(0, 256, (10, 8, 3), dtype=np.uint8)
    picture[:, 440:] = np.kron(blocks, np.ones((20, 20, 1), np.uint8))
    return Image.fromarray(picture)


def test_it_glows_where_the_complexity_is(model: Any) -> None:
    picture = busy_corner()
    score = model.vision_score(picture)
    found = where(score)
    assert found.tokens.sum() == pytest.approx(score.effective_tokens, rel=1e-3)
    assert found.box == (0, 0, 1, 1)  # stretched, not padded
    laid = np.asarray(overlay(picture, found), np.float32)
    assert laid.shape == (192, 576, 3)
    colour = laid.max(2) - laid.min(2)  # the picture is grey, only the map has colours
    assert colour[:, 440:].mean() > 2 * colour[:, :300].mean()


def test_what_there_is_to_read_lies_on_the_same_square() -> None:
    picture = Image.new("RGB", (600, 200), "white")
    draw = ImageDraw.Draw(picture)
    for line in range(9):
        draw.text((310, 10 + 20 * line), "Small print on the right-hand half of a page", "black")
    (reading,) = read([luminance(picture)])
    assert reading.tokens > 10
    found = where(combine(Distinct(1.0, (), np.ones((24, 24), np.float32) / 576), reading, (1, 576)))
    assert found.box == (0, 0, 1, 1) and found.tokens[:, :12].sum() == 0
    laid = np.asarray(overlay(picture, found), np.float32)
    colour = laid.max(2) - laid.min(2)
    assert colour[:, 320:].mean() > 5 * colour[:, :270].mean()


def test_a_cropping_model_leaves_dark_what_it_does_not_see() -> None:
    found = Where(np.ones((4, 4), np.float32), grid_box((400, 200), "square"))
    laid = np.asarray(overlay(Image.new("RGB", (400, 200), "white"), found, 400))
    assert (
        (laid[:, :95] == 255).all()
        and (laid[:, 305:] == 255).all()
        and (laid[:, 110:290] != 255).any(2).all()
    )


def test_nothing_glows_where_nothing_is(model: Any) -> None:
    blank = Image.new("RGB", (300, 200), (200, 210, 220))
    found = where(model.vision_score(blank))
    laid = np.asarray(overlay(blank, found), np.float32)
    assert np.abs(laid - laid.mean((0, 1))).max() < 25 and (laid.max(2) - laid.min(2)).max() < 30
