"""m3score report: a score table as one HTML page that opens from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from m3score.cli import choices, options
from m3score.cli.console import SOME_FAILED, plain, set_up
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    from m3score.analysis.report.content import Report
    from m3score.data.item import Columns
    from m3score.data.sources.hf_datasets import DataSet
    from m3score.runs.request import Inputs

EPILOG = """Examples:

m3score report scores.csv --out report.html

m3score report scores.csv --traces traces.parquet --out report.html

m3score report scores.parquet --traces traces.parquet --model ./my-model --predictor my.predictor

m3score report scores.csv --dataset lmms-lab/DocVQA --split validation"""


DEFAULT_MODEL = "m3-tiny"


@dataclass(frozen=True)
class Places:
    """Where pictures lie that are no files; see data.extract.opened_images."""

    data_sets: Sequence[DataSet] = ()
    columns: Columns | None = None
    fetch: bool = False
    folder: Path | None = None
    """The table's own."""
    root: Path | None = None
    """What --root says."""


ScoresArgument = Annotated[
    Path, typer.Argument(metavar="SCORES", help="A score table from m3score rank, or - for csv on stdin.")
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="The page to write (.html), or - for stdout.",
        rich_help_panel=options.OUTPUT,
    ),
]
TracesOption = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        metavar="FILE",
        help="The trace table of the same run: shows the answers at every scale, and accuracy against "
        "tokens where right answers are known.",
    ),
]
PicturesOption = Annotated[
    int,
    typer.Option(
        "--pictures",
        min=1,
        max=2000,
        help="About how many pictures are shown, drawn evenly from all levels of the ladder.",
    ),
]
TitleOption = Annotated[
    str | None, typer.Option("--title", metavar="TEXT", help="Of the page.", show_default="the file")
]
HeatMapsOption = Annotated[
    bool | None,
    typer.Option(
        "--heat-maps/--no-heat-maps",
        help="Maps of where the complexity is (pictures judged by vision), or of the detail that pooling "
        "loses (others). They need the model, and a pass of its vision tower per shown picture.",
        show_default="where --model is given or a bundled model made the scores",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="The model that made the scores, for heat maps.",
        show_default="the one of the traces, or m3-tiny for scores of vision",
        rich_help_panel=options.MODEL,
    ),
]
PredictorOption = Annotated[
    str | None,
    typer.Option(
        "--predictor",
        metavar="NAME",
        help="The router to draw beside the scales: a bundled predictor, or a file that m3score "
        "calibrate wrote.",
        show_default="a bundled one of the model of the traces",
        rich_help_panel=options.ROUTING,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of the drawing of pictures.")]
FetchOption = Annotated[
    bool,
    typer.Option("--fetch", help="Fetch the shown pictures that are at URLs.", show_default=False),
]


def report(
    scores: ScoresArgument,
    out: OutOption = Path("report.html"),
    traces: TracesOption = None,
    pictures: PicturesOption = 400,
    title: TitleOption = None,
    heat_maps: HeatMapsOption = None,
    model: ModelOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    predictor: PredictorOption = None,
    seed: SeedOption = 0,
    dataset: options.DatasetOption = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    fetch: FetchOption = False,
    root: options.Root = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Make a page of a score table: the distribution, the pictures from simple to complex, every answer.

    One HTML file that holds all it shows, pictures included, and loads nothing: it opens from disk and can be
    sent by mail. However long the table, it stays below 15 MB.

    Pictures in shards, parquet files and data sets are taken out of them; a data set of the hub has to be
    named with --dataset.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    check_page(out, overwrite=overwrite)
    from m3score.analysis.report.content import gather

    places = places_of(scores, root, dataset, split, image_column, fetch=fetch)
    with _steps(console, "Reading") as step:
        page = gather(scores, traces=traces, pictures=pictures, title=title, seed=seed, on_row=step)
    loading = {"device": device, "dtype": dtype, "quantize": quantize, "revision": revision}
    wanted = None if heat_maps is False else model or _model_of(page, insist=bool(heat_maps))
    finish(page, out, console, model=wanted, loading=loading, predictor=predictor, places=places)
    if page.unreadable:
        raise typer.Exit(SOME_FAILED)


def places_of(
    table: Path,
    root: Path | None,
    dataset: str | None,
    split: str | None,
    image_column: str | None,
    *,
    fetch: bool,
) -> Places:
    """What the options of those names say. M3ScoreError if there is no such data set, split or column."""
    from m3score.data.extract import folder_of_table
    from m3score.data.item import Columns

    columns, data_sets = Columns(image_column, ""), []
    if dataset is not None:
        from m3score.data.sources.hf_datasets import DataSet

        data_sets.append(DataSet(dataset, split, columns))
        data_sets[0].check()
    elif split is not None:
        raise M3ScoreError("--split goes with --dataset.")
    return Places(data_sets, columns, fetch, folder_of_table(table), root)


def check_page(out: Path | None, *, overwrite: bool) -> None:
    """Complain about the page's file before any work; as check_target does of tables."""
    if out is not None and str(out) != "-" and out.suffix.lower() not in (".html", ".htm"):
        raise M3ScoreError(f"{out}: a report needs a name that ends in .html.")
    from m3score.runs.request import check_target

    check_target(out, "csv", overwrite=overwrite)  # the format of tables does not matter here


def finish(
    page: Report,
    out: Path,
    console: Console,
    *,
    model: Any = None,
    loading: dict[str, Any] | None = None,
    predictor: str | None = None,
    places: Places = Places(),
) -> None:
    """Add pictures, maps and the router to what was gathered, and write the page.

    Args:
        model: a loaded model or its name, for heat maps; None for none.
        loading: load_model's options for it.
        predictor: of the router; None for a bundled one, if there is one for this model.
        places: where pictures lie that are no files.
    """
    from m3score.analysis.report.content import add_maps, add_pictures, add_router
    from m3score.analysis.report.page import save

    chosen = _router(page, predictor)
    with _within_reach(page, places, console, router=chosen is not None) as find:
        with _steps(console, "Shrinking pictures", len(page.paths)) as step:
            add_pictures(page, find, step)
        if model is not None and page.paths:
            if isinstance(model, str):
                from m3score.cli.console import load

                model = load(model, console=console, **(loading or {}))
            with _steps(console, "Mapping", len(page.paths)) as step:
                add_maps(page, model, find, step)
        if chosen is not None and page.answers is not None:
            with _steps(console, "Routing", len(page.answers.sample)) as step:
                add_router(page, chosen, find, step)
    size = save(page, out)
    if page.map_note:
        console.print(plain(page.map_note))
    if page.unreadable:
        missing, (reason, count) = sum(page.unreadable.values()), next(iter(page.unreadable.items()))
        why = plain(reason) if count == missing else f"{plain(reason)} ({count:,}), and others"
        console.print(
            f"[yellow]{missing:,} of the {len(page.paths):,} shown pictures cannot be opened[/]: {why}. "
            "Relative paths are looked for in the table's folder, in the working folder, and in --root."
        )
    if str(out) != "-":
        console.print(f"Wrote {plain(out)} ({size / 1e6:.1f} MB, {len(page.paths):,} pictures).")


@contextmanager
def _within_reach(
    page: Report, places: Places, console: Console, *, router: bool
) -> Iterator[Callable[[str], str]]:
    from m3score.data.extract import opened_images

    wanted = page.wanted(router=router)
    with ExitStack() as reaching:
        with _steps(console, "Finding pictures", len(set(wanted))) as step:
            near = opened_images(
                wanted,
                places.folder,
                root=places.root,
                data_sets=places.data_sets,
                columns=places.columns,
                fetch=places.fetch,
                on_picture=step,
            )
            find = reaching.enter_context(near)
        yield find


def page_of_run(
    out: Path,
    scores: Path,
    format: str | None,
    traces: Path | None,
    model: Any,
    console: Console,
    inputs: Inputs,
) -> None:
    """The page of the tables that a run has just written, with heat maps by its model, loaded already.

    Args:
        inputs: the run's inputs: they may be fetched again.

    The others are those of the run.
    """
    from m3score.analysis.report.content import gather

    rows = [path for path in inputs.paths if not isinstance(path, str | PathLike)]
    places = Places(rows, inputs.columns, fetch=True)  # its paths are known to be those of this run
    with _steps(console, "Reading") as step:
        page = gather(scores, traces=traces, format=format, on_row=step)
    wanted = model if hasattr(model, "vision_features") else None
    finish(page, out, console, model=wanted, places=places)


def _model_of(page: Report, *, insist: bool) -> str | None:
    """The model for maps, if it is bundled and so costs nothing to load: that of the traces, or for scores of
    vision, whose table names no model, the default one: its maps are shown where it gives the same scores."""
    from m3score.models.hub import BUNDLED

    models = page.answers.models if page.answers else set()
    known = next(iter(models)) if len(models) == 1 else None
    if known is None and page.looked:
        return DEFAULT_MODEL
    if insist and known is None:
        raise M3ScoreError("--heat-maps needs --model NAME: nothing tells which model made these scores.")
    return known if insist or known in BUNDLED else None


def _router(page: Report, predictor: str | None) -> Any:
    from m3score.routing.registry import BUNDLED, load_predictor

    if predictor is not None:
        if page.curves is None:
            raise M3ScoreError("--predictor needs --traces with known right answers to be judged by.")
        return load_predictor(predictor)
    models = page.answers.models if page.answers else set()
    name = next(iter(models)) if len(models) == 1 else None
    if page.curves is None or name not in BUNDLED:
        return None
    try:
        return load_predictor(name)
    except M3ScoreError:
        return None  # nobody asked for it


@contextmanager
def _steps(console: Console, verb: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, silence elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(verb), BarColumn(bar_width=40), MofNCompleteColumn())
    if console.quiet or not console.is_terminal:
        yield lambda: None
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
