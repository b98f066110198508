"""m3score select: choose images by their scores; list, copy or link them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from m3score.cli import choices, options
from m3score.cli.console import INTERRUPTED, SOME_FAILED, plain, set_up, sigterm_as_interrupt
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from m3score.analysis.select import Selection
    from m3score.cli.commands.report import Places

EPILOG = """Examples:

m3score select scores.csv --min 0.3 --max 0.9 --out middle.csv

m3score select scores.csv --bottom 10% --copy-to simple/

m3score select scores.csv --per-level 500 --seed 7 --link-to train/ --out train.csv

m3score select scores.csv --token-budget 1e6 --format list | head

m3score select scores.csv --unsolved only --copy-to too-hard-or-wrong/

Ranges come first; of what is in range --top, --bottom, --sample or --per-level chooses; of that
--token-budget keeps as many images as fit."""

LISTS = (".txt", ".list")
PLACES = "Copies and links"
FAILURES_SHOWN = 5


class Format(StrEnum):
    """Table formats, and paths alone."""

    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"
    list = "list"


ScoresArgument = Annotated[
    Path, typer.Argument(metavar="SCORES", help="A score table, from m3score rank; - for csv on stdin.")
]
ByOption = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="COLUMN",
        help="What --min, --max, --top and --bottom are about: complexity, required, effective or "
        "predicted (tokens), or any other column of numbers.",
    ),
]
LeastOption = Annotated[float | None, typer.Option("--min", help="Least value, itself included.")]
MostOption = Annotated[float | None, typer.Option("--max", help="Greatest value, itself included.")]
TopOption = Annotated[
    str | None, typer.Option("--top", metavar="N|N%", help="So many images, the most complex ones.")
]
BottomOption = Annotated[
    str | None, typer.Option("--bottom", metavar="N|N%", help="So many images, the simplest ones.")
]
SampleOption = Annotated[
    str | None, typer.Option("--sample", metavar="N|N%", help="So many images at random.")
]
PerLevelOption = Annotated[
    int | None,
    typer.Option("--per-level", min=1, metavar="N", help="So many at random of every level of the ladder."),
]
TokenBudgetOption = Annotated[
    float | None,
    typer.Option(
        "--token-budget",
        metavar="TOKENS",
        help="As many images as fit, such as 1e6: the cheapest first, or with --per-level one of each "
        "level by turns.",
    ),
]
LevelOption = Annotated[
    str | None,
    typer.Option(
        "--level",
        metavar="COLUMN",
        help="The column of levels, and of tokens that the budget counts (per grid).",
        show_default="required_tokens, else predicted_tokens",
    ),
]
UnsolvedOption = Annotated[
    choices.Unsolved,
    typer.Option(
        "--unsolved",
        help="Images whose questions no scale answers rightly: the model does not know, so they are not "
        "taken for complex. include counts them as the finest scale where tokens are counted.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of all that is drawn at random.")]
CopyToOption = Annotated[
    Path | None,
    typer.Option("--copy-to", metavar="FOLDER", help="Copy the images there.", rich_help_panel=PLACES),
]
LinkToOption = Annotated[
    Path | None,
    typer.Option("--link-to", metavar="FOLDER", help="Link to the images there.", rich_help_panel=PLACES),
]
FetchOption = Annotated[
    bool,
    typer.Option(
        "--fetch",
        help="Fetch the images that are at URLs, to copy them.",
        show_default=False,
        rich_help_panel=PLACES,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write the rows (.csv, .jsonl, .parquet) or the paths alone (.txt, .list) here; - is "
        "stdout, and the default unless images are copied or linked.",
        rich_help_panel=options.OUTPUT,
    ),
]
FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format", help="Rows or paths alone, whatever the suffix.", rich_help_panel=options.OUTPUT
    ),
]


def select(
    scores: ScoresArgument,
    by: ByOption = "complexity",
    least: LeastOption = None,
    most: MostOption = None,
    top: TopOption = None,
    bottom: BottomOption = None,
    sample: SampleOption = None,
    per_level: PerLevelOption = None,
    token_budget: TokenBudgetOption = None,
    level: LevelOption = None,
    unsolved: UnsolvedOption = choices.Unsolved.exclude,
    seed: SeedOption = 0,
    copy_to: CopyToOption = None,
    link_to: LinkToOption = None,
    root: options.Root = None,
    dataset: options.DatasetOption = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    fetch: FetchOption = False,
    out: OutOption = None,
    format: FormatOption = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Choose images by their scores: list them, copy them or link to them.

    Copies keep their folders, so that equal names stay apart, and never replace a file.

    Images in shards, parquet files and data sets are copied out of them; name those of the hub (--dataset).

    The same command goes on where it was stopped.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    if copy_to is not None and link_to is not None:
        raise M3ScoreError("--copy-to and --link-to exclude each other.")
    _one_of(**{"--top": top, "--bottom": bottom, "--sample": sample, "--per-level": per_level})
    if copy_to is None and link_to is None and (dataset or split or image_column or fetch):
        raise M3ScoreError("--dataset, --split, --image-column and --fetch go with --copy-to or --link-to.")
    kind = format or (Format.list if out is not None and out.suffix.lower() in LISTS else None)
    from m3score.runs.request import check_target

    check_target(out, "csv" if kind is Format.list else kind, overwrite=overwrite)
    from m3score.analysis.select import select_rows
    from m3score.cli.commands.report import places_of
    from m3score.tables.compact import read_compact
    from m3score.tables.schema import SCORES

    reach = places_of(scores, root, dataset, split, image_column, fetch=fetch)
    table = read_compact(scores, SCORES)
    chosen = select_rows(
        table,
        by=by,
        min=least,
        max=most,
        top=top,
        bottom=bottom,
        sample=sample,
        per_level=per_level,
        token_budget=token_budget,
        level=level,
        unsolved=unsolved,
        seed=seed,
    )
    rows = table.iloc[chosen.positions]
    _say(chosen, len(table), per_level, console)
    code, places = 0, copy_to or link_to
    if places is not None:
        code, targets = _place(rows, table, places, copy_to is not None, reach, console)
        rows = rows.assign(placed=cast(Any, targets))
    if out is not None or places is None:
        _write(rows, out or Path("-"), kind)
        if out is not None and str(out) != "-":
            console.print(f"Wrote {plain(out)}.")
    if code:
        raise typer.Exit(code)


def _one_of(**ways: object) -> None:
    given = [option for option, value in ways.items() if value is not None]
    if len(given) > 1:
        raise M3ScoreError(f"{' and '.join(given)} exclude each other: give one of {', '.join(ways)}.")


def _say(chosen: Selection, total: int, per_level: int | None, console: Console) -> None:
    from m3score.cli.summary import histogram

    console.print(f"Selected {len(chosen.positions):,} of {total:,} images.")
    if chosen.per_level:
        console.print(histogram([(str(one), count) for one, count in chosen.per_level.items()]))
        short = [str(one) for one, count in chosen.per_level.items() if per_level and count < per_level]
        if short and chosen.tokens is None:
            console.print(f"Fewer than {per_level:,} images of level {', '.join(short)}: all are taken.")
    if chosen.tokens is not None:
        console.print(f"They need {chosen.tokens:,.0f} tokens per grid (column {plain(chosen.counted)}).")
    if chosen.without_value:
        console.print(f"Left out for want of a number: {chosen.without_value:,}.")
    if chosen.unsolved:
        console.print(
            f"Left out because no scale solves them: {chosen.unsolved:,}. The model does not know, which is "
            "not complex (--unsolved include takes them, only takes nothing else)."
        )


def _place(
    rows: pd.DataFrame,
    table: pd.DataFrame,
    folder: Path,
    copies: bool,
    reach: Places,
    console: Console,
) -> tuple[int, list[str | None]]:
    """The exit code, and where each row's image lies now."""
    from m3score.analysis.export import ExportMode, common_folder, export_images
    from m3score.cli.progress import progress
    from m3score.data.extract import finder

    mode = ExportMode.copy if copies else ExportMode.link
    paths = rows["path"].astype(str).tolist()
    results: list[Any] = []
    interrupted = False
    base = common_folder(table["path"].astype(str))
    with sigterm_as_interrupt():
        try:
            with progress(console, lambda: len(paths), "Copying" if copies else "Linking") as advance:
                exported = export_images(
                    paths, folder, mode, find=finder(reach.folder, reach.root), base=base,
                    data_sets=reach.data_sets, columns=reach.columns, fetch=reach.fetch,
                )  # fmt: skip
                for placed in exported:
                    results.append(placed)
                    advance()
        except KeyboardInterrupt:
            interrupted = True
    failed = [one for one in results if one.error]
    before = sum(one.already for one in results)
    done = f"{len(results) - len(failed) - before:,} {'copied' if copies else 'linked'} to {plain(folder)}"
    console.print(f"{done}{f', {before:,} were there already' if before else ''}.")
    if failed:
        console.print(f"[bold red]{len(failed):,} could not be had:[/]")
        for one in failed[:FAILURES_SHOWN]:
            console.print(f"  {plain(one.source)}: {plain(one.error)}", soft_wrap=True)
        if len(failed) > FAILURES_SHOWN:
            console.print(f"  ... and {len(failed) - FAILURES_SHOWN:,} more")
    if interrupted:
        console.print("Interrupted: the same command goes on from here.")
        raise typer.Exit(INTERRUPTED)
    targets = {one.source: one.target for one in results}
    return SOME_FAILED if failed else 0, [targets[path] for path in paths]


def _write(rows: pd.DataFrame, out: Path, kind: Format | None) -> None:
    if kind is not Format.list:
        from m3score.tables.io import write_rows
        from m3score.tables.schema import SCORES

        names = [str(name) for name in rows.columns]
        values = rows.itertuples(index=False, name=None)
        write_rows((dict(zip(names, row, strict=True)) for row in values), out, SCORES, names, format=kind)
        return
    content = _listed(rows["path"].astype(str).tolist())
    if str(out) == "-":
        typer.echo(content, nl=False)
    else:
        from m3score.tables.io import write_whole

        write_whole(out, content.encode())


def _listed(paths: Sequence[str]) -> str:
    broken = next((path for path in paths if "\n" in path or "\r" in path), None)
    if broken is not None:
        raise M3ScoreError(f"{broken!r}: a name with a line break does not fit into a list; write a table.")
    return "".join(f"{path}\n" for path in paths)
