"""Draw docs/rooms.svg from the layers in pyproject.toml.

python tools/draw_rooms.py    # after a change of the rooms; a test compares
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "rooms.svg"
KNOWS = {
    "cli": "options, the terminal",
    "calibration": "drawings, training, benchmarks, fitting",
    "runs": "order, resume, executors, budgets",
    "analysis": "select, compare, report, demo",
    "routing": "features, predictors, promises",
    "scoring": "traces to complexity, scorers",
    "models": "weights, prompts, decoding",
    "data": "inputs, questions, grading",
    "tables": "columns, file formats",
    "images": "bytes to pixels, worker processes",
    "common": "errors, files, limits",
}
OUTSIDE = ("cli", "calibration")
"""Folders beside m3score/."""
TORCH = ("calibration", "scoring", "models")
_WIDTH, _HIGH, _GAP, _LEFT, _TOP = 620, 34, 8, 40, 16


def layers() -> list[str]:
    """The rooms, highest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[str] = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return found


def drawing() -> str:
    """The picture."""
    rooms = layers()
    height = _TOP + len(rooms) * (_HIGH + _GAP) + 36
    bottom = _TOP + len(rooms) * (_HIGH + _GAP) - _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" viewBox="0 0 {_WIDTH} {height}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<path d="M18 {_TOP} V{bottom - 8} m-6 -2 l6 10 l6 -10" stroke="#555" fill="none"/>',
    ]
    for number, room in enumerate(rooms):
        top = _TOP + number * (_HIGH + _GAP)
        box = f'x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - 16}" height="{_HIGH}" rx="5"'
        parts += [
            f'<rect {box} fill="{"#e3f1ee" if room in OUTSIDE else "#eef1f6"}"/>',
            _text(_LEFT + 14, top, room, 'font-size="15" font-weight="bold"'),
            _text(_LEFT + 150, top, KNOWS[room], 'font-size="14"'),
        ]
        if room in TORCH:
            parts.append(_text(_WIDTH - 30, top, "torch", 'font-size="12" text-anchor="end"'))
    said = "imports go downwards only; torch: where it may be imported"
    parts += [_text(_LEFT, bottom + 2, said, 'font-size="13"'), "</svg>"]
    return "\n".join(parts) + "\n"


def _text(x: int, top: int, said: str, style: str) -> str:
    """A text in the line that begins at `top`."""
    return f'<text x="{x}" y="{top + _HIGH // 2 + 5}" fill="#222" {style}>{said}</text>'


if __name__ == "__main__":
    FILE.write_text(drawing())
