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
from rich.table import Table

from m3score.cli import options
from m3score.cli.console import plain, set_up
from m3score.common.errors import M3ScoreError

SCORING = "Scoring images"

if TYPE_CHECKING:
    import pandas as pd

    from m3score.analysis.compare import Comparison, Correlation, Pair

EPILOG = """Examples:

m3score compare monday.csv tuesday.csv

m3score compare tiny.csv llava.csv --by required --out moved.csv --plot scatter.png

m3score compare m3.csv edges.csv jpeg.csv --ratings people.csv --json

m3score compare photos/ --scorers model,predictor,jpeg,edges,entropy --ratings people.csv --keep scores/"""


def compare(
    ctx: typer.Context,
    scores: Annotated[
        list[str],
        typer.Argument(
            metavar="SCORES...",
            help="Score tables of the same images; with --scorers the images themselves, as m3score rank "
            "takes them.",
        ),
    ],
    scorers: Annotated[
        str | None,
        typer.Option(
            "--scorers",
            metavar="LIST",
            help="Score the images with each of these: model, predictor, jpeg, edges, entropy, cat, alit "
            "(see m3score rank --scorer).",
            rich_help_panel=SCORING,
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="FOLDER",
            help="Keep the score tables, FOLDER/SCORER.csv; those that are there already are used.",
            rich_help_panel=SCORING,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            envvar="M3SCORE_MODEL",
            metavar="NAME",
            help="For the scorers model and cat.",
            rich_help_panel=SCORING,
        ),
    ] = "m3-tiny",
    predictor: Annotated[
        str,
        typer.Option(
            "--predictor", metavar="NAME", help="For the scorer predictor.", rich_help_panel=SCORING
        ),
    ] = "m3-tiny",
    cat_llm: options.CatLlm = None,
    cat_prompts: options.CatPrompts = None,
    alit_model: options.AlitModel = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=SCORING
        ),
    ] = "auto",
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="Score so many images at most.", rich_help_panel=SCORING),
    ] = None,
    ratings: Annotated[
        Path | None,
        typer.Option(
            "--ratings",
            metavar="FILE",
            help="What people say: csv or jsonl with the columns path (or image) and rating, and maybe "
            "category. Gives the correlation with every table, per category.",
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="complexity, required, effective or predicted (tokens), or any other column of numbers.",
        ),
    ] = "complexity",
    show: Annotated[int, typer.Option("--show", min=0, help="How many of the images that moved most.")] = 10,
    confidence: Annotated[
        float, typer.Option("--confidence", metavar="SHARE", help="Of the intervals of the correlations.")
    ] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap over images.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Every image with its score and rank in each table (.csv, .jsonl, .parquet).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Scores against scores (.png, .svg, .pdf; needs m3score\\[plot]).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The figures as one JSON object.", rich_help_panel=options.OUTPUT)
    ] = False,
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
    from m3score.analysis.compare_picture import check_plot, draw_comparison
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
        given = options.given_to_scorer(ctx, ("model",))
        chosen = _parse_scorers(scorers, rated is not None)
        files = _scored(scores, chosen, given, keep, limit, console, overwrite=overwrite)
    with files as paths:
        tables = {name: read_compact(path, SCORES) for name, path in zip(names_of(paths), paths, strict=True)}
    with console.status("Comparing ..."):
        found = compare_tables(tables, rated, by=by, confidence=confidence, seed=seed)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found, show, confidence)
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
            scorers, given, images, folder, spelled=options.spelled, limit=limit, overwrite=overwrite
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


def _show(found: Comparison, moved: int, confidence: float) -> None:
    screen = Console(highlight=False)
    if found.pairs:
        _correlations(f"Rank correlation of {found.by}", found.pairs, confidence, screen)
    if found.rated:
        title = f"Rank correlation of {found.by} with the ratings"
        _correlations(title, found.rated, confidence, screen)
        if len(found.names) > 1 and len({pair.category for pair in found.rated}) > 1:
            _side_by_side(f"{title}: Spearman, per category", found.rated, screen)
    for name, count in found.only.items():
        if count:
            screen.print(f"Only in {plain(name)}: {count:,}.")
    for name, count in found.without.items():
        if count:
            screen.print(f"Without a score in {plain(name)}: {count:,}.")
    if found.pairs and moved:
        _movers(found, moved, screen)


def _correlations(title: str, pairs: Sequence[Pair], confidence: float, screen: Console) -> None:
    from m3score.analysis.compare import ALL

    with_category = any(pair.category != ALL for pair in pairs)
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", *(["category"] if with_category else [])):
        table.add_column(column, overflow="fold")
    for column in (
        "images",
        "Spearman",
        f"{confidence:.0%} interval",
        "Kendall",
        f"{confidence:.0%} interval",
    ):
        table.add_column(column, justify="right")
    for pair in pairs:
        name = pair.first if pair.second == "rating" else f"{pair.first} - {pair.second}"
        figures = [cell for one in (pair.spearman, pair.kendall) for cell in _cells(one)]
        label = [plain(name), *([plain(pair.category)] if with_category else [])]
        table.add_row(*label, f"{pair.images:,}", *figures)
        if with_category and pair.category == ALL:
            table.add_row(plain(name), "mean of categories", "", *_means(pairs, pair.first), end_section=True)
    screen.print(table)


def _side_by_side(title: str, pairs: Sequence[Pair], screen: Console) -> None:
    """Categories down, tables across: ratings are comparable within a category only, so no row for all."""
    from m3score.analysis.compare import ALL

    names = list(dict.fromkeys(pair.first for pair in pairs))
    categories = [category for category in dict.fromkeys(pair.category for pair in pairs) if category != ALL]
    found = {(pair.first, pair.category): pair.spearman.value for pair in pairs}
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(plain(name), justify="right", overflow="fold")
    for category in categories:
        values = [found.get((name, category)) for name in names]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        table.add_row(plain(category), *cells, end_section=category == categories[-1])
    table.add_row("mean", *(_means(pairs, name)[0] for name in names))
    screen.print(table)


def _means(pairs: Sequence[Pair], name: str) -> list[str]:
    from m3score.analysis.compare import ALL

    own = [pair for pair in pairs if pair.first == name and pair.category != ALL]
    cells = []
    for values in ([pair.spearman.value for pair in own], [pair.kendall.value for pair in own]):
        known = [value for value in values if value is not None]
        cells += [f"{sum(known) / len(known):.3f}" if known else "-", ""]
    return cells


def _cells(one: Correlation) -> tuple[str, str]:
    interval = "" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
    return "-" if one.value is None else f"{one.value:.3f}", interval


def _movers(found: Comparison, most: int, screen: Console) -> None:
    rows = found.table[found.table["moved"].abs() > 0].head(most)
    if not len(rows):
        screen.print("No image changed its rank.")
        return
    two = len(found.names) == 2
    table = Table(title="Moved most, by the share of images that are simpler", title_justify="left")
    table.add_column("path", overflow="fold")
    for name in found.names:
        table.add_column(plain(name), justify="right")
    table.add_column("moved" if two else "apart", justify="right")
    for row in rows.to_dict("records"):
        places: list[Any] = [f"{row[f'{name}_rank']:.0%}" for name in found.names]
        table.add_row(plain(row["path"]), *places, f"{row['moved']:+.0%}" if two else f"{row['moved']:.0%}")
    screen.print(table)
