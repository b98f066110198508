"""Assorted drawings: any index of the stream, again and again the same file, and all kinds of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from m3score.calibration.drawings.unasked import assorted, pages
from m3score.calibration.drawings.unasked.assorted import assort


def test_a_pure_function_of_seed_and_index() -> None:
    files = [assort(3, index) for index in range(12)]
    assert files[7] == assort(3, 7) and files[7] != assort(4, 7) and len(set(files)) == 12
    sizes = [Image.open(io.BytesIO(content)).size for content in files]
    assert len(set(sizes)) > 8 and max(map(max, sizes)) <= 2600 and min(map(min, sizes)) >= 16


@pytest.mark.parametrize("kind", assorted._PAINTERS)
def test_every_kind_has_the_size_it_is_given_or_its_own(kind: str) -> None:
    image = assorted._PAINTERS[kind](np.random.default_rng(1), (160, 120))
    assert image.mode == "RGB" and min(image.size) >= 16
    if kind not in ("receipt", "chart"):
        assert image.size == (160, 120)


def test_shares_are_of_all_kinds() -> None:
    assert sum(assorted.SHARES.values()) == pytest.approx(1)
    assert set(assorted.SHARES) == {"drawing", *assorted._PAINTERS}


@pytest.mark.parametrize("layouts", pages.LAYOUTS)
def test_pages_are_printed_on_what_they_are_given(layouts: str) -> None:
    grey = Image.new("RGB", (300, 220), (128, 128, 128))
    page = pages.printed(np.random.default_rng(2), grey.size, layouts, grey.copy())
    changed = (np.asarray(page) != np.asarray(grey)).any(axis=2).mean()
    assert page.size == grey.size and 0.001 < changed < 0.9
