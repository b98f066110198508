"""The golden data of tests/data/parity, and the tiny models it was made with."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m3score import load_model
from m3score.models.m3.encoder import EncodedImage
from m3score.models.m3.model import M3Model

ROOT = Path(__file__).parents[1] / "data" / "parity"
CHECKPOINTS = ROOT / "checkpoints"
LLAVA = "tiny-llava-v1.5-7b-m3"
SEPARATE = "tiny-llava-v1.5-7b-m3-separate-clip"
SHARDED = "tiny-llava-v1.5-7b-m3-sharded-bin"
NEXT = "tiny-llava-next-vicuna-7b-m3"
NAMES = (LLAVA, SEPARATE, SHARDED, NEXT)
SCALES = (1, 9, 36, 144, 576)

GOLDEN: dict[str, Any] = json.loads((ROOT / "golden" / "golden.json").read_text())
IMAGES = tuple(GOLDEN["images"])


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(ROOT / "golden" / "golden.npz") as stored:
        return {key: stored[key] for key in stored.files}


def golden_name(name: str) -> str:
    """The checkpoint whose goldens these are: the sharded one has those of its original."""
    return GOLDEN["same_goldens_as"].get(name, name)


def golden(name: str) -> dict[str, Any]:
    return GOLDEN["checkpoints"][golden_name(name)]


@cache
def model(name: str) -> M3Model:
    return load_model(CHECKPOINTS / name if name in NAMES else name, device="cpu", dtype="float32")


def picture(image: str) -> Image.Image:
    return Image.open(ROOT / "images" / f"{image}.png").convert("RGB")


@cache
def encoded(name: str, image: str) -> EncodedImage:
    return model(name).encode(picture(image))
