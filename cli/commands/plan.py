"""m3score plan: how long, and how much, before a big run is begun."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3score.cli import choices, options, scorer_options
from m3score.cli.console import plain, set_up
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.runs.estimate import Forecast

EPILOG = """Examples:

m3score plan --images 1e9 --sample photos/

m3score plan --images 2e8 --sample shard-0000.tar --model mucai/llava-v1.5-7b-m3 --gpus 8

m3score plan --images 1e6 --sample photos/ --json --out plan.json"""


def plan(
    ctx: typer.Context,
    images: Annotated[float, typer.Option("--images", metavar="N", help="How many there are, such as 1e9.")],
    sample: Annotated[
        list[str],
        typer.Option("--sample", metavar="PATH", help="Some of them: what m3score rank takes. Repeatable."),
    ],
    budget: scorer_options.BudgetOption = None,
    max_model_images: scorer_options.MaxModelImages = None,
    predictor: options.PredictorOption = "m3-tiny",
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    max_new_tokens: options.MaxNewTokens = 32,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs for the model, like this one.")] = 1,
    price: Annotated[
        float | None, typer.Option("--price-per-gpu-hour", min=0, help="In any currency.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="How long each of three things is measured.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write JSON here.", rich_help_panel=options.OUTPUT),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Say what a big run would take: hours, GPU-hours and gigabytes, by measuring this machine on a sample.

    The two budget options are those of m3score rank --scorer cascade.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    if not 1 <= images < float("inf"):
        raise M3ScoreError(f"--images {images:g}: give a number of at least 1.")
    from m3score.runs.cascade_run import CascadeOptions
    from m3score.runs.estimate import forecast, measure_sample
    from m3score.runs.request import check_target
    from m3score.tables.io import write_whole

    check_target(out, "jsonl", overwrite=overwrite)

    told_to = CascadeOptions(**scorer_options.given_to_scorer(ctx, ("model",)))
    with _watched(console, seconds) as watch:
        measured = measure_sample(sample, told_to, seconds, watch)
    told = forecast(measured, int(images), told_to.allowed.images(int(images)), gpus=gpus, price=price)
    text = json.dumps(told.to_dict(), indent=2) + "\n"
    if out is not None and str(out) != "-":
        write_whole(out, text.encode())
        console.print(f"Wrote {plain(out)}.")
    elif as_json or out is not None:
        typer.echo(text, nl=False)
    if not as_json and out is None:
        _show(told)


@contextmanager
def _watched(console: Console, seconds: float) -> Iterator[Callable[[str], Callable[[float], None]]]:
    """A bar for each thing that is measured."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=console.quiet) as bar:

        def watch(what: str) -> Callable[[float], None]:
            task = bar.add_task(plain(what), total=seconds)
            return lambda done: bar.update(task, completed=done)

        yield watch


def _show(told: Forecast) -> None:
    from rich.table import Table

    from m3score.cli.tables import print_table, screen

    measured, console = told.measured, screen()
    grid = Table(title=f"{told.images:,} images", title_justify="left", box=None)
    for column in (
        "scorer",
        "asks the model",
        "hours",
        "CPU-hours",
        "GPU-hours",
        "price",
        "csv GB",
        "journal GB",
    ):
        grid.add_column(column, justify="left" if column == "scorer" else "right")
    for need in told.needs:
        gpu = "?" if need.gpu_hours is None else _figure(need.gpu_hours)
        price = "" if need.price is None else f"{need.price:,.0f}"
        hours = (
            _figure(need.hours),
            _figure(need.cpu_hours),
            gpu,
            price,
            _figure(need.table_gb),
            _figure(need.journal_gb),
        )
        grid.add_row(need.scorer, f"{need.model_images:,}", *hours)
    print_table(grid, console)
    console.print(
        f"\nMeasured: predictor {measured.predictor_one_worker.per_second:,.1f} images/s with one worker, "
        f"{measured.predictor_all_workers.per_second:,.1f} with all ({measured.workers} CPUs); "
        f"{plain(measured.model_name)} {measured.model.per_second:,.2f} images/s on {measured.device}; "
        f"{measured.journal_bytes['predictor']:.0f} and {measured.journal_bytes['model']:.0f} bytes per "
        "row of the journal."
    )
    for note in told.notes:
        console.print(note)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
