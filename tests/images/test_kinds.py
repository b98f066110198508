"""Pictures by their content: which files are inputs, and what is said about those that can't be opened."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from typer.testing import CliRunner

from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.data.discover import count_images, find_images
from m3score.images import formats, kinds, video
from m3score.images.decode import open_image
from m3score.images.kinds import BEGINNING, kind_of
from tests.support.fakes import NOISE

SVG = (
    b'<?xml version="1.0"?>\n<!-- a\nnote -->\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
OTHERS = {
    "README": b"P5 is a format, BM is another, GIF too; RIFF",
    "Makefile": b"all:\n\techo",
    "page": b"<!DOCTYPE html><html><body><svg width='9'/></body></html>",
    "blob.unknown": bytes(range(256)),
    "nothing": b"",
    "a.json": SVG,  # a suffix that says enough is believed
    ".DS_Store": b"\0\0\0\1Bud1",
}
UNREADABLE = {
    "drawing.svg": (SVG, "an SVG drawing has no pixels of its own: draw it first"),
    "drawing": (SVG, "an SVG drawing has no pixels"),
    "photo.heic": (HEIC, "HEIC pictures need an optional package: pip install pillow-heif"),
    "photo": (HEIC, "HEIC pictures need"),
    "a.jxl": (b"\xff\x0a" + bytes(30), "JPEG XL pictures need an optional package"),
    "a.exr": (b"\x76\x2f\x31\x01" + bytes(30), "OpenEXR pictures can't be read here"),
    "raw.nef": (b"II*\0\x08\0\0\0" + bytes(30), "a raw camera file"),
    "text.heic": (b"hello", "not an image that Pillow can read"),
}


def save(kind: str, image: Image.Image = NOISE) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_formats: None) -> Path:
    """Pictures under names that do not say so, pictures that can't be opened, and what is no picture."""
    monkeypatch.chdir(tmp_path)
    without_plugins(monkeypatch)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "no_suffix").write_bytes(save("png"))
    (folder / "odd.thing").write_bytes(save("jpeg"))
    for name, content in OTHERS.items():
        (folder / name).write_bytes(content)
    for name, (content, _) in UNREADABLE.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def fresh_formats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What can be opened is found out anew, and once more after the test."""
    formats.raster_formats.cache_clear()
    formats.image_suffixes.cache_clear()
    yield
    monkeypatch.undo()
    formats.raster_formats.cache_clear()
    formats.image_suffixes.cache_clear()


def without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kinds, formats):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)


def test_every_picture_in_a_folder_is_a_row(mixed: Path) -> None:
    skipped: list[str] = []
    found = list(find_images("in", on_skip=skipped.append))
    assert sorted(item.relative for item in found) == sorted(["no_suffix", "odd.thing", *UNREADABLE])
    assert len(skipped) == len(OTHERS) - 1  # hidden files aren't even counted
    assert count_images("in") == len(found)
    for name, (_, reason) in UNREADABLE.items():
        with pytest.raises(M3ScoreError, match=reason) as failure:
            open_image(mixed / name)
        assert str(mixed / name) in str(failure.value)


def test_every_picture_in_a_shard_is_a_row(mixed: Path) -> None:
    with tarfile.open("s.tar", "w") as shard:
        shard.add("in")
    found = {item.relative: item for item in find_images("s.tar")}
    assert sorted(found) == sorted(f"in/{name}" for name in ["no_suffix", "odd.thing", *UNREADABLE])
    assert found["in/no_suffix"].content == save("png")
    assert found["in/raw.nef"].error and "raw camera file" in found["in/raw.nef"].error


def test_the_command_scores_what_it_can_and_says_why_not_the_rest(mixed: Path) -> None:
    result = CliRunner().invoke(app, ["rank", "in", "--scorer", "jpeg", "--out", "s.jsonl"])
    assert result.exit_code == 3 and f"{len(UNREADABLE)} inputs failed" in result.stderr
    assert "Ranked 2 of 10 images" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "PPM", "JPEG2000", "ICNS", "DDS"]
)
def test_signatures_are_those_of_the_files_that_pillow_writes(kind: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    assert kind_of(save(kind)[:BEGINNING]) in {kind, "PNM", "JPEG 2000"}


def test_videos_without_their_reader_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_formats: None
) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    (tmp_path / "clip.MP4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    alone = CliRunner().invoke(app, ["rank", str(tmp_path), "--scorer", "jpeg"])
    assert alone.exit_code == 2 and "no images found" in alone.stderr
    assert "pip install 'm3score[video]'" in " ".join(alone.stderr.split())
    NOISE.save(tmp_path / "a.png")
    beside = CliRunner().invoke(app, ["rank", str(tmp_path), "--scorer", "jpeg"])
    assert beside.exit_code == 0 and "m3score[video]" in " ".join(beside.stderr.split())


def test_heic_is_read_where_its_package_is(tmp_path: Path, fresh_formats: None) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    wide = NOISE.resize((64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    pillow_heif.register_heif_opener()
    path = tmp_path / "photo"
    wide.save(path, "HEIF", quality=100, exif=exif.tobytes())
    assert [item.path for item in find_images(tmp_path)] == [str(path)]
    opened = open_image(path)
    assert opened.size == (32, 64)
    turned = np.asarray(wide.transpose(Image.Transpose.ROTATE_270), float)
    assert np.abs(np.asarray(opened, float) - turned).mean() < 12
