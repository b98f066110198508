"""The golden counts of tests/data/budgets.json: what real processors make of 40 sizes at every rung.

python -m tests.support.golden_budgets TYPE... asks the processors of tiny checkpoints and writes the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from m3score.models.budgets.base import Family, Size
from m3score.models.budgets.table import read_family

FILE = Path(__file__).parents[1] / "data" / "budgets.json"
RUNGS = {
    "qwen2_5_vl": (64, 256, 1024, 4096, 16384),
    "qwen3_vl": (64, 256, 1024, 4096),
    "internvl": (256, 1280, 1792, 3328),
    "smolvlm": (64, 320, 640, 1088),
    "llava_onevision": (1485, 2241, 3753, 7371, 8829),
    "gemma3": (256, 768, 1024, 1280),
    "gemma4": (70, 140, 280, 560, 1120),
}


class Counter:
    """Counts the visual tokens that a checkpoint's processor makes of a picture."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor

        config = json.loads((folder / "config.json").read_text())
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._token = config.get("image_token_id") or config["image_token_index"]

    def count(self, family: Family, size: Size, budget: int | None = None) -> int:
        """Of a picture of that size; by default of what the processor does unless told otherwise."""
        told = {} if budget is None else family.processor_kwargs(budget)
        if not family.per_call:
            for name, value in told.items():
                setattr(self._processor.image_processor, name, value)
            told = {}
        content = [{"role": "user", "content": [{"type": "image"}]}]
        text = self._processor.apply_chat_template(content, tokenize=False)
        made = self._processor(text=[text], images=[[Image.new("RGB", size)]], images_kwargs=told)
        return sum(token == self._token for token in made["input_ids"][0])


def stored() -> dict[str, Any]:
    """What the file holds."""
    held: dict[str, Any] = json.loads(FILE.read_text())
    return held


def main(types: list[str]) -> None:
    """Ask the processors of these types, and write the file."""
    from m3score.models.torchvision import mend_torchvision

    mend_torchvision()
    from tests.support.stock_checkpoints import make_checkpoint

    held = stored()
    for model_type in types:
        with tempfile.TemporaryDirectory() as place:
            folder = make_checkpoint(model_type, Path(place))
            counter, family = Counter(folder), read_family(folder, model_type)
            counts = [
                [counter.count(family, (width, height), rung) for rung in RUNGS[model_type]]
                for width, height in held["sizes"]
            ]
        held["families"][model_type] = {"rungs": list(RUNGS[model_type]), "counts": counts}
    parts = [
        f'    "{name}": {{\n      "rungs": {json.dumps(found["rungs"])},\n'
        f'      "counts": {json.dumps(found["counts"])}\n    }}'
        for name, found in held["families"].items()
    ]
    families = ",\n".join(parts)
    sizes = json.dumps(held["sizes"])
    FILE.write_text(f'{{\n  "sizes": {sizes},\n  "families": {{\n{families}\n  }}\n}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
