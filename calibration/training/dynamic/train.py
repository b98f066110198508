"""Train a small Qwen2.5-VL on drawn signs and pages, so that more visual tokens answer more questions.

    python -m m3score.calibration.training.dynamic.train --out runs/dynamic --minutes 5

Minutes on a large GPU, with as many processor cores as can be had to draw. Stopped or killed, the same
command goes on from the last checkpoint; OUT/model is a transformers folder, OUT/log.jsonl has the losses,
OUT/accuracy.json what it answers on drawings it has not seen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from m3score.calibration.drawings.boards import DEFAULT, Style
from m3score.calibration.training.dynamic.batches import Batches, loader
from m3score.calibration.training.dynamic.evaluate import accuracy
from m3score.calibration.training.dynamic.model import build_model, save_model
from m3score.calibration.training.dynamic.objective import TrainingModule
from m3score.calibration.training.dynamic.processing import RUNGS, build_tokenizer, save_processor

SMALL_RUNGS = (4, 16, 64, 256)
SMALL = Style(
    sides=(180, 460), smallest=10, largest=0.2, pages=0.0, words=0.0, digits=(2, 3), coloured_ink=0.0
)
"""What two processor cores learn in half an hour."""
CHECKPOINT = "checkpoint.safetensors"


def recipe(small: bool) -> tuple[tuple[int, ...], Style]:
    """The rungs that are learnt, and what pictures have in them."""
    return (SMALL_RUNGS, SMALL) if small else (RUNGS, DEFAULT)


@dataclass(frozen=True)
class Plan:
    """How long to train, on what, and how fast."""

    minutes: float = 60.0
    steps: int | None = None
    """Ends the training earlier than the minutes do, and paces it instead of them."""
    seed: int = 0
    rate: float = 1.5e-3
    tokens: int = 16384
    """Visual tokens of a batch, about."""
    rungs: tuple[int, ...] = RUNGS
    """Budgets to learn, smallest first."""
    style: Style = DEFAULT
    workers: int = 0
    save_every: float = 60.0
    """Seconds between checkpoints."""
    log_every: float = 10.0
    """Seconds between lines of the log."""
    sizes: tuple[tuple[str, int], ...] = ()
    """Of the model, where they differ; see model.build_model."""

    def progress(self, step: int, seconds: float) -> float:
        return step / self.steps if self.steps else min(1.0, seconds / (60 * self.minutes))


@dataclass
class Run:
    """A training run: the network, its optimiser, and how far it is."""

    plan: Plan
    out: Path
    device: str
    tokenizer: Any
    network: TrainingModule
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    @property
    def progress(self) -> float:
        return self.plan.progress(self.step, self.seconds)


def start(plan: Plan, out: Path, device: str) -> Run:
    """A run from its first step, or from the checkpoint in its folder."""
    tokenizer = build_tokenizer()
    network = TrainingModule(build_model(tokenizer, plan.seed, **dict(plan.sizes)), tokenizer).to(device)
    matrices = [value for value in network.parameters() if value.ndim >= 2]
    others = [value for value in network.parameters() if value.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}],
        lr=plan.rate,
        betas=(0.9, 0.98),
        fused=device == "cuda",
    )
    run = Run(plan, out, device, tokenizer, network, optimizer)
    if (out / CHECKPOINT).is_file():
        _resume(run, out / CHECKPOINT)
    return run


def save(run: Run) -> None:
    """Write the checkpoint, and the model as it is."""
    tensors = {f"network.{name}": value for name, value in run.network.state_dict().items()}
    for name, value in run.network.named_parameters():
        for key, part in run.optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{key}.{name}"] = part
    partial = run.out / f"{CHECKPOINT}.partial"
    facts = {"step": str(run.step), "seconds": str(run.seconds)}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial, facts)
    partial.replace(run.out / CHECKPOINT)
    save_model(run.network.model, run.out / "model")
    save_processor(run.tokenizer, run.out / "model")


def _resume(run: Run, path: Path) -> None:
    tensors = load_file(path, device=run.device)
    run.network.load_state_dict(
        {name.removeprefix("network."): value for name, value in tensors.items() if name[0] == "n"}
    )
    for name, value in run.network.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (part := tensors.get(f"optimizer.{key}.{name}")) is not None:
                run.optimizer.state[value][key] = (
                    part if key != "step" or run.device == "cuda" else part.cpu()
                )
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    run.step, run.seconds = int(facts["step"]), float(facts["seconds"])


def rate_at(progress: float) -> float:
    """Share of the highest learning rate: a short rise, then half a cosine down to a fiftieth."""
    return min(1.0, progress / 0.02 + 0.01) * (
        0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    )


def _tensors(batch: dict[str, Any], device: str) -> dict[str, Any]:
    def moved(array: Any) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return {
        "pixels": moved(batch["pixels"]),
        "dense": moved(batch["dense"]),
        "text": batch["text"] and {name: moved(part) for name, part in batch["text"].items()},
    }


def take_step(run: Run, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One step of the optimiser; returns the losses by name."""
    for group in run.optimizer.param_groups:
        group["lr"] = run.plan.rate * rate_at(run.progress)
    with torch.autocast(run.device, torch.bfloat16, enabled=run.device == "cuda"):
        losses = run.network(**_tensors(batch, run.device), progress=run.progress)
    run.optimizer.zero_grad()
    losses["loss"].backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    run.optimizer.step()
    run.step += 1
    return {name: value.detach() for name, value in losses.items()}


class Log:
    """Means of the losses since the last line, to a file and to the terminal."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run, self.console = run, console
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.pictures, self.waited, self.since = 0, 0.0, time.monotonic()

    def add(self, batch: dict[str, Any], losses: dict[str, torch.Tensor], waited: float) -> None:
        if batch["text"] is None:
            named = {f"crowd_{name}": value for name, value in losses.items()}
        else:
            named = {**losses}
            if "answer" in losses:
                named[f"answer_{batch['budget']}"] = losses["answer"]
        for name, value in named.items():
            self.sums[name] = self.sums.get(name, 0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.pictures += len(batch["pixels"])
        self.waited += waited
        if time.monotonic() - self.since >= self.run.plan.log_every:
            self.write()

    def write(self) -> None:
        """A line, if anything has happened since the last."""
        if not self.sums:
            return
        passed = time.monotonic() - self.since
        line: dict[str, Any] = {
            "step": self.run.step,
            "minutes": round(self.run.seconds / 60, 2),
            "pictures_per_second": round(self.pictures / passed, 1),
            "waited": round(self.waited / passed, 2),
        }
        line |= {name: round(float(value) / self.counts[name], 3) for name, value in self.sums.items()}
        with (self.run.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.console.print(" ".join(f"{name} {value}" for name, value in line.items()), soft_wrap=True)
        self.sums, self.counts, self.pictures = {}, {}, 0
        self.waited, self.since = 0.0, time.monotonic()


def _timed(batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], float]]:
    """Batches with the seconds that each was waited for."""
    while True:
        before = time.monotonic()
        batch = next(batches)
        yield batch, time.monotonic() - before


def train(plan: Plan, out: Path, device: str, console: Console) -> Run:
    """Train until the plan's end; OUT/model is the model, written at every checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    run = start(plan, out, device)
    run.network.train()
    batches = Batches(run.tokenizer, plan.seed, plan.tokens, plan.rungs, plan.style)
    batches.progress.fill_(run.progress)
    log, clock, saved = Log(run, console), time.monotonic() - run.seconds, time.monotonic()
    for batch, waited in _timed(iter(loader(batches, run.step, plan.workers))):
        if run.progress >= 1:
            break
        losses = take_step(run, batch)
        run.seconds = time.monotonic() - clock
        batches.progress.fill_(run.progress)
        log.add(batch, losses, waited)
        if time.monotonic() - saved >= plan.save_every:
            save(run)
            saved = time.monotonic()
    log.write()
    save(run)
    return run


def main(
    out: Annotated[Path, typer.Option("--out", "-o", help="Checkpoint, log, model and accuracy.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="How long to train.")] = 60.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Train so many steps instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and drawings.")] = 0,
    rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 1.5e-3,
    tokens: Annotated[int, typer.Option(min=64, help="Visual tokens of a batch, about.")] = 16384,
    small: Annotated[bool, typer.Option(help="The small recipe, for a CPU: signs with numbers.")] = False,
    heads: Annotated[int, typer.Option(min=1, help="Of attention, each 64 wide.")] = 4,
    tower_layers: Annotated[int, typer.Option(min=1, help="Of the vision tower.")] = 6,
    layers: Annotated[int, typer.Option(min=1, help="Of the language model.")] = 4,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that draw.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Unseen drawings to judge by.")] = 512,
    device: Annotated[str, typer.Option(help="cuda or cpu. [default: cuda if there is one]")] = "",
) -> None:
    """Train, then judge on drawings that were not seen."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_float32_matmul_precision("high")
    console = Console(stderr=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = (("heads", heads), ("tower_layers", tower_layers), ("layers", layers))
    drawn_by = (os.cpu_count() or 1) - 1 if workers is None else workers
    rungs, style = recipe(small)
    plan = Plan(minutes, steps, seed, rate, tokens, rungs, style, drawn_by, sizes=sizes)
    run = train(plan, out, device, console)
    run.network.eval()
    figures = accuracy(run.network, run.tokenizer, device, pictures, rungs, style)
    (out / "accuracy.json").write_text(json.dumps(figures, indent=2) + "\n")
    console.print_json(data=figures)


if __name__ == "__main__":
    typer.run(main)
