"""m3score plan: how long, and how much, before a big run is begun."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3score.cli import options
from m3score.cli.console import check_target, load, plain, set_up
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.data.discover import FoundImage
    from m3score.runs.estimate import Forecast, Measured

EPILOG = """Examples:

m3score plan --images 1e9 --sample photos/

m3score plan --images 2e8 --sample shard-0000.tar --model mucai/llava-v1.5-7b-m3 --gpus 8

m3score plan --images 1e6 --sample photos/ --json --out plan.json"""

SAMPLE = 512
LOOKED_AT = 20_000
"""Inputs among which the sample is drawn."""


def plan(
    images: Annotated[float, typer.Option("--images", metavar="N", help="How many there are, such as 1e9.")],
    sample: Annotated[
        list[str],
        typer.Option("--sample", metavar="PATH", help="Some of them: what m3score rank takes. Repeatable."),
    ],
    budget: options.BudgetOption = None,
    max_model_images: options.MaxModelImages = None,
    predictor: options.PredictorOption = "m3-tiny",
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
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
    check_target(out, "jsonl", overwrite=overwrite)
    if not 1 <= images < float("inf"):
        raise M3ScoreError(f"--images {images:g}: give a number of at least 1.")
    from m3score.runs.cascade import Budget
    from m3score.runs.estimate import forecast
    from m3score.tables.io import write_whole

    asked = Budget.of(budget, max_model_images).images(int(images))
    found = _sample(sample)
    how = {"device": device, "dtype": dtype, "quantize": quantize, "revision": revision}
    measured = _measured(found, predictor, model, how, seconds, max_new_tokens, console)
    told = forecast(measured, int(images), asked, gpus=gpus, price=price)
    text = json.dumps(told.to_dict(), indent=2) + "\n"
    if out is not None and str(out) != "-":
        write_whole(out, text.encode())
        console.print(f"Wrote {plain(out)}.")
    elif as_json or out is not None:
        typer.echo(text, nl=False)
    if not as_json and out is None:
        _show(told)


def _sample(paths: list[str]) -> list[FoundImage]:
    """Some of the inputs, drawn from the first LOOKED_AT, always the same."""
    from m3score.cli.search import Search

    found = list(islice(Search(paths, None).begin(), LOOKED_AT))
    return random.Random(0).sample(found, min(SAMPLE, len(found)))


def _measured(
    found: list[FoundImage],
    predictor: str,
    model: str,
    how: dict[str, Any],
    seconds: float,
    max_new_tokens: int,
    console: Console,
) -> Measured:
    from rich.progress import Progress

    from m3score.common.limits import Limits
    from m3score.routing.predict import load_predictor, predict_many
    from m3score.runs.estimate import Measured, measure
    from m3score.runs.ranking import rank_stream

    chosen, limits = load_predictor(predictor), Limits()
    answerer = load(model, console=console, **how)
    rows: dict[str, list[dict[str, Any]]] = {"predictor": [], "model": []}

    def kept(results: Iterator[Any], scorer: str, row: Callable[[Any], dict[str, Any]]) -> Iterator[Any]:
        for result in results:
            if len(rows[scorer]) < len(found):
                rows[scorer].append(row(result))
            yield result

    def predicted(workers: int | None) -> Iterator[Any]:
        stream = predict_many(
            cycle(found), max_drop=None, predictor=chosen, workers=workers, limits=limits, spread=True
        )
        return kept(stream, "predictor", _predicted_row)

    def ranked() -> Iterator[Any]:
        stream = rank_stream(cycle(found), answerer, limits=limits, max_new_tokens=max_new_tokens)
        return kept(stream, "model", lambda one: one.to_row())

    with Progress(console=console, transient=True, disable=console.quiet) as bar:

        def timed(what: str, results: Iterator[Any]) -> Any:
            task = bar.add_task(what, total=seconds)
            return measure(
                results, seconds, lambda one: one.error is not None, lambda s: bar.update(task, completed=s)
            )

        one = timed("Predictor, one worker", predicted(1))
        several = timed("Predictor, all workers", predicted(None))
        asked = timed(f"Model {plain(model)}", ranked())
    journal, table = _sizes(found, rows)
    return Measured(
        sample_images=len(found),
        predictor_one_worker=one,
        predictor_all_workers=several,
        workers=os.cpu_count() or 1,
        model_name=model,
        model=asked,
        device=str(answerer.device),
        journal_bytes=journal,
        table_bytes=table,
    )


def _sizes(
    found: list[FoundImage], rows: dict[str, list[dict[str, Any]]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes per row in the journal by scorer, and in the table by format."""
    from m3score.runs.estimate import row_bytes
    from m3score.runs.input_state import key_of
    from m3score.runs.journal import Record, open_journal
    from m3score.tables.io import write_rows
    from m3score.tables.schema import SCORES

    journal = open_journal(None, {})
    hashed = {"digest": "0" * 32}
    sizes = {
        scorer: row_bytes(
            [
                journal.append(Record({**key_of(item), **hashed}, row))
                for item, row in zip([*found, found[0]], [*some, some[0]], strict=False)
            ]
        )
        for scorer, some in rows.items()
    }
    journal.remove()
    table = {}
    with tempfile.TemporaryDirectory() as home:
        for scorer, some in rows.items():
            path, size = Path(home) / "t.csv", []
            for count in (1, len(some) + 1):  # the header counts but once
                write_rows([*some, some[0]][:count], path, SCORES, tuple(rows["model"][0]))
                size.append(path.stat().st_size)
            table[scorer] = (size[1] - size[0]) / len(some)
    return sizes, table


def _predicted_row(one: Any) -> dict[str, Any]:
    told = {"path": one.path, "complexity": one.complexity, "effective_tokens": one.complexity}
    return {**told, "scorer": "predictor", "predicted_tokens": one.tokens, "error": one.error}


def _show(told: Forecast) -> None:
    from rich.console import Console
    from rich.table import Table

    measured, console = told.measured, Console(highlight=False, soft_wrap=True)
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
    console.print(grid)
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
