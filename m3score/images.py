"""Open images the way the model should see them.

Knows Pillow and files; knows nothing about models, nor how files are found (see finding.py). Every failure is
an M3ScoreError that names the file and what is wrong with it.

What the model sees of a file, and why:

- EXIF orientation is applied: an image is judged the way people see it.
- Animated files give their first frame, multi-page files their first page.
- Transparency is dropped, not blended, as the M3 authors do with `convert("RGB")`.
- Colour profiles are ignored, as the authors do; CMYK, palette, LAB and the like are Pillow's conversion.
- 16-bit grey is scaled to 8 bits (Pillow alone would clip almost everything to white). 32-bit integers and
  floats have no agreed range: see `_to_8_bit`.
"""

from __future__ import annotations

import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from m3score.errors import M3ScoreError

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: about half a gigabyte as RGB, and where Pillow itself gives up."""

# Read by Pillow in name only (a stub without a decoder) or by starting another program (Ghostscript).
_NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Tried first, as Image.open does: some of the others take their time to say that a file isn't theirs.
_COMMON = {"BMP", "GIF", "JPEG", "PPM", "PNG"}

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

_SPECIAL_FILES = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@lru_cache(maxsize=1)
def _raster_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened. Plugins registered before the first use count."""
    Image.init()
    names = sorted(Image.OPEN, key=lambda name: name not in _COMMON)  # stable: the rest in Pillow's order
    return tuple(name for name in names if name not in _NOT_RASTER)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes (".jpg", ".webp", ...) of every raster format that Pillow reads here."""
    formats = {*_raster_formats(), "MPO"}  # MPO is opened by way of JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that any table can hold: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open, decode and convert one image.

    Args:
        source: a path, the bytes of an image file, a PIL image, or a numpy array: uint8 of shape (H, W),
            (H, W, 1), (H, W, 3) or (H, W, 4), or uint16 of shape (H, W).
        max_pixels: refuse, before decoding, an image of more pixels than this.

    Returns:
        A decoded, upright image of mode RGB. A PIL image that already is one comes back itself, not a copy.

    Raises:
        M3ScoreError: one sentence that names the file and what is wrong with it.
    """
    return _open(source, max_pixels, None)[0]


def open_reduced(
    source: ImageSource, side: int, *, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, tuple[int, int]]:
    """`open_image` for those who need no more than a small picture: same checks, same errors, often faster.

    A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if its longest side is then still at least `side`
    pixels; what cannot be decoded at reduced size comes back whole. Nothing is ever enlarged.

    Returns:
        The image (mode RGB, upright), and the (width, height) in pixels that it would have had in full.
    """
    return _open(source, max_pixels, side)


def _open(source: ImageSource, max_pixels: int, side: int | None) -> tuple[Image.Image, tuple[int, int]]:
    """The image, at least `side` pixels long where it is a file that can be reduced, and its full size."""
    with _quiet_pillow():
        if isinstance(source, np.ndarray):
            return _to_rgb(_from_array(source), "the array", max_pixels)
        if isinstance(source, Image.Image):  # never reduced: it is the caller's, and would stay so
            name = getattr(source, "filename", "") or "the image"
            return _to_rgb(source, printable(name), max_pixels)
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            if not data:
                raise M3ScoreError("the image: no data (0 bytes)")
            return _decode(io.BytesIO(data), "the image", max_pixels, side)
        if isinstance(source, str | os.PathLike):
            return _open_file(source, max_pixels, side)
    raise M3ScoreError(
        f"an image must be a path, bytes, a PIL image or a numpy array, not {type(source).__name__}"
    )


def why_not_a_file(path: str | os.PathLike[str]) -> str | None:
    """What stands in the way of reading the path as a regular file, without opening it; None if nothing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return f"broken link: its target {printable(os.readlink(path))} does not exist"
        return "no such file"
    except OSError as error:
        return system_error(error)
    except ValueError:  # a NUL byte in the name
        return "not a valid file name"
    if stat.S_ISDIR(status.st_mode):
        return "is a folder, not an image file"
    for is_special, kind in _SPECIAL_FILES:
        if is_special(status.st_mode):
            return f"is {kind}, not an image file"
    return "empty file (0 bytes)" if status.st_size == 0 and stat.S_ISREG(status.st_mode) else None


def _open_file(
    path: str | os.PathLike[str], max_pixels: int, side: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    name = printable(path)
    problem = why_not_a_file(path)
    if problem:
        raise M3ScoreError(f"{name}: {problem}")
    try:
        with open(path, "rb") as file:
            return _decode(file, name, max_pixels, side)
    except OSError as error:
        raise M3ScoreError(f"{name}: {system_error(error)}") from None


def _decode(
    file: IO[bytes], name: str, max_pixels: int, side: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    try:
        image = Image.open(file, formats=_raster_formats())
    except Exception as error:  # plugins raise whatever their parsing ran into: struct.error, KeyError, ...
        raise M3ScoreError(f"{name}: {_explain(error, max_pixels)}") from None
    with image:
        return _to_rgb(image, name, max_pixels, side)


def _to_rgb(
    image: Image.Image, name: str, max_pixels: int, side: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    pixels = image.width * image.height
    if pixels == 0:
        raise M3ScoreError(f"{name}: has no pixels ({image.width}x{image.height})")
    if pixels > max_pixels:
        size = f"{image.width}x{image.height}"
        raise M3ScoreError(f"{name}: {pixels:,} pixels ({size}), more than the limit of {max_pixels:,}")
    full = image.size
    try:
        if side is not None and max(full) > side:
            image.draft(None, (math.ceil(full[0] * side / max(full)), math.ceil(full[1] * side / max(full))))
        reduced = image.size != full
        image.load()
        orientation = _orientation(image)
        upright = _upright(_as_mode_rgb(image), orientation)
        if not reduced:  # some formats know their true size only when they are loaded
            return upright, upright.size
        return upright, full[::-1] if orientation in _SIDEWAYS else full
    except Exception as error:  # as in _decode
        raise M3ScoreError(f"{name}: {_explain(error, max_pixels)}") from None


def _orientation(image: Image.Image) -> object:
    """EXIF orientation after loading (Pillow turns TIFF and AVIF upright itself, and clears the tag)."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data says nothing about the pixels: take them as they lie
        return 1


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _as_mode_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bit(np.asarray(image), image.mode))
    elif image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert(image.mode.upper())
    elif image.mode == "P" and "transparency" in image.info:
        image = image.copy()
        del image.info["transparency"]  # else Pillow warns on stderr; the pixels are the same
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """(H, W) grey values of a wide type to uint8.

    16-bit modes: 0..65535 to 0..255. Mode I (32-bit integers): values within 0..255 are kept and values
    within 0..65535 taken as 16 bits. Mode F: values within 0..1 are scaled, values within 0..255 kept.
    Anything else is stretched from its minimum to its maximum, as a viewer would.
    """
    if mode.startswith("I;16"):
        return _scaled(values, 0, 65535)
    values = np.nan_to_num(values.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    ceilings = (255, 65535) if mode == "I" else (1, 255)
    for ceiling in ceilings:
        if low >= 0 and high <= ceiling:
            return _scaled(values, 0, ceiling)
    return _scaled(values, low, high)


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
    detail = " ".join(str(error).split())[:160] or type(error).__name__
    if isinstance(error, EOFError) or "truncated" in detail.lower() or "unexpected end" in detail.lower():
        return "truncated: the file ends before the image does"
    if isinstance(error, OSError) and error.errno is not None:
        return system_error(error)
    return f"damaged image data ({detail})"


def system_error(error: OSError) -> str:
    """An operating system's error in its own words, without errno and path: "permission denied"."""
    return (error.strerror or str(error) or type(error).__name__).lower()


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
