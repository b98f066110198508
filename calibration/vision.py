"""Make again what the `vision` complexity needs of a model: statistics of its features over drawings.

python -m m3score.calibration.vision m3-tiny --out m3score/assets/m3-tiny.vision.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from m3score.calibration.drawings.unasked.reference import reference
from m3score.models.fingerprint import fingerprint
from m3score.models.loading import load_model
from m3score.models.vision.meter import encoder
from m3score.models.vision.whitening import measure


def main(
    model: Annotated[str, typer.Argument(help="A bundled name, a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Where the statistics go: .safetensors.")],
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
) -> None:
    """Work out a model's statistics and write them."""
    loaded = load_model(model, device=device, dtype="float32")
    found = measure(encoder(loaded), reference())
    found.save(out, fingerprint(model))
    Console(stderr=True).print(f"{out}: a picture of nothing has at most {float(found.nothing):.2f}")


if __name__ == "__main__":
    typer.run(main)
