"""m3score check-predictor: do fresh traces still look like what a predictor was calibrated on?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m3score.cli import choices, options
from m3score.cli.console import plain, set_up
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from m3score.calibration.predictor.labels import Labels
    from m3score.routing.predictor import Predictor

EPILOG = """Example:

m3score rank todays-sample/ --questions asked.csv --traces fresh.parquet --out /dev/null

m3score check-predictor my.predictor fresh.parquet

Exit codes: 0 no drift, 1 drift, 2 wrong usage."""

DRIFTED = 1


def check_predictor(
    predictor: Annotated[
        str, typer.Argument(metavar="PREDICTOR", help="A bundled predictor, or a .predictor file.")
    ],
    traces: Annotated[
        Path,
        typer.Argument(
            metavar="TRACES",
            help="Fresh traces: a table from m3score rank --traces, or labels from m3score calibrate "
            "--collect-only.",
        ),
    ],
    max_drop: options.MaxDrop = 0.02,
    confidence: options.Confidence = 0.95,
    image_only: Annotated[
        bool, typer.Option("--image-only", help="Check the form that does not see the question.")
    ] = False,
    sufficiency: Annotated[
        choices.Sufficiency | None,
        typer.Option("--sufficiency", help="When an answer suffices.", show_default="as it was calibrated"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws one question of each image.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FOLDER",
            help="Also judge the predictor on all these traces: tables, and the frontier (csv, png).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="All figures as JSON on stdout.", rich_help_panel=options.OUTPUT)
    ] = False,
    root: options.Root = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Has the traffic drifted away from what the predictor was calibrated on? Yes or no, with the p-value."""
    console = set_up(quiet=quiet, verbose=verbose)
    from m3score.calibration.predictor.labelling.gather import labels_of_traces
    from m3score.routing.promises.drift import check_drift
    from m3score.routing.registry import load_predictor

    loaded = load_predictor(predictor)
    judged_by = sufficiency or loaded.data.get("sufficiency", "auto")
    labels = labels_of_traces(
        traces, loaded.feature_set, sufficiency=str(judged_by), workers=workers, root=root
    )
    if labels.ladder != loaded.ladder:
        raise M3ScoreError(f"{traces}: ladder {labels.ladder}, but the predictor is for {loaded.ladder}.")
    if labels.model != loaded.model:
        console.print(
            f"[yellow]The traces are of {plain(labels.model)}, the predictor is for {plain(loaded.model)}.[/]"
        )
    asked = loaded.with_question is not None and not image_only
    drawn = labels.one_per_image(seed)
    drift = check_drift(
        loaded,
        _predictions(loaded, drawn, asked),
        drawn.sufficient,
        with_question=asked,
        max_drop=max_drop,
        confidence=confidence,
    )
    if report is not None:
        _report(loaded, labels, report, max_drop, confidence, str(traces), console)
    if as_json:
        typer.echo(json.dumps(drift.to_dict()))
    else:
        typer.echo(
            f"drift: {'yes' if drift.drifted else 'no'} (p = {drift.p_value:.3g}, {drift.images:,} images)"
        )
        console.print(plain(drift.note))
    if drift.drifted:
        raise typer.Exit(DRIFTED)


def _predictions(predictor: Predictor, labels: Labels, asked: bool) -> np.ndarray:
    return predictor.predict(labels.features, labels.question_features() if asked else None)


def _report(
    predictor: Predictor,
    labels: Labels,
    folder: Path,
    max_drop: float,
    confidence: float,
    name: str,
    console: Console,
) -> None:
    from m3score.calibration.predictor.calibrate import write_frontiers
    from m3score.calibration.predictor.card import verdict_lines
    from m3score.calibration.predictor.fit import budget_prices, utility_of
    from m3score.calibration.predictor.judge import FORMS, judge
    from m3score.tables.io import write_whole

    forms = FORMS if predictor.with_question is not None else FORMS[:1]
    margins = {}
    for form in forms:
        found = predictor.certificate(max_drop, confidence, with_question=form == FORMS[1])
        label = f"certified {max_drop:.0%}" if found.certified else f"{max_drop:.0%}: none certified"
        promised = max_drop if found.certified else None
        margins[form] = [(label, found.margin, promised), ("no margin", 0.0, None)]
    predictions = {form: _predictions(predictor, labels, form == FORMS[1]) for form in forms}
    utility = {form: utility_of(predictor, form, labels) for form in forms}
    budgets = {form: budget_prices(predictor, form) for form in forms}
    verdict = judge(name, labels, predictions, margins, utility, budgets=budgets)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"# {predictor.model} on {name}", "", *verdict_lines(verdict)]
    write_whole(folder / "report.md", ("\n".join(lines).rstrip() + "\n").encode())
    title = f"{predictor.model}: accuracy against visual tokens"
    if missing := write_frontiers([verdict], folder, title):
        console.print(f"[yellow]{plain(missing)}[/]")
    console.print(f"Wrote {plain(folder)}.")
