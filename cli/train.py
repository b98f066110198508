"""m3score train: an M3 model from a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from m3score.cli.console import set_up, stderr
from m3score.cli.options import Quiet, Verbose
from m3score.errors import M3ScoreError

EPILOG = (
    "Example: [bold]m3score train m3-tiny --out runs/m3-tiny[/]. Stopped or killed, the same command goes on "
    "from the last checkpoint. Losses are in OUT/log.jsonl, the model is in OUT/model."
)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A bundled recipe or a .toml file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Checkpoints, log and model. [default: runs/RECIPE]"
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Visual tokens to train with, such as 576 for the scale-specific baseline, or 144,576. "
            "[default: the recipe's]",
        ),
    ] = None,
    tune_tower: Annotated[
        bool | None,
        typer.Option("--tune-tower/--freeze-tower", help="Whether M3 stages tune the vision tower."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights and drawings, instead of the recipe's.")
    ] = None,
    shorten: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Share of the recipe's steps to take, for a trial.")
    ] = 1.0,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Train an M3: the mean over all scales of each scale's loss on the answers."""
    set_up(quiet=quiet, verbose=verbose)
    from m3score.calibration import train as training
    from m3score.calibration.recipes import load_recipe, parse_scales

    plan = load_recipe(recipe)
    if seed is not None:
        plan = replace(plan, seed=seed)
    plan = plan.shortened(shorten)
    folder = out or Path("runs") / plan.name
    if folder.exists() and not folder.is_dir():
        raise M3ScoreError(f"--out {folder} is a file; it must be a folder.")
    model = training.train(
        plan, folder, parse_scales(scales) if scales else None, tune_tower, show_progress=not quiet
    )
    stderr(quiet=quiet).print(
        f"The model is in {model}; ask it with m3score ask --model {model} IMAGE QUESTION."
    )
