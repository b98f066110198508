"""The M3 paper's ablation on drawn images: M3 against scale-specific models and training-free pooling.

    python -m m3score.calibration.training.tiny.ablation \\
        --start runs/base/5-frozen-tower/done.safetensors --out ablation.md

One model is trained at each scale alone and one at all scales, from the same starting weights, with the same
drawings, steps and learning rate, and with a frozen vision tower. The starting weights themselves, evaluated
at every scale, are training-free pooling, provided they were trained at the finest scale alone. All models
answer the same held-out questions at every scale. Finished models are kept in `--work` and not trained again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from m3score.calibration.training.tiny.recipes import LADDER, Recipe, Stage
from m3score.common.errors import M3ScoreError

START = "training-free"
ALL = "M3, all scales"


def recipe(scales: tuple[int, ...], steps: int, batch_size: int, learning_rate: float, seed: int) -> Recipe:
    """A recipe of one stage on pictures."""
    stage = Stage(
        name="ablation",
        kind="m3",
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        scales=scales,
        tune_tower=False,
        questions=12,
    )
    return Recipe("ablation", seed, (stage,), save_steps=25)


def train_from(plan: Recipe, start: Path, folder: Path) -> Path:
    """Train a recipe's one stage from the weights in `start`; returns the folder of the model."""
    import torch
    from safetensors.torch import load_file

    from m3score.calibration.training.tiny.model import build_model, build_tokenizer
    from m3score.calibration.training.tiny.module import TinyTrainingModule
    from m3score.calibration.training.tiny.objective import BEFORE_IMAGE
    from m3score.calibration.training.tiny.train import TrainContext, run_stage, save_model

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    llava = build_model(tokenizer, plan.seed)
    torch.manual_seed(plan.seed)
    stage, weights = plan.stages[0], start
    if stage.steps:
        context = TrainContext(plan, folder, llava, tokenizer, show_progress=True)
        weights = run_stage(context, stage, 0, start)
    network = TinyTrainingModule(llava, tokenizer.encode(BEFORE_IMAGE), stage)
    network.load_state_dict(load_file(weights))
    return save_model(llava, tokenizer, folder / "model")


def table(accuracies: dict[str, dict[int, float]]) -> str:
    """Markdown: a row per model, a column per scale, finest first; percent."""
    scales = sorted(next(iter(accuracies.values())), reverse=True)
    lines = ["| trained at | " + " | ".join(map(str, scales)) + " |", "|---|" + "---:|" * len(scales)]
    for name, row in accuracies.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[scale]:.1f}" for scale in scales) + " |")
    return "\n".join(lines) + "\n"


def main(
    start: Annotated[Path, typer.Option(help="A stage's done.safetensors of m3score train.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table, in Markdown.")],
    work: Annotated[Path, typer.Option(help="Where the models are kept.")] = Path("runs/ablation"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each model.")] = 80,
    batch_size: Annotated[int, typer.Option(min=1, help="Drawings per step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Its highest value.")] = 4e-4,
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the drawings.")] = 31,
) -> None:
    """Train the models, evaluate them, and write the table."""
    from m3score.calibration.benchmarks.evaluate import evaluate_drawn
    from m3score.models.loading import load_model

    if not start.is_file():
        raise M3ScoreError(f"--start {start}: no such file; give a stage's done.safetensors.")
    plans = {START: recipe(LADDER, 0, batch_size, learning_rate, seed)}
    for scales in (*((scale,) for scale in reversed(LADDER)), LADDER):
        name = ALL if scales == LADDER else f"{scales[0]} alone"
        plans[name] = recipe(scales, steps, batch_size, learning_rate, seed)
    accuracies: dict[str, dict[int, float]] = {}
    for name, plan in plans.items():
        folder = work / name.replace(" ", "-").replace(",", "")
        model = folder / "model"
        if not (model / "tokenizer_config.json").is_file():
            model = train_from(replace(plan, name=name), start, folder)
        rows = evaluate_drawn(load_model(model, device="cpu"), questions).rows
        shares = rows.groupby("tokens")["correct"].mean()
        accuracies[name] = {int(str(tokens)): 100 * float(share) for tokens, share in shares.items()}
        out.write_text(table(accuracies))


if __name__ == "__main__":
    typer.run(main)
