"""Open images the way the model should see them.

Knows Pillow and files; knows nothing about models, nor how files are found (see discover.py). Every failure
is an M3ScoreError that names the file and what is wrong with it.

What the model sees of a file, and why:

- EXIF orientation is applied: an image is judged the way people see it.
- Animated files give their first frame, multi-page files their first page.
- A video is a grid of six of its frames: see video.py.
- Transparency is dropped, not blended, as the M3 authors do with `convert("RGB")`.
- Colour profiles are ignored, as the authors do; CMYK, palette, LAB and the like are Pillow's conversion.
- 16-bit grey is scaled to 8 bits (Pillow alone would clip almost everything to white). 32-bit integers and
  floats have no agreed range: see `_to_8_bit`.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from m3score.common.errors import M3ScoreError, one_line
from m3score.common.files import check_bytes, open_regular, printable, system_error
from m3score.common.limits import MAX_FILE_BYTES, MAX_PIXELS
from m3score.images.formats import image_suffixes, raster_formats
from m3score.images.given import ImageSource, as_source
from m3score.images.kinds import BEGINNING, RAW_SUFFIXES, help_with
from m3score.images.reduce import QUICK, SIDEWAYS, averaged, quick_jpeg, sampled_cells, upright
from m3score.images.video import VIDEO_SUFFIXES, looks_like_video, video_grid

LARGE = 16_777_216
"""Pixels of a picture whose decoding takes memory worth speaking of."""

_ask_before_large: ContextVar[Callable[[int], None] | None] = ContextVar("ask_before_large", default=None)

_PIXELS_AT_ONCE = 2**22


@contextmanager
def asking_before_large(ask: Callable[[int], None]) -> Iterator[None]:
    """In here, `ask` is called with a picture's pixels before more than LARGE of them are decoded.

    Worker processes wait for their turn so, whatever they run: it is not for every function between them and
    the picture to hand this on.
    """
    before = _ask_before_large.set(ask)
    try:
        yield
    finally:
        _ask_before_large.reset(before)


def suffix_of(content: bytes) -> str:
    """The suffix for a file with this content, such as ".jpg"; "" for what is no image of a known format."""
    with _quiet_pillow():
        try:
            name = Image.open(io.BytesIO(content), formats=raster_formats()).format or ""
        except Exception:  # as in _decode; why it is no image is told by whoever opens the file
            return ""
    suffix = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}.get(name, f".{name.lower()}")
    return suffix if suffix in image_suffixes() else ""


def open_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> Image.Image:
    """Open, decode and convert one image.

    Args:
        source: a path, the bytes of an image file, a PIL image, or a numpy array: uint8 of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), or uint16 of shape (H, W); or what given.as_source makes one
            of these of.
        max_pixels: refuse, before decoding, an image of more pixels than this.
        max_bytes: refuse, before reading, a file (or bytes) of more bytes than this.

    Returns:
        A decoded, upright image of mode RGB. A PIL image that already is one comes back itself, not a copy.

    Raises:
        M3ScoreError: one sentence that names the file and what is wrong with it.
    """
    return _open(source, max_pixels, max_bytes, None).image


def open_reduced(
    source: ImageSource, side: int, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> tuple[Image.Image, tuple[int, int]]:
    """`open_image`, then averaged over whole blocks of pixels: same checks, same errors, often faster.

    The blocks are as large as leaves the longest side at least `side` pixels; nothing is ever enlarged. The
    result hangs on the pixels alone: a path, its bytes, the opened picture and its array give the same one. A
    JPEG decoded at 1/2, 1/4 or 1/8 (Pillow's draft) would be cheaper still, but no array could be made to
    agree with it.

    Returns:
        The image (mode RGB, upright), and the (width, height) in pixels that it would have had in full.
    """
    found = _open(source, max_pixels, max_bytes, side)
    return found.image, found.size


def open_sampled(
    source: ImageSource, side: int, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_FILE_BYTES
) -> Sampled:
    """`open_reduced`, and a sample of the picture's pixels as they are; the arguments are the same."""
    return _open(source, max_pixels, max_bytes, side, cells=True)


@dataclass(frozen=True, eq=False)
class Sampled:
    """A picture averaged over blocks, and what of its own pixels is kept."""

    image: Image.Image
    """Upright, mode RGB or RGBX."""
    size: tuple[int, int]
    """Its (width, height) in full, in pixels."""
    cells: np.ndarray
    """Of its luminance at full size, see reduce.sampled_cells; (0, 0) if not asked for."""


def _open(
    source: ImageSource, max_pixels: int, max_bytes: int, side: int | None, cells: bool = False
) -> Sampled:
    """The image, averaged over blocks where it is longer than `side`."""
    want = _Wanted(max_pixels, side, cells)
    if not isinstance(source, str | os.PathLike | bytes | Image.Image):
        source = as_source(source)
    with _quiet_pillow():
        if isinstance(source, np.ndarray):
            return _to_rgb(_from_array(source), "the array", want)
        if isinstance(source, Image.Image):
            name = getattr(source, "filename", "") or "the image"
            return _to_rgb(source, printable(name), want)
        if isinstance(source, bytes):
            if not source:
                raise M3ScoreError("no data (0 bytes)", subject="the image")
            check_bytes(len(source), "the image", max_bytes)
            return _decode(io.BytesIO(source), "the image", want)
        if isinstance(source, str | os.PathLike):
            name = printable(source)
            with open_regular(source, max_bytes) as file:
                return _decode(file, name, want)
    raise M3ScoreError(
        f"an image must be a path, bytes, a PIL image or a numpy array, not {type(source).__name__}"
    )


@dataclass(frozen=True)
class _Wanted:
    """What is to be made of a picture; see `_open`."""

    max_pixels: int
    side: int | None
    cells: bool


def _decode(file: IO[bytes], name: str, want: _Wanted) -> Sampled:
    beginning = file.read(BEGINNING)
    if looks_like_video(beginning):
        file.seek(0)
        grid = video_grid(file, name, max_pixels=want.max_pixels)
        return _sampled(grid, 1, want)
    file.seek(0)
    suffix = os.path.splitext(name)[1].lower()
    try:
        if suffix in RAW_SUFFIXES:
            raise UnidentifiedImageError
        image = Image.open(file, formats=raster_formats())
    except Exception as error:  # plugins raise whatever their parsing ran into: struct.error, KeyError, ...
        if isinstance(error, UnidentifiedImageError):
            if suffix in VIDEO_SUFFIXES:
                raise M3ScoreError("not a video that can be read", subject=name) from None
            if advice := help_with(beginning, name):
                raise M3ScoreError(advice, subject=name) from None
        raise M3ScoreError(_explain(error, want.max_pixels), subject=name) from None
    with image:
        return _to_rgb(image, name, want, file)


def _to_rgb(image: Image.Image, name: str, want: _Wanted, file: IO[bytes] | None = None) -> Sampled:
    """An upright RGB picture; `file` is what `image` was opened from, if it was."""
    _check_pixels(image.size, name, want.max_pixels)
    pixels = image.width * image.height
    if pixels > LARGE and (ask := _ask_before_large.get()):
        ask(pixels)
    try:
        quick = None if want.side is None or file is None or pixels < QUICK else quick_jpeg(image, file)
        if quick is None:
            image.load()
            _check_pixels(image.size, name, want.max_pixels)  # an icon may hold more than its directory says
        return _sampled(_as_mode_rgb(image) if quick is None else quick, _orientation(image), want)
    except M3ScoreError:
        raise
    except Exception as error:  # as in _decode
        raise M3ScoreError(_explain(error, want.max_pixels), subject=name) from None


def _sampled(whole: Image.Image, orientation: int, want: _Wanted) -> Sampled:
    """What is wanted of a decoded picture, mode RGB or RGBX, that lies as EXIF says."""
    small = upright(averaged(whole, want.side, orientation), orientation)
    return Sampled(
        image=small if small.mode == "RGB" or want.cells else small.convert("RGB"),
        size=whole.size[::-1] if orientation in SIDEWAYS else whole.size,
        cells=sampled_cells(whole, orientation) if want.cells else np.zeros((0, 0), np.uint8),
    )


def _check_pixels(size: tuple[int, int], name: str, max_pixels: int) -> None:
    pixels = size[0] * size[1]
    if pixels <= 0:
        raise M3ScoreError(f"has no pixels ({size[0]}x{size[1]})", subject=name)
    if pixels > max_pixels:
        shape = f"{size[0]}x{size[1]}"
        raise M3ScoreError(
            f"{pixels:,} pixels ({shape}), more than the limit of {max_pixels:,}", subject=name
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation after loading (Pillow turns TIFF and AVIF upright itself, and clears the tag)."""
    try:
        told = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data says nothing about the pixels: take them as they lie
        return 1
    return told if isinstance(told, int) else 1


def _as_mode_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bit(image)
    elif image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    elif image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # else Pillow warns on stderr; the pixels are the same
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey values of a wide type to mode L.

    16-bit modes: 0..65535 to 0..255. Mode I (32-bit integers): values within 0..255 are kept and values
    within 0..65535 taken as 16 bits. Mode F: values within 0..1 are scaled, values within 0..255 kept.
    Anything else is stretched from its minimum to its maximum, as a viewer would.
    """
    low, high = (0.0, 65535.0) if image.mode.startswith("I;16") else _range(image)
    grey = Image.new("L", image.size)
    for top, values in _strips(image):
        grey.paste(Image.fromarray(_scaled(values, low, high)), (0, top))
    return grey


def _range(image: Image.Image) -> tuple[float, float]:
    """What becomes 0 and 255 of mode I or F."""
    extremes = [(float(values.min()), float(values.max())) for _, values in _strips(image)]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    for ceiling in (255, 65535) if image.mode == "I" else (1, 255):
        if low >= 0 and high <= ceiling:
            return 0, ceiling
    return low, high


def _strips(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, grey values as float64 (rows, W)) of one strip after the other: wide types take memory."""
    rows = max(1, _PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        yield top, np.nan_to_num(np.asarray(strip).astype(np.float64))


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    span = max(high - low, np.finfo(np.float64).tiny)
    return np.rint((values.astype(np.float64) - low) / span * 255).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype == np.uint16 and array.ndim == 2 and array.size:
        return Image.fromarray(_scaled(array, 0, 65535))
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise M3ScoreError(
            f"an array image must be uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or uint16 of "
            f"shape (H, W), not {array.dtype} of shape {array.shape}"
        )
    return Image.fromarray(
        np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
    )


def _explain(error: Exception, max_pixels: int) -> str:
    """Pillow's many ways of failing, in a few words that say what to do about the file."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the limit of {max_pixels:,}"
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    detail = one_line(error, 160)
    if isinstance(error, EOFError) or "truncated" in detail.lower() or "unexpected end" in detail.lower():
        return "truncated: the file ends before the image does"
    if isinstance(error, OSError) and error.errno is not None:
        return system_error(error)
    return f"damaged image data ({detail})"


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_filters: warnings.catch_warnings | None = None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """No warnings from Pillow in here: what matters becomes an error, the rest (metadata) is of no use.

    Warning filters belong to the process, and images are opened in several threads at once, so the first one
    in sets the filter and the last one out takes it away.
    """
    global _quiet_depth, _quiet_filters
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
