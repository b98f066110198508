"""Make again what the `vision` complexity needs of a model: statistics of its features over drawings.

    python -m m3score.calibration.vision m3score/assets/m3-tiny
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console

from m3score.calibration.drawings.reference import reference
from m3score.models.fingerprint import fingerprint
from m3score.models.m3.model import M3Model, load_model
from m3score.models.m3.tower import vision_features
from m3score.models.whitening import measure


def encoder(model: M3Model):  # type: ignore[no-untyped-def]
    """A model's vision tower, as models/whitening.py wants it."""

    def encode(images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.cat(vision_features(model, [model.tiles(image) for image in images]))

    return encode


def main(
    model: Annotated[str, typer.Argument(help="A bundled name, a folder or a hub id.")],
    out: Annotated[Path | None, typer.Option(help="By default vision.safetensors in the folder.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
) -> None:
    """Work out a model's statistics and write them beside its weights."""
    path = out or Path(model) / "vision.safetensors"
    loaded = load_model(model, device=device, dtype="float32")
    found = measure(encoder(loaded), reference())
    found.save(path, fingerprint(model))
    Console(stderr=True).print(f"{path}: a picture of nothing has at most {float(found.nothing):.2f}")


if __name__ == "__main__":
    typer.run(main)
