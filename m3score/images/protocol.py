"""Values between processes, without pickles: a JSON header, then raw bytes.

A message is the header's length (8 bytes, big-endian), the header, and the bytes of the arrays, pictures and
byte strings that it names, in their order. What comes from a worker process is checked like any input: it
may have been talked into anything by the picture that it decoded. So a message makes values of plain types
only, and no larger than the reader allows.

Types: None, bool, int, float, str (names of files that are not UTF-8 too: JSON escapes what they hold),
bytes, paths, tuples, lists, dictionaries with text keys, numpy arrays of numbers, PIL images of mode RGB.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

_LENGTH = struct.Struct(">Q")
_HEADER_BYTES = 2**26
_STRIP = 2**24  # bytes of a picture that exist a second time on their way


class WireError(ValueError):
    """A value that can't be sent, or what came is no message."""


def pack(value: Any) -> tuple[bytes, list[Any]]:
    """A message that `send` writes; WireError for a value of another type."""
    parts: list[Any] = []
    header = json.dumps(_packed(value, parts)).encode("ascii")
    return _LENGTH.pack(len(header)) + header, parts


def send(pipe: IO[bytes], message: tuple[bytes, list[Any]]) -> None:
    """Write one message of `pack`."""
    header, parts = message
    _write(pipe, header)
    for part in parts:
        for piece in _pieces(part):
            _write(pipe, piece)
    pipe.flush()


def receive(pipe: IO[bytes], largest: int) -> Any:
    """Read one message.

    Args:
        pipe: where from.
        largest: bytes that any one part of it may have.

    Raises:
        EOFError: the other side is gone.
        WireError: not a message, or one with a larger part.
    """
    (length,) = _LENGTH.unpack(_read(pipe, _LENGTH.size))
    if length > _HEADER_BYTES:
        raise WireError(f"a header of {length:,} bytes")
    try:
        return _unpacked(json.loads(_read(pipe, length)), pipe, largest)
    except (EOFError, WireError):
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise WireError(f"not a message ({type(error).__name__})") from None


def _packed(value: Any, parts: list[Any]) -> Any:
    if value is None or isinstance(value, bool | str) or type(value) in (int, float):
        return value
    if isinstance(value, list):
        return [_packed(one, parts) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [_packed(one, parts) for one in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": [[key, _packed(one, parts)] for key, one in value.items()]}
    if isinstance(value, os.PathLike):
        return {"path": os.fsdecode(value)}
    if isinstance(value, bytes):
        parts.append(value)
        return {"bytes": len(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        parts.append(value)
        return {"array": [value.dtype.str, list(value.shape)]}
    if isinstance(value, Image.Image) and value.mode == "RGB":
        parts.append(value)
        return {"image": list(value.size)}
    raise WireError(f"a {type(value).__name__} can't be sent")


def _unpacked(value: Any, pipe: IO[bytes], largest: int) -> Any:
    """The value; parts are read in the order in which `_packed` met them."""
    if isinstance(value, list):
        return [_unpacked(one, pipe, largest) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tuple":
        return tuple(_unpacked(one, pipe, largest) for one in held)
    if kind == "dict":
        return {str(key): _unpacked(one, pipe, largest) for key, one in held}
    if kind == "path":
        return Path(held)
    if kind == "bytes":
        return bytes(_read(pipe, _allowed(held, largest)))
    if kind == "array":
        dtype, shape = np.dtype(held[0]), [int(length) for length in held[1]]
        if dtype.kind not in "biuf" or min(shape, default=0) < 0:
            raise WireError("not an array of numbers")
        data = _read(pipe, _allowed(math.prod(shape) * dtype.itemsize, largest))
        return np.frombuffer(data, dtype).reshape(shape)
    if kind == "image":
        return _picture(pipe, int(held[0]), int(held[1]), largest)
    raise WireError(f"unknown kind {kind!r}")


def _picture(pipe: IO[bytes], width: int, height: int, largest: int) -> Image.Image:
    if min(width, height) < 1:
        raise WireError("a picture without pixels")
    _allowed(3 * width * height, largest)
    picture = Image.new("RGB", (width, height))
    for top, bottom in _rows(width, height):
        strip = Image.frombytes("RGB", (width, bottom - top), _read(pipe, 3 * width * (bottom - top)))
        picture.paste(strip, (0, top))
    return picture


def _pieces(part: Any) -> Iterator[Any]:
    if isinstance(part, Image.Image):
        for top, bottom in _rows(*part.size):
            yield part.crop((0, top, part.width, bottom)).tobytes()
    elif isinstance(part, np.ndarray):
        yield np.ascontiguousarray(part).data.cast("B") if part.size else b""
    else:
        yield part


def _rows(width: int, height: int) -> Iterator[tuple[int, int]]:
    step = max(1, _STRIP // (3 * width))
    yield from ((top, min(height, top + step)) for top in range(0, height, step))


def _allowed(length: int, largest: int) -> int:
    if not 0 <= length <= largest:
        raise WireError(f"a part of {length:,} bytes")
    return length


def _write(pipe: IO[bytes], data: Any) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read(pipe: IO[bytes], length: int) -> bytearray:
    data = bytearray(length)
    rest = memoryview(data)
    while rest:
        count = pipe.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        rest = rest[count:]
    return data
