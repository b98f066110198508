"""m3score evaluate: accuracy per task and scale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3score.cli import options
from m3score.cli.console import load, set_up
from m3score.errors import M3ScoreError

EPILOG = "Example: [bold]m3score evaluate drawn --questions 4000 --out accuracy.md[/]"

TASKS = ("drawn",)


def evaluate(
    task: Annotated[str, typer.Argument(metavar="TASK", help=f"One of: {', '.join(TASKS)}.")],
    model: options.Model = "m3-tiny",
    questions: Annotated[int, typer.Option(min=1, help="How many questions to ask.")] = 4000,
    seed: Annotated[
        int | None, typer.Option(help="Stream of drawings. [default: one that training never uses]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Write the accuracies here (.md) instead of to stdout."
        ),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option("--traces", metavar="FILE", help="Also write every answer (.csv, one row per scale)."),
    ] = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure a model's accuracy at every scale on questions whose answers are known."""
    console = set_up(quiet=quiet, verbose=verbose)
    if task not in TASKS:
        raise M3ScoreError(f"unknown task {task!r}; allowed: {', '.join(TASKS)}.")
    for path, suffix in ((out, ".md"), (traces, ".csv")):
        if path is not None and path.suffix != suffix:
            raise M3ScoreError(f"{path}: the name must end in {suffix}.")
        if path is not None and path.exists() and not overwrite:
            raise M3ScoreError(f"{path}: exists already; give --overwrite to replace it.")
    from rich.progress import Progress

    from m3score.calibration.evaluate import EVALUATION_SEED, evaluate_drawn

    answerer = load(model, device=device, dtype=dtype, quantize=quantize, revision=revision, console=console)
    with Progress(console=console, disable=quiet) as bar:
        line = bar.add_task("Asking", total=questions)
        result = evaluate_drawn(
            answerer,
            questions,
            seed=EVALUATION_SEED if seed is None else seed,
            progress=lambda n: bar.advance(line, n),
        )
    if traces is not None:
        result.rows.to_csv(traces, index=False)
    if out is not None:
        out.write_text(result.to_markdown())
    else:
        typer.echo(result.to_markdown(), nl=False)
