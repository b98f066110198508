"""m3score compare: how alike score tables rank the same images."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from m3score.cli import options, scorer_options
from m3score.cli.console import plain, set_up
from m3score.cli.tables import show_comparison
from m3score.common.errors import M3ScoreError

SCORING = "Scoring images"

if TYPE_CHECKING:
    import pandas as pd

    from m3score.analysis.compare import Comparison

EPILOG = """Examples:

m3score compare monday.csv tuesday.csv

m3score compare tiny.csv llava.csv --by required --out moved.csv --plot scatter.png

m3score compare m3.csv edges.csv jpeg.csv --ratings people.csv --json

m3score compare photos/ --scorers vision,predictor,jpeg,edges,entropy --ratings people.csv --keep scores/"""


ScoresArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SCORES...",
        help="Score tables of the same images; with --scorers the images themselves, as m3score rank "
        "takes them.",
    ),
]
ScorersOption = Annotated[
    str | None,
    typer.Option(
        "--scorers",
        metavar="LIST",
        help="Score the images with each of these: model, predictor, jpeg, edges, entropy, cat, alit "
        "(see m3score rank --scorer).",
        rich_help_panel=SCORING,
    ),
]
KeepOption = Annotated[
    Path | None,
    typer.Option(
        "--keep",
        metavar="FOLDER",
        help="Keep the score tables, FOLDER/SCORER.csv; those that are there already are used.",
        rich_help_panel=SCORING,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="M3SCORE_MODEL",
        metavar="NAME",
        help="For the scorers vision, model, cascade and cat.",
        rich_help_panel=SCORING,
    ),
]
PredictorOption = Annotated[
    str,
    typer.Option("--predictor", metavar="NAME", help="For the scorer predictor.", rich_help_panel=SCORING),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=SCORING),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Score so many images at most.", rich_help_panel=SCORING),
]
RatingsOption = Annotated[
    Path | None,
    typer.Option(
        "--ratings",
        metavar="FILE",
        help="What people say: csv or jsonl with the columns path (or image) and rating, and maybe "
        "category. Gives the correlation with every table, per category.",
    ),
]
ByOption = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="COLUMN",
        help="complexity, required, effective or predicted (tokens), or any other column of numbers.",
    ),
]
AnywayOption = Annotated[
    bool,
    typer.Option("--anyway", help="Compare ranks across models, ladders and sources of agreement too."),
]
ShowOption = Annotated[int, typer.Option("--show", min=0, help="How many of the images that moved most.")]
ConfidenceOption = Annotated[
    float, typer.Option("--confidence", metavar="SHARE", help="Of the intervals of the correlations.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the bootstrap over images.")]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Every image with its score and rank in each table (.csv, .jsonl, .parquet).",
        rich_help_panel=options.OUTPUT,
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Scores against scores (.png, .svg, .pdf; needs m3score\\[plot]).",
        rich_help_panel=options.OUTPUT,
    ),
]
AsJsonOption = Annotated[
    bool, typer.Option("--json", help="The figures as one JSON object.", rich_help_panel=options.OUTPUT)
]


def compare(
    ctx: typer.Context,
    scores: ScoresArgument,
    scorers: ScorersOption = None,
    keep: KeepOption = None,
    model: ModelOption = "m3-tiny",
    predictor: PredictorOption = "m3-tiny",
    cat_llm: scorer_options.CatLlm = None,
    cat_prompts: scorer_options.CatPrompts = None,
    alit_model: scorer_options.AlitModel = None,
    device: DeviceOption = "auto",
    limit: LimitOption = None,
    ratings: RatingsOption = None,
    by: ByOption = "complexity",
    anyway: AnywayOption = False,
    show: ShowOption = 10,
    confidence: ConfidenceOption = 0.95,
    seed: SeedOption = 0,
    out: OutOption = None,
    plot: PlotOption = None,
    as_json: AsJsonOption = False,
    format: options.FormatOption = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Compare score tables: rank correlations with intervals, what moved most, what only one of them has.

    With --scorers, images are scored first.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    from m3score.runs.request import check_target

    check_target(out, format, overwrite=overwrite)
    from m3score.analysis.compare import compare as compare_tables
    from m3score.analysis.compare_plot import check_plot, draw_comparison
    from m3score.tables.compact import read_compact
    from m3score.tables.schema import SCORES

    if plot is not None:
        check_plot(plot)
        if plot.exists() and not overwrite:
            raise M3ScoreError(f"{plot}: exists already; give --overwrite to replace it.")
    rated = None if ratings is None else _read_ratings(ratings)
    if scorers is None:
        if keep is not None:
            raise M3ScoreError("--keep goes with --scorers.")
        files: Any = nullcontext([Path(score) for score in scores])
    else:
        given = scorer_options.given_to_scorer(ctx, ("model",))
        chosen = _parse_scorers(scorers, rated is not None)
        files = _scored(scores, chosen, given, keep, limit, console, overwrite=overwrite)
    with files as paths:
        tables = {name: read_compact(path, SCORES) for name, path in zip(names_of(paths), paths, strict=True)}
    with console.status("Comparing ..."):
        found = compare_tables(tables, rated, by=by, confidence=confidence, seed=seed, anyway=anyway)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        show_comparison(found, show, confidence)
    if plot is not None:
        draw_comparison(found, plot)
        console.print(f"Wrote {plain(plot)}.")
    if out is not None:
        _write(found, out, format)
        if str(out) != "-":
            console.print(f"Wrote {plain(out)}.")


def _parse_scorers(text: str, rated: bool) -> list[str]:
    """The names in a comma-separated list; M3ScoreError for too few of them."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    if not names:
        from m3score.scoring.registry import scorer_names

        raise M3ScoreError(f"--scorers needs names out of {', '.join(scorer_names())}.")
    if len(names) + rated < 2:
        raise M3ScoreError("--scorers needs two scorers, or one and --ratings.")
    return names


@contextmanager
def _scored(
    images: Sequence[str],
    scorers: Sequence[str],
    given: dict[str, Any],
    keep: Path | None,
    limit: int | None,
    console: Console,
    *,
    overwrite: bool,
) -> Iterator[list[Path]]:
    """Score tables named after their scorers, in a folder that is gone afterwards unless it is to be kept."""
    from m3score.cli.progress import carry_out
    from m3score.cli.summary import leave, show_outcome
    from m3score.runs.ranking import requests_for

    with tempfile.TemporaryDirectory(prefix="m3score-") as scratch:
        folder = Path(scratch) if keep is None else keep
        wanted = requests_for(
            scorers, given, images, folder, spelled=scorer_options.spelled, limit=limit, overwrite=overwrite
        )
        for name, request in wanted.items():
            if request is None:
                table = plain(folder / f"{name}.csv")
                console.print(f"{name}: taken from {table}; --overwrite scores the images anew.")
                continue
            console.print(f"[bold]{name}[/]")
            outcome = carry_out(request, console)
            show_outcome(outcome, console, rule="stays")
            if outcome.interrupted:  # failed images are rows of the table
                leave(outcome, request.target.out, console)
        yield [folder / f"{name}.csv" for name in scorers]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Short names for files, all different: stems, else as much of the path as it takes, else numbered."""
    from m3score.analysis.compare import RESERVED

    ways = ([path.stem for path in paths], [path.name for path in paths], [os.fspath(path) for path in paths])
    for names in ways:
        if len(set(names)) == len(names) and not set(names) & set(RESERVED):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def _read_ratings(path: Path) -> pd.DataFrame:
    from m3score.tables.io import read_table
    from m3score.tables.schema import TableKind

    kind = TableKind("table of ratings", {"path": "text", "image": "text", "rating": "float"}, ("rating",))
    frame = read_table(path, kind)
    return frame.drop(columns=[name for name in ("path", "image") if (frame[name] == "").all()])


def _write(found: Comparison, out: Path, format: str | None) -> None:
    from m3score.tables.io import write_table
    from m3score.tables.schema import TableKind

    write_table(found.table, out, TableKind("comparison", {"path": "text"}, ("path",)), format=format)
