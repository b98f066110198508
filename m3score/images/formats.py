"""Which formats can be opened here, and which files that are found are inputs.

Knows Pillow's formats, those that installed packages add to them, and names and first bytes of files.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

from PIL import Image

from m3score.images.kinds import FOREIGN_SUFFIXES, OTHER_SUFFIXES, PLUGINS, kind_of
from m3score.images.video import VIDEO_SUFFIXES, looks_like_video, video_suffixes

# Read by Pillow in name only (a stub without a decoder) or by starting another program (Ghostscript).
_NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Tried first, as Image.open does: some of the others take their time to say that a file isn't theirs.
_COMMON = {"BMP", "GIF", "JPEG", "PPM", "PNG"}


@lru_cache(maxsize=1)
def raster_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are opened. Plugins registered before the first use count."""
    Image.init()
    _init_plugins()
    names = sorted(Image.OPEN, key=lambda name: name not in _COMMON)  # stable: the rest in Pillow's order
    return tuple(name for name in names if name not in _NOT_RASTER)


def _init_plugins() -> None:
    """Have the packages of kinds.PLUGINS that are installed teach Pillow their formats."""
    for module, _ in PLUGINS.values():
        if find_spec(module):
            plugin = importlib.import_module(module)  # that is all it takes for some
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener(decode_threads=1)  # workers run side by side already


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes (".jpg", ".webp", ".mp4", ...) of every format that can be opened here."""
    formats = {*raster_formats(), "MPO"}  # MPO is opened by way of JPEG
    raster = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    return frozenset(raster) | video_suffixes()


def may_be_image(path: str, beginning: Callable[[], bytes] | None) -> bool:
    """Whether a file that was found, not given, is an input: a picture, or a video that can be opened here.

    A suffix that says enough is believed. A picture of a kind that can't be opened here is an input too: its
    row says why.

    Args:
        path: its name.
        beginning: reads its first kinds.BEGINNING bytes, none if it can't be read; None where that would cost
            too much.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in image_suffixes() or suffix in FOREIGN_SUFFIXES:
        return True
    if suffix in OTHER_SUFFIXES or suffix in VIDEO_SUFFIXES or beginning is None:
        return False
    content = beginning()
    return kind_of(content) is not None or (bool(video_suffixes()) and looks_like_video(content))
