"""Opening images: what the model sees of odd files, and what is said about broken ones."""

from __future__ import annotations

import io
import os
import socket
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from m3score.common.errors import M3ScoreError
from m3score.common.limits import MAX_PIXELS
from m3score.images.decode import open_image
from m3score.images.formats import image_suffixes
from m3score.images.given import ImageSource

MODES = [
    "1",
    "L",
    "P",
    "LA",
    "PA",
    "RGBA",
    "RGBa",
    "La",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
]


def noise(width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_path_bytes_image_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    image = noise()
    path = tmp_path / "a.png"
    image.save(path)
    with Image.open(path) as lazy:
        sources: list[ImageSource] = [path, str(path), path.read_bytes(), image, lazy, np.asarray(image)]
        opened = [open_image(source) for source in sources]
    for result in opened:
        assert result.mode == "RGB"
        assert np.array_equal(np.asarray(result), np.asarray(image))


@pytest.mark.parametrize(
    "kind", ["png", "webp", "tiff", "bmp", "gif", "jpeg2000", "ppm", "avif", "ico", "tga"]
)
def test_every_format_opens_and_its_suffix_is_known(kind: str, tmp_path: Path) -> None:
    suffix = {"jpeg2000": ".jp2"}.get(kind, f".{kind}")
    if suffix not in image_suffixes():
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / f"a{suffix}"
    noise(32, 32).save(path, kind)
    assert open_image(path).size == (32, 32)


def test_suffixes_are_those_of_raster_formats() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".jp2", ".mpo"} <= image_suffixes()
    assert not {".eps", ".pdf", ".h5", ".wmf"} & image_suffixes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_every_format(orientation: int) -> None:
    upright = noise()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that each tag asks to undo
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for kind in ("png", "tiff"):  # Pillow leaves the first as stored and turns the second itself
        opened = open_image(as_bytes(stored, kind, exif=exif))
        assert np.array_equal(np.asarray(opened), np.asarray(upright)), kind


def test_damaged_exif_is_not_an_error() -> None:
    assert open_image(as_bytes(noise(), "jpeg", exif=b"Exif\x00\x00MM\x00\x2anonsense")).size == (40, 30)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = as_bytes(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_transparency_is_dropped_not_blended() -> None:
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert open_image(clear).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(np.asarray(clear)).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(Image.new("LA", (2, 2), (50, 0))).getpixel((0, 0)) == (50, 50, 50)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode: str) -> None:
    assert open_image(Image.new(mode, (5, 4))).mode == "RGB"


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for source in (values, Image.fromarray(values), as_bytes(Image.fromarray(values), "png")):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0.0, 1.0]], np.float32), [0, 0, 255]),
        (np.full((1, 3), 1e9, np.float32), [0, 0, 0]),
    ],
)
def test_wide_grey_types(values: np.ndarray, expected: list[int]) -> None:
    assert np.asarray(open_image(Image.fromarray(values)))[0, :, 0].tolist() == expected


def test_palette_with_transparency_is_silent() -> None:
    image = noise().quantize(8)
    image.info["transparency"] = bytes([0, 128, 255])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(image).mode == "RGB"
    assert "transparency" in image.info, "the caller's image is left alone"


def test_tiny_and_extreme_shapes() -> None:
    for size in ((1, 1), (1, 3), (3, 1), (3000, 2)):
        assert open_image(as_bytes(Image.new("RGB", size), "png")).size == size


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "empty file (0 bytes)"),
    "text.jpg": (lambda: b"hello\n", "not an image that Pillow can read"),
    "cut.jpg": (
        lambda: cut(as_bytes(noise(400, 300), "jpeg")),
        "truncated: the file ends before the image does",
    ),
    "cut.png": (
        lambda: cut(as_bytes(noise(400, 300), "png")),
        "truncated: the file ends before the image does",
    ),
    "cut.tiff": (lambda: cut(as_bytes(noise(400, 300), "tiff", compression="tiff_lzw")), ""),
    "cut.webp": (lambda: cut(as_bytes(noise(400, 300), "webp")), ""),
    "cut.gif": (lambda: cut(as_bytes(noise(400, 300), "gif")), ""),
    "cut.bmp": (
        lambda: cut(as_bytes(noise(400, 300), "bmp")),
        "truncated: the file ends before the image does",
    ),
    "bomb.png": (lambda: as_bytes(Image.new("1", (20000, 20000)), "png"), "more pixels than the limit"),
    "script.eps": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "EPS pictures can't be read here",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_give_one_clear_sentence(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, expected = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data())
    with pytest.raises(M3ScoreError) as caught:
        open_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and expected in message and "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_random_damage_never_gives_another_kind_of_error() -> None:
    rng = np.random.default_rng(1)
    for kind in ("jpeg", "png", "gif", "webp", "bmp", "ppm", "tga", "jpeg2000", "ico", "pcx"):
        good = np.frombuffer(as_bytes(noise(32, 32), kind), np.uint8)
        for _ in range(40):
            bad = good.copy()
            where = rng.integers(0, min(len(bad), 400), 6)
            bad[where] = rng.integers(0, 256, 6)
            try:
                assert open_image(bad.tobytes(), max_pixels=1_000_000).mode == "RGB"
            except M3ScoreError as error:
                assert "\n" not in str(error)


def test_pixel_limit_is_checked_before_decoding() -> None:
    data = as_bytes(noise(40, 30), "png")
    with pytest.raises(M3ScoreError, match=r"1,200 pixels \(40x30\), more than the limit of 1,000"):
        open_image(data, max_pixels=1000)
    assert MAX_PIXELS > 100_000_000


def test_what_is_not_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s.jpg"))
    expected = {
        "pipe.jpg": "is a named pipe",
        "s.jpg": "is a socket",
        "gone.jpg": "broken link: its target nowhere.jpg does not exist",
        "missing.jpg": "no such file",
        ".": "is a folder, not an image file",
        "missing.jpg\0": "not a valid file name",
        "x" * 300: "file name too long",
    }
    for name, reason in expected.items():
        with pytest.raises(M3ScoreError, match=reason):
            open_image(f"{tmp_path}/{name}")
    server.close()
    with pytest.raises(M3ScoreError, match="is a device"):
        open_image("/dev/zero")


@pytest.mark.parametrize(
    "source",
    [
        3,
        None,
        np.full((2, 2, 3), 2.0),
        np.zeros((2, 2, 5), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        b"",
        [[1]],
    ],
)
def test_other_sources_are_refused_with_what_is_allowed(source: object) -> None:
    with pytest.raises(M3ScoreError, match=r"must be|must lie|no data"):
        open_image(source)  # type: ignore[arg-type]


def test_no_warnings_from_many_threads_and_filters_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # every image now earns Pillow's warning
    data = as_bytes(noise(40, 30), "png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(open_image, [data] * 200))
        assert list(warnings.filters) == before
    assert not caught
