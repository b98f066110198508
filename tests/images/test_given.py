"""Pictures as programs have them: taken for what they are, or refused in one sentence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import m3score
from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.images.given import as_source, is_picture
from tests.support.fakes import NOISE, FakeAnswerer, grey

PIXELS = np.asarray(NOISE)


def png() -> bytes:
    file = io.BytesIO()
    NOISE.save(file, "PNG")
    return file.getvalue()


def ways() -> dict[str, Any]:
    """The same picture in every way in which a program may have it."""
    import torch

    channels_first = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)
    return {
        "bytes": png(),
        "bytearray": bytearray(png()),
        "file": io.BytesIO(png()),
        "pil": NOISE,
        "array": PIXELS,
        "floats": PIXELS.astype(np.float32) / 255,
        "doubles first": (PIXELS / 255).transpose(2, 0, 1),
        "tensor": channels_first,
        "float tensor": channels_first.float() / 255,
        "undecoded row": {"bytes": png(), "path": "a.png"},
        "row": {"image": NOISE, "label": 3},
    }


@pytest.mark.parametrize("way", ways())
def test_every_way_is_the_same_picture(way: str) -> None:
    given = ways()[way]
    assert is_picture(given)
    assert np.array_equal(np.asarray(open_image(given)), PIXELS)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (PIXELS.astype(np.float32), r"floats must lie in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"floats must lie in \[0, 1\]"),
        (io.StringIO("text"), "binary mode"),
        ({"label": 3}, "bytes, path or image, not label"),
        (3, "an image must be a path"),
    ],
)
def test_what_leaves_doubt_is_refused(given: Any, told: str) -> None:
    with pytest.raises(M3ScoreError, match=told):
        open_image(given)


def test_a_small_picture_is_not_taken_for_channels() -> None:
    """(H, W, C) goes before (C, H, W), as ever."""
    low = np.zeros((3, 200, 3), np.uint8)
    source = as_source(low)
    assert isinstance(source, np.ndarray) and source.shape == (3, 200, 3)


def test_rank_takes_pictures_beside_paths(tmp_path: Path) -> None:
    grey(120).save(tmp_path / "mid.png")
    opened = Image.open(tmp_path / "mid.png")
    white = np.full((8, 8, 3), 255, np.uint8)
    given = [tmp_path / "mid.png", opened, white, b"no picture", {"bytes": png(), "path": "in/row.png"}]
    table = m3score.rank(given, model=FakeAnswerer()).set_index("path")
    assert set(table.index) == {
        str(tmp_path / "mid.png"),
        f"{tmp_path / 'mid.png'}#2",
        "image-1",
        "image-2",
        "in/row.png",
    }
    assert table.loc["image-1", "required_tokens"] == 576 and table.loc["image-1", "width"] == 8
    assert "Pillow" in str(table.loc["image-2", "error"])
    assert table.loc[f"{tmp_path / 'mid.png'}#2", "required_tokens"] == 36


@pytest.mark.parametrize("way", ["bytes", "pil", "array", "float tensor"])
def test_rank_takes_one_picture(way: str) -> None:
    table = m3score.rank(ways()[way], scorer="jpeg")
    assert table["complexity"].tolist() == m3score.rank([NOISE], scorer="jpeg")["complexity"].tolist()
