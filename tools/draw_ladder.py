"""Draw docs/ladder.png: pictures through few and many visual tokens, and what the bundled model answers.

python tools/draw_ladder.py    # after the bundled model was replaced; a test compares the answers

The answers are also kept inside the file, as text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
FILE = ROOT / "docs" / "ladder.png"
ROWS = [
    ("sign.png", "What number is on the sign?", "274"),
    ("one_shape.png", "What color is the shape?", "red"),
]
_PANEL, _GAP, _TOP, _TEXT = 200, 16, 44, 42
_RIGHT, _WRONG, _INK = (12, 110, 70), (176, 42, 42), (40, 44, 52)


def answers() -> dict[str, list[str]]:
    """Of the bundled model by question, coarsest scale first."""
    import m3score

    model = m3score.load_model("m3-tiny", device="cpu")
    found = {}
    for name, question, _ in ROWS:
        image = model.encode(ROOT / "examples" / name)
        found[question] = [model.answer(image, question, tokens=tokens) for tokens in model.ladder]
    return found


def main() -> None:
    """Write the picture."""
    import m3score
    from m3score.analysis.demo.token_grid import render_token_grid

    model = m3score.load_model("m3-tiny", device="cpu")
    found, ladder = answers(), model.ladder
    font, bold = ImageFont.load_default(19), ImageFont.load_default(22)
    width = _GAP + len(ladder) * (_PANEL + _GAP)
    height = _TOP + len(ROWS) * (_PANEL + 2 * _TEXT + _GAP)
    picture = Image.new("RGB", (width, height), "white")
    brush = ImageDraw.Draw(picture)
    for column, tokens in enumerate(ladder):
        left = _GAP + column * (_PANEL + _GAP)
        label = f"{tokens} visual token{'s' if tokens > 1 else ''}"
        brush.text((left + _PANEL / 2, _TOP / 2), label, _INK, font, anchor="mm")
        for row, (name, question, truth) in enumerate(ROWS):
            top = _TOP + row * (_PANEL + 2 * _TEXT + _GAP) + _TEXT
            image = Image.open(ROOT / "examples" / name).convert("RGB")
            mosaic = render_token_grid(image, model.config, tokens)[1]
            picture.paste(mosaic.resize((_PANEL, _PANEL), Image.Resampling.NEAREST), (left, top))
            answer = found[question][column]
            colour = _RIGHT if answer == truth else _WRONG
            brush.text((left + _PANEL / 2, top + _PANEL + _TEXT / 2), answer, colour, bold, anchor="mm")
            if column == 0:
                brush.text((_GAP, top - _TEXT / 2), question, _INK, bold, anchor="lm")
    note = PngInfo()
    note.add_text("answers", json.dumps(found))
    picture.quantize(128).save(FILE, optimize=True, pnginfo=note)


if __name__ == "__main__":
    main()
