"""m3score train: an M3 model from a recipe."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from m3score.cli.console import plain, set_up, stderr
from m3score.cli.options import Quiet, Verbose
from m3score.common.errors import M3ScoreError

EPILOG = """Examples:

m3score train m3-tiny --out runs/m3-tiny

m3score train llava-1.5-7b-m3 --data llava_v1_5_mix665k.json --image-folder images/ --out runs/m3

Stopped or killed, the same command goes on from the last checkpoint. Losses are in OUT/log.jsonl,
the model is in OUT/model. With several GPUs use torchrun or accelerate launch, see the README."""
FINETUNING = "Fine-tuning on instruction data"


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A bundled recipe or a .toml file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Checkpoints, log and model. \\[default: runs/RECIPE]"
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Visual tokens to train with, such as 576 for the scale-specific baseline, or 144,576. "
            "\\[default: the recipe's]",
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
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Records of image and conversations, as LLaVA has them (JSON, or JSON lines).",
            rich_help_panel=FINETUNING,
        ),
    ] = None,
    image_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where the records' images are. \\[default: the folder of --data]",
            rich_help_panel=FINETUNING,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The LLaVA to start from: hub id or folder, LLaVA's format or transformers'. "
            "\\[default: the recipe's]",
            rich_help_panel=FINETUNING,
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Train an M3: the mean over all scales of each scale's loss on the answers."""
    set_up(quiet=quiet, verbose=verbose)
    from m3score.calibration.training.finetune.config import bundled_configs, is_finetune_config
    from m3score.calibration.training.tiny.recipes import bundled_recipes

    known = [*bundled_recipes(), *bundled_configs()]
    if recipe not in known and not Path(recipe).is_file():
        raise M3ScoreError(f"{recipe}: no such recipe; give a .toml file or one of {', '.join(known)}.")
    if out is not None and out.exists() and not out.is_dir():
        raise M3ScoreError(f"--out {out} is a file; it must be a folder.")
    if is_finetune_config(recipe):
        given = {"data": data, "image_folder": image_folder, "model": model}
        named = {name: str(value) for name, value in given.items() if value is not None}
        finished = _finetune(recipe, out, scales, tune_tower, seed, shorten, named, quiet)
    elif data or image_folder or model:
        raise M3ScoreError(
            f"{recipe} draws its own images and builds its own model: leave out --data, --image-folder and "
            "--model, or take a fine-tuning recipe."
        )
    else:
        finished = _build(recipe, out, scales, tune_tower, seed, shorten, quiet)
    where = plain(finished)
    told = f"The model is in {where}; ask it with m3score ask --model {where} IMAGE QUESTION."
    stderr(quiet=quiet).print(told)


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """Take a new folder away again if training ends in an error before the first checkpoint: nothing in it is
    of use, and what it says of its run would stop the corrected command."""
    new = not folder.exists() and os.environ.get("RANK", "0") == "0"
    try:
        yield
    except Exception:
        if new and not any(folder.rglob("checkpoint-*")):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _build(
    recipe: str,
    out: Path | None,
    scales: str | None,
    tune_tower: bool | None,
    seed: int | None,
    shorten: float,
    quiet: bool,
) -> Path:
    from m3score.calibration.training.tiny import train as training
    from m3score.calibration.training.tiny.recipes import load_recipe, parse_scales

    plan = load_recipe(recipe)
    if seed is not None:
        plan = replace(plan, seed=seed)
    chosen = parse_scales(scales) if scales else None
    folder = out or Path("runs") / plan.name
    with _nothing_left(folder):
        return training.train(plan.shortened(shorten), folder, chosen, tune_tower, show_progress=not quiet)


def _finetune(
    recipe: str,
    out: Path | None,
    scales: str | None,
    tune_tower: bool | None,
    seed: int | None,
    shorten: float,
    named: dict[str, str],
    quiet: bool,
) -> Path:
    from m3score.calibration.training.finetune.config import load_config
    from m3score.calibration.training.finetune.finetune import finetune, left_out

    changes: dict[str, Any] = dict(named)
    if scales:
        parts = [part.strip() for part in scales.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise M3ScoreError(f"--scales {scales}: give numbers of visual tokens, separated by commas.")
        changes["scales"] = tuple(sorted({int(part) for part in parts}))
    if tune_tower is not None:
        changes["tune_tower"] = tune_tower
    if seed is not None:
        changes["seed"] = seed
    plan = replace(load_config(recipe), **changes).shortened(shorten)
    folder = out or Path("runs") / plan.name
    with _nothing_left(folder):
        finished = finetune(plan, folder, show_progress=not quiet)
    if missed := left_out(folder):
        stderr(quiet=quiet).print(
            f"[yellow]{missed:,} records were left out[/]; {plain(folder / 'left-out.jsonl')} says why."
        )
    return finished
