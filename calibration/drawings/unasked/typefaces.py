"""Typefaces and words for drawn print: whatever fonts a machine has, and random text that they can show.

Knows font files and characters; knows no pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

from m3score.common.errors import M3ScoreError

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "C:/Windows/Fonts")
"""Where fonts are looked for by default."""
CAPITAL = 0.7
"""Height of a capital letter as a share of the font's size, which holds within a few percent for most
fonts."""

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_RANGES = {
    "greek": (0x391, 0x3C9),
    "cyrillic": (0x410, 0x44F),
    "hebrew": (0x5D0, 0x5EA),
    "arabic": (0x627, 0x64A),
    "devanagari": (0x905, 0x939),
    "bengali": (0x985, 0x9B9),
    "tamil": (0xB85, 0xBB9),
    "telugu": (0xC05, 0xC39),
    "thai": (0xE01, 0xE2E),
    "georgian": (0x10D0, 0x10F0),
    "armenian": (0x531, 0x587),
    "ethiopic": (0x1200, 0x1248),
    "hangul": (0xAC00, 0xC200),
    "kana": (0x3041, 0x30FA),
    "han": (0x4E00, 0x5E00),
}


@dataclass(frozen=True)
class Typeface:
    """A font file and the letters that text in it is made of."""

    path: str | None
    """None: Pillow's own typeface."""
    letters: str

    @property
    def latin(self) -> bool:
        return self.letters == LATIN

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font at a size in pixels."""
        return _font(self.path, size)


@lru_cache(maxsize=1024)
def _font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise M3ScoreError("Pillow was built without FreeType: drawn print needs it.")
    return font


def find_typefaces(folders: Sequence[str | Path] = FOLDERS) -> list[Typeface]:
    """Every font below the folders that has letters, in the order of its file name; Pillow's own first."""
    files = {path.name: path for folder in folders for path in sorted(Path(folder).rglob("*.[to]tf"))}
    found = [Typeface(None, LATIN)]
    for name in sorted(files):
        letters = _letters(str(files[name]))
        found += [Typeface(str(files[name]), part) for part in letters]
    return found


def _letters(path: str) -> list[str]:
    """Of each script that the font can show, its letters; Latin beside others only where it comes alone."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, lazy=True) as font:
            shown = set(font.getBestCmap() or ())
    except (OSError, TTLibError):
        return []
    others = []
    for first, last in _RANGES.values():
        part = [code for code in range(first, last) if code in shown]
        if len(part) >= 20:
            others.append("".join(map(chr, part)))
    return ([LATIN] if all(ord(letter) in shown for letter in LATIN) else []) + others


def word(rng: np.random.Generator, letters: str) -> str:
    """A random word: capitalised, in capitals, a number, a price, or small letters."""
    length = 1 + int(rng.poisson(4))
    if letters != LATIN:
        return "".join(rng.choice(list(letters), length))
    kind = rng.random()
    if kind < 0.25:
        digits = "".join(map(str, rng.integers(0, 10, length)))
        return (
            digits
            if rng.random() < 0.4
            else f"{digits}{rng.choice(list('.,:/-%'))}{rng.integers(0, 100):02d}"
        )
    text = "".join(rng.choice(list("eeeettaaoinshrdlucmfwypvbgkqjxz"), length))
    if kind < 0.45:
        return text.upper()
    ending = str(rng.choice(list(".,:;!?)"))) if rng.random() < 0.15 else ""
    return (text.capitalize() if kind < 0.6 else text) + ending
