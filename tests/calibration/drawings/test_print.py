"""Drawn print says where its letters are; the reference drawings are always the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from m3score.calibration.drawings.unasked.lookalikes import LOOKALIKES
from m3score.calibration.drawings.unasked.print import LARGEST, SIDE, SMALLEST, draw_print
from m3score.calibration.drawings.unasked.reference import reference
from m3score.calibration.drawings.unasked.typefaces import Typeface, find_typefaces
from m3score.models.vision.prepare import luminance
from m3score.models.vision.reader import read

FACES: list[Typeface] = find_typefaces([])


def test_without_any_font_pillow_s_own_is_there() -> None:
    assert len(FACES) == 1 and FACES[0].latin


@pytest.mark.parametrize("index", range(12))
def test_labels_lie_on_ink(index: int) -> None:
    drawn = draw_print(np.random.default_rng((1, index)), FACES)
    assert drawn.pixels.shape == drawn.height.shape == (SIDE, SIDE)
    assert drawn.pixels.dtype == np.uint8
    text = drawn.height > 0
    if text.mean() > 0.02:
        assert drawn.pixels[text].std() > 2, "what is labelled is one colour"
        assert SMALLEST * 0.7 <= drawn.height[text].min() <= drawn.height[text].max() <= LARGEST * 1.5


def test_some_drawings_hold_print_and_some_none() -> None:
    shares = [(draw_print(np.random.default_rng((2, i)), FACES).height > 0).mean() for i in range(40)]
    assert 0 in shares and max(shares) > 0.2


@pytest.mark.parametrize("painter", list(dict.fromkeys(LOOKALIKES)))
def test_lookalikes_are_read_less_than_print(painter: Callable[..., Image.Image]) -> None:
    """Whatever fools the reader in them, a page of print holds far more."""
    grey = [luminance(painter(np.random.default_rng((3, i)), SIDE)) for i in range(6)]
    printed = [draw_print(np.random.default_rng((2, i)), FACES) for i in range(24)]
    full = [one.pixels for one in printed if (one.height > 0).mean() > 0.2]
    found, wanted = (np.mean([one.tokens for one in read(part)]) for part in (grey, full))
    assert found < wanted / 3


def test_the_reference_is_the_same_every_time() -> None:
    ours = reference()
    for source in (ours.drawings, ours.nothing, ours.textures, ours.structured):
        first, again = (list(islice(source(), 3)) for _ in range(2))
        for one, other in zip(first, again, strict=True):
            assert np.array_equal(np.asarray(one), np.asarray(other))
