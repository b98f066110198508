"""Pictures that a program hands over as it has them: what they are taken for, where that is beyond doubt.

Knows arrays, tensors, file objects and rows of data sets by what they can do, and imports none of their
libraries.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from m3score.common.errors import M3ScoreError

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | np.ndarray"
"""What open_image takes as it is."""

CHANNELS = (1, 3, 4)


def is_picture(value: Any) -> bool:
    """Whether a value is one picture that is no path: not a list of them, and no name of one."""
    if isinstance(value, bytes | bytearray | memoryview | Image.Image) or hasattr(value, "read"):
        return True
    if isinstance(value, Mapping):
        return _of_row(value) is not None
    return _is_array(value) and 2 <= len(value.shape) <= 3


def as_source(value: Any) -> ImageSource:
    """A picture as open_image takes it.

    Args:
        value: what open_image takes; a file object, read from where it is; a row or image of a data set: a
            mapping with `bytes` or `path` (datasets with decode=False), or with an `image`; an array or
            tensor (H, W), (H, W, C) or, where it can't be that, (C, H, W), with C = 1, 3 or 4: of whole
            numbers as open_image takes them, or of floats in [0, 1].

    Raises:
        M3ScoreError: it is none, or its numbers could be read in two ways.
    """
    if isinstance(value, str | os.PathLike | bytes | Image.Image):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        found = _of_row(value)
        if found is None:
            raise M3ScoreError(
                f"a mapping is a picture if it has bytes, path or image, not {', '.join(map(str, value))}.",
                subject="the image",
            )
        return as_source(found)
    if hasattr(value, "read"):
        content = value.read()
        if not isinstance(content, bytes):
            raise M3ScoreError("a file object has to be opened in binary mode.", subject="the image")
        return content
    if _is_array(value):
        return _as_pixels(_as_array(value))
    return value  # open_image says what is allowed


def name_of(value: Any) -> str | None:
    """The file that a picture says it is from, if it does."""
    if isinstance(value, Mapping):
        path = value.get("path")
        return path if isinstance(path, str) and path else name_of(value.get("image"))
    name = getattr(value, "filename", None) or getattr(value, "name", None)
    return name if isinstance(name, str) and name and isinstance(value, Image.Image | io.IOBase) else None


def _of_row(row: Mapping[str, Any]) -> Any:
    return next((row[key] for key in ("bytes", "image", "path") if row.get(key) is not None), None)


def _is_array(value: Any) -> bool:
    """numpy's, torch's, or anybody's that tells a shape and becomes a numpy array."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def _as_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # a tensor of torch, maybe on a GPU, maybe of bfloat16
        value = value.detach().cpu()
        value = value.float() if "float" in str(value.dtype) else value
    return np.asarray(value)


def _as_pixels(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:
        array = np.moveaxis(array, 0, 2)  # (C, H, W)
    if not np.issubdtype(array.dtype, np.floating):
        return array
    if not array.size or not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
        raise M3ScoreError(
            "an array of floats must lie in [0, 1]; give uint8 for 0 to 255.", subject="the image"
        )
    return np.rint(array * 255).astype(np.uint8)
