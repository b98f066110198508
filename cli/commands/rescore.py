"""m3score rescore: other rules on an old trace, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3score.cli import choices, options
from m3score.cli.console import SOME_FAILED, plain, set_up

EPILOG = """Example:

m3score rescore traces.jsonl --rule first --out scores-first.csv"""


def rescore(
    traces: Annotated[
        Path,
        typer.Argument(metavar="TRACES", help="A trace table from m3score rank --traces, or - for stdin."),
    ],
    rule: options.RuleOption = choices.Rule.stays,
    sufficiency: options.SufficiencyOption = choices.Sufficiency.auto,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", metavar="NAME", help="Judge answers with another metric where references are known."
        ),
    ] = None,
    out: options.Out = None,
    format: options.FormatOption = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Score the answers in a trace table again under other rules. No model is run."""
    from m3score.cli.summary import ladder_of, show_summary
    from m3score.runs.ranking import score_table
    from m3score.runs.request import check_target
    from m3score.runs.tally import Tally
    from m3score.scoring.oracle import rescore as rescore_traces
    from m3score.tables.io import read_traces, write_scores

    console = set_up(quiet=quiet, verbose=verbose)
    check_target(out, format, overwrite=overwrite)
    scored = rescore_traces(read_traces(traces), rule, sufficiency, metric)
    table = score_table(scored.to_dict("records"))
    write_scores(table, out or "-", format=format)
    console.print(f"Rescored {len(table):,} images from {plain(traces)}.")
    tally = Tally(ladder_of(scored))
    tally.count({str(name): value for name, value in row.items()} for row in table.to_dict("records"))
    show_summary(tally, console, rule=rule)
    if out is not None and str(out) != "-":
        console.print(f"\nWrote {plain(out)}.")
    if table["complexity"].isna().any():
        raise typer.Exit(SOME_FAILED)
