"""Train the small adaptive-length tokenizer (m3score/alit.py) on drawn pictures.

    python -m m3score.calibration.alit --out runs/alit-tiny --minutes 15

The loss is the mean absolute error, at a few rounds drawn for
every batch, so that every round learns to be the last. The threshold is chosen on drawings that training has
not seen: half of them are then rebuilt with half of the tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from m3score.alit import AlitModel, AlitSettings, as_pixels
from m3score.calibration.drawn import draw

UNSEEN = 1_000_003
"""Added to the seed: the stream of drawings that the threshold and the card's figures are from."""


def drawings(seed: int, count: int, side: int, advance: Callable[[], object] | None = None) -> torch.Tensor:
    """Drawn pictures: uint8 (count, 3, side, side)."""
    pixels = np.empty((count, 3, side, side), np.uint8)
    for index in range(count):
        pixels[index] = as_pixels(draw(seed, index).image, side)
        if advance is not None:
            advance()
    return torch.from_numpy(pixels)


def varied(pool: torch.Tensor, size: int, side: int, random: torch.Generator) -> torch.Tensor:
    """A batch of the pool, each at a place of its own, mirrored and its colours exchanged at random."""
    chosen = torch.randint(len(pool), (size,), generator=random)
    room = pool.shape[-1] - side + 1
    batch = []
    for index in chosen.tolist():
        y, x = torch.randint(room, (2,), generator=random).tolist()
        picture = pool[index][torch.randperm(3, generator=random), y : y + side, x : x + side]
        flips = [axis for axis in (1, 2) if torch.rand((), generator=random) < 0.5]
        batch.append(picture.flip(flips))
    return torch.stack(batch).float() / 255


def train(
    settings: AlitSettings,
    *,
    seed: int,
    pool: int,
    seconds: float,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    unseen: int = 256,
    bar: Progress | None = None,
) -> tuple[AlitModel, dict[str, Any]]:
    """A tokenizer, and what is known of its training.

    Args:
        settings: of the tokenizer; the threshold is chosen here.
        seed: of weights, drawings and batches.
        pool: how many pictures are drawn.
        seconds, steps: training ends when either is reached; the learning rate follows the nearer one.
        unseen: how many other drawings the threshold is chosen on.
        bar: shows how far it is.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = AlitModel(settings)
    side = settings.image_size
    drawing = bar.add_task("Drawing", total=pool) if bar else None
    advance = partial(bar.advance, drawing) if bar and drawing is not None else None
    pictures = drawings(seed, pool, side + side // 4, advance)
    task = bar.add_task("Training", total=1.0) if bar else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    begun, done, loss_seen = time.monotonic(), 0.0, float("nan")
    step = 0
    while step < steps and done < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 50) * (1 - 0.97 * done)
        images = varied(pictures, batch_size, side, random)
        last = int(torch.randint(settings.rounds, (), generator=random))
        early = int(torch.randint(last + 1, (), generator=random))
        losses = []
        for number, tokens in enumerate(model.rounds(images)):
            if number in (early, last):
                losses.append((model.rebuild(tokens) - images).abs().mean())
            if number == last:
                break
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        done = max(step / steps, (time.monotonic() - begun) / seconds)
        loss_seen = loss.item() if step == 1 else 0.98 * loss_seen + 0.02 * loss.item()
        if bar and task is not None:
            bar.update(task, completed=min(done, 1.0), description=f"Training, error {loss_seen:.4f}")
    known = {"seed": seed, "pictures": pool, "steps": step, "seconds": round(time.monotonic() - begun)}
    errors = with_threshold(model.eval(), drawings(seed + UNSEEN, unseen, side).float() / 255)
    return model, {**known, "mean_error_by_tokens": errors}


def with_threshold(model: AlitModel, unseen: torch.Tensor) -> dict[int, float]:
    """Choose the threshold on unseen pictures. Mean errors by tokens; at 0 that of the plain mean colour."""
    errors = torch.cat([model.errors(part) for part in unseen.split(32)])
    counts = (0, *model.settings.counts)
    half = min(range(len(counts)), key=lambda place: abs(counts[place] - counts[-1] / 2))
    threshold = max(round(errors[:, half].median().item(), 4), 1e-4)
    model.settings = replace(model.settings, threshold=threshold)
    return {count: round(mean, 4) for count, mean in zip(counts, errors.mean(0).tolist(), strict=True)}


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for config.json and model.safetensors.")],
    minutes: Annotated[float, typer.Option(help="Train for so long.")] = 15.0,
    steps: Annotated[int, typer.Option(help="Or for so many steps, if that is less.")] = 1_000_000,
    pool: Annotated[int, typer.Option(help="How many pictures are drawn.")] = 4000,
    seed: Annotated[int, typer.Option()] = 1,
    width: Annotated[int, typer.Option()] = 64,
    layers: Annotated[int, typer.Option()] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Train an adaptive-length tokenizer on drawn pictures, for m3score rank --scorer alit."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        settings = AlitSettings(width=width, layers=layers)
        model, known = train(settings, seed=seed, pool=pool, seconds=60 * minutes, steps=steps, bar=bar)
    model.save(out)
    (out / "training.json").write_text(json.dumps(known, indent=2) + "\n")
    console.print(
        f"The tokenizer is in {out}: {known['steps']:,} steps, errors {known['mean_error_by_tokens']}."
    )


if __name__ == "__main__":
    typer.run(main)
