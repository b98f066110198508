"""Train the small adaptive-length tokenizer (m3score/scoring/scorers/alit_model.py) on drawn pictures.

    python -m m3score.calibration.training.alit --out runs/alit-tiny --minutes 30

The loss is the mean absolute error after two rounds that are chosen at random for every batch, so that every
round learns to be the last. Every other picture is natural-looking (clouds, leaves, fractals), because
photographs resemble those more than signs. An interrupted run resumes from OUT/unfinished.safetensors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import safe_open
from safetensors.torch import save_file

from m3score.calibration.drawings.drawing import draw
from m3score.common.errors import M3ScoreError
from m3score.scoring.scorers.alit_model import AlitModel, AlitSettings, as_pixels

UNSEEN = 1_000_003
"""Added to the seed for the drawings on which the threshold is chosen and the card's figures measured."""
UNFINISHED = "unfinished.safetensors"
SAVE_SECONDS = 60


def drawings(seed: int, count: int, side: int, advance: Callable[[], object] | None = None) -> torch.Tensor:
    """Drawn pictures, every other one natural-looking: uint8 (count, 3, side, side)."""
    pixels = np.empty((count, 3, side, side), np.uint8)
    for index in range(count):
        pixels[index] = as_pixels(draw(seed, index, "scene" if index % 2 else None).image, side)
        if advance is not None:
            advance()
    return torch.from_numpy(pixels)


def varied(pool: torch.Tensor, size: int, side: int, random: torch.Generator) -> torch.Tensor:
    """A batch of the pool, randomly cropped, mirrored and with exchanged colour channels.

    pool: uint8 (n, 3, height, width) -> float32 (size, 3, side, side) in [0, 1].
    """
    chosen = torch.randint(len(pool), (size,), generator=random)
    room = pool.shape[-1] - side + 1
    batch = []
    for index in chosen.tolist():
        y, x = torch.randint(room, (2,), generator=random).tolist()
        picture = pool[index][torch.randperm(3, generator=random), y : y + side, x : x + side]
        flips = [axis for axis in (1, 2) if torch.rand((), generator=random) < 0.5]
        batch.append(picture.flip(flips))
    return torch.stack(batch).float() / 255


@dataclass
class Run:
    """The state of a training run; `save` and `load` keep everything that the next step depends on."""

    model: AlitModel
    optimizer: torch.optim.Optimizer
    random: torch.Generator
    options: dict[str, str]
    """What the run was started with."""
    step: int = 0
    spent: float = 0.0
    """Seconds."""

    def save(self, file: Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, parameter in enumerate(self.model.parameters()):
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{number}.{name}"] = value
        tensors["random"] = self.random.get_state()
        tensors["clock"] = torch.tensor([self.step, self.spent], dtype=torch.float64)
        partly = file.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in tensors.items()}, partly, self.options)
        partly.replace(file)

    def load(self, file: Path) -> None:
        """Restore a saved state; M3ScoreError if it is of a run with other options."""
        with safe_open(file, "pt") as stored:
            if stored.metadata() != self.options:
                raise M3ScoreError(f"{file} is of a run with other options: give another --out.")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.model.state_dict()})
        for number, parameter in enumerate(self.model.parameters()):
            start = f"optimizer.{number}."
            own = {
                name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
            }
            self.optimizer.state[parameter].update(own)
        self.random.set_state(tensors["random"])
        step, self.spent = tensors["clock"].tolist()
        self.step = int(step)


def train(
    settings: AlitSettings,
    *,
    seed: int,
    pool: int,
    seconds: float,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    unseen: int = 1024,
    folder: Path | None = None,
    bar: Progress | None = None,
) -> tuple[AlitModel, dict[str, Any]]:
    """Train a tokenizer; returns it with the facts of its training.

    Args:
        settings: of the tokenizer; its threshold is chosen here.
        seed: of weights, drawings and batches.
        pool: how many pictures to draw.
        seconds, steps: training ends when either is reached; the learning rate falls towards the nearer one.
        unseen: how many further drawings the threshold is chosen on.
        folder: where the unfinished run is saved, and resumed from.
        bar: progress bar.

    Raises:
        M3ScoreError: `folder` holds a run with other settings.
    """
    torch.manual_seed(seed)
    model = AlitModel(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    options = {**asdict(settings), "seed": seed, "pool": pool, "batch_size": batch_size}
    run = Run(
        model,
        optimizer,
        torch.Generator().manual_seed(seed),
        {key: str(value) for key, value in options.items()},
    )
    unfinished = None if folder is None else folder / UNFINISHED
    if unfinished is not None and unfinished.is_file():
        run.load(unfinished)
    side = settings.image_size
    drawing = bar.add_task("Drawing", total=pool) if bar else None
    advance = partial(bar.advance, drawing) if bar and drawing is not None else None
    pictures = drawings(seed, pool, side + side // 4, advance)
    if not run.step:
        edge = (pictures.shape[-1] - side) // 2
        model.start_from(pictures[:, :, edge : edge + side, edge : edge + side].float() / 255)
    task = bar.add_task("Training", total=1.0) if bar else None
    begun = time.monotonic() - run.spent
    saved, seen = run.spent, None
    while (done := max(run.step / steps, run.spent / seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (run.step + 1) / 50) * (1 - 0.97 * done)
        loss = _loss(model, varied(pictures, batch_size, side, run.random), run.random)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.step += 1
        run.spent = time.monotonic() - begun
        seen = loss.item() if seen is None else 0.98 * seen + 0.02 * loss.item()
        if bar and task is not None:
            bar.update(task, completed=min(done, 1.0), description=f"Training, error {seen:.4f}")
        if unfinished is not None and run.spent > saved + SAVE_SECONDS:
            run.save(unfinished)
            saved = run.spent
    known = {"seed": seed, "pictures": pool, "steps": run.step, "seconds": round(run.spent)}
    errors = with_threshold(model.eval(), drawings(seed + UNSEEN, unseen, side).float() / 255)
    return model, {**known, "mean_error_by_tokens": errors}


def _loss(model: AlitModel, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The mean error of a batch over two random rounds."""
    last = int(torch.randint(model.settings.rounds, (), generator=random))
    early = int(torch.randint(last + 1, (), generator=random))
    losses = []
    for number, tokens in enumerate(model.rounds(images)):
        if number in (early, last):
            losses.append((model.rebuild(tokens) - images).abs().mean())
        if number == last:
            break
    return torch.stack(losses).mean()


def with_threshold(model: AlitModel, unseen: torch.Tensor) -> dict[int, float]:
    """Choose the threshold on unseen drawings, and set it in the model.

    Of all thousandths below 0.5 it is the one at which two natural-looking drawings (every other one) most
    rarely take the same number of tokens. Returns the mean errors of all drawings by tokens; at 0, that of
    the plain mean colour.
    """
    errors = torch.cat([model.errors(part) for part in unseen.split(32)])
    counts = (0, *model.settings.counts)
    thresholds = [number / 1000 for number in range(1, 500)]
    threshold = min(thresholds, key=lambda one: _ties(errors[1::2], one))
    model.settings = replace(model.settings, threshold=threshold)
    return {count: round(mean, 4) for count, mean in zip(counts, errors.mean(0).tolist(), strict=True)}


def _ties(errors: torch.Tensor, threshold: float) -> float:
    """The probability that two pictures take the same number of tokens; errors as from AlitModel.errors."""
    under = errors < threshold
    rounds = torch.where(under.any(1), under.float().argmax(1).clamp(min=1), errors.shape[1])
    return (torch.bincount(rounds) / len(errors)).square().sum().item()


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for config.json and model.safetensors.")],
    minutes: Annotated[float, typer.Option(help="Train for so long.")] = 30.0,
    steps: Annotated[int, typer.Option(help="Or for so many steps, if that is less.")] = 1_000_000,
    pool: Annotated[int, typer.Option(help="How many pictures are drawn.")] = 6000,
    seed: Annotated[int, typer.Option()] = 1,
    width: Annotated[int, typer.Option()] = 64,
    layers: Annotated[int, typer.Option()] = 2,
    quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
) -> None:
    """Train an adaptive-length tokenizer on drawn pictures, for m3score rank --scorer alit."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    out.mkdir(parents=True, exist_ok=True)
    settings = AlitSettings(width=width, layers=layers)
    with Progress(*columns, console=console) as bar:
        model, known = train(
            settings, seed=seed, pool=pool, seconds=60 * minutes, steps=steps, folder=out, bar=bar
        )
    model.save(out)
    (out / "training.json").write_text(json.dumps(known, indent=2) + "\n")
    (out / UNFINISHED).unlink(missing_ok=True)
    console.print(
        f"The tokenizer is in {out}: {known['steps']:,} steps, errors {known['mean_error_by_tokens']}."
    )


if __name__ == "__main__":
    typer.run(main)
