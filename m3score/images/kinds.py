"""What sort of picture a file holds, by its first bytes, whatever its name; and what helps with those that
cannot be opened.

Knows signatures only. Whether a picture is whole, and whether Pillow reads it, shows when it is opened.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

BEGINNING = 4096
"""Bytes that tell: an SVG drawing may begin with a long comment."""

# Strong signatures only: what is no picture must not be taken for one. Raw before TIFF, which some are.
_SIGNATURES = {
    "raw camera file": rb"....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]\x08\0|IIU\0|II\*\0.{4}CR",
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "PSD": rb"8BPS\0[\x01\x02]",
    "PNM": rb"P[1-6]\s+(#|\d+\s+\d+\s)",
    "DDS": rb"DDS \x7c\0\0\0",
    "QOI": rb"qoif",
    "ICNS": rb"icns\0",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "SVG": rb"(\xef\xbb\xbf)?\s*(<\?xml.*?\?>\s*|<!--.*?-->\s*|<!DOCTYPE svg.*?>\s*)*<svg[\s>]",
    "EPS": rb"%!PS-Adobe-\d\.\d EPSF|\xc5\xd0\xd3\xc6",
    "WMF": rb"\xd7\xcd\xc6\x9a\0\0|\x01\0\0\0.{36} EMF",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
    "JPEG XR": rb"II\xbc\x01",
    "GIMP": rb"gimp xcf ",
    "DjVu": rb"AT&TFORM....DJV",
}
_PATTERNS = {kind: re.compile(signature, re.DOTALL) for kind, signature in _SIGNATURES.items()}

PLUGINS = {"HEIC": ("pillow_heif", "pillow-heif"), "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin")}
"""By kind, the module that teaches Pillow to read it, and the package that holds the module."""

RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
)
"""Many of these are TIFF files whose first picture is a thumbnail: opened as such, it would be scored."""

FOREIGN_SUFFIXES = RAW_SUFFIXES | frozenset(
    (
        *(".avif", ".avifs", ".djvu", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heics", ".heif", ".hif"),
        *(".jxl", ".jxr", ".svg", ".svgz", ".wmf", ".xcf"),
    )
)
"""Suffixes of pictures that Pillow alone may be unable to read: they are inputs, with an error if need be."""

OTHER_SUFFIXES = frozenset(
    (
        *(".7z", ".aac", ".arrow", ".bin", ".bz2", ".c", ".cfg", ".cls", ".cpp", ".css", ".csv", ".db"),
        *(".doc", ".docx", ".feather", ".flac", ".gz", ".h", ".h5", ".htm", ".html", ".ini", ".ipynb"),
        *(".js", ".json", ".jsonl", ".lock", ".log", ".m4a", ".md", ".mp3", ".ndjson", ".npy", ".npz"),
        *(".ogg", ".opus", ".parquet", ".pdf", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".rst"),
        *(".safetensors", ".sh", ".sqlite", ".srt", ".tar", ".tex", ".tgz", ".toml", ".tsv", ".txt"),
        *(".vtt", ".wav", ".wma", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip", ".zst"),
    )
)
"""Suffixes that say enough for a file in a folder not to be looked into: it is no picture."""


def kind_of(beginning: bytes) -> str | None:
    """The sort of picture that a file with these first bytes is; None if it is none that is known.

    Args:
        beginning: the first BEGINNING bytes, or all there are.
    """
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.match(beginning)), None)


def help_with(beginning: bytes, name: str) -> str | None:
    """What helps with a picture that Pillow does not know; None if the file is none of a known sort.

    Args:
        beginning: as of `kind_of`.
        name: of the file.
    """
    suffix = os.path.splitext(name)[1].lower()
    kind = "raw camera file" if suffix in RAW_SUFFIXES else kind_of(beginning)
    if kind in PLUGINS:
        module, package = PLUGINS[kind]
        return (
            None if find_spec(module) else f"{kind} pictures need an optional package: pip install {package}"
        )
    if kind == "AVIF":
        return "AVIF pictures need Pillow 11.3 or newer: pip install -U pillow"
    if kind == "SVG" or suffix == ".svgz":
        return "an SVG drawing has no pixels of its own: draw it first, for instance as PNG"
    if kind == "raw camera file":
        return "a raw camera file, which has to be developed first, for instance to TIFF"
    if kind in ("EPS", "WMF", "OpenEXR", "Radiance HDR", "JPEG XR", "GIMP", "DjVu"):
        return f"{kind} pictures can't be read here: convert them first, for instance to PNG"
    return None
