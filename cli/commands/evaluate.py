"""m3score evaluate: accuracy per scale, on benchmarks and on drawn images."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from m3score.cli import choices, options
from m3score.cli.console import INTERRUPTED, SOME_FAILED, plain, set_up, sigterm_as_interrupt
from m3score.cli.server import Server, called, load_answerer, takes_server
from m3score.cli.tables import show
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.calibration.benchmarks.results import BenchmarkResult
    from m3score.calibration.benchmarks.task_data import TaskSource

EPILOG = """Examples:

m3score evaluate chartqa textvqa pope --model mucai/llava-next-vicuna-7b-m3 --out results.md

m3score evaluate mmbench --data-dir /data/benchmarks --limit 500 --plot mmbench.png

m3score evaluate my-questions.jsonl --metric anls --out results.csv

m3score evaluate drawn --questions 4000 --out accuracy.md

m3score evaluate --list

Answers are kept in --work and go on where they stopped; m3score calibrate takes these folders. Mend an
answer or a metric in your questions and run again: kept answers are judged anew, and only questions that
are new are asked."""

DRAWN = "drawn"
DATA = "Data"


TasksArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TASK...",
        help="Benchmarks (see --list), drawn, or files of your own questions (.csv, .jsonl) with the "
        "columns image, question and answers, and maybe options and metric; images lie below the file's "
        "folder.",
        show_default=False,
    ),
]
ListedOption = Annotated[bool, typer.Option("--list", help="Show the benchmarks and exit.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="FOLDER",
        help="Local copies in the format of the hub's data sets, one folder per task; videos with their "
        "question sheets.",
        show_default="the Hugging Face hub",
        rich_help_panel=DATA,
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Images per benchmark.", rich_help_panel=DATA)
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", metavar="NAME", help="How to judge your own questions.", rich_help_panel=DATA),
]
SuffixOption = Annotated[
    str | None,
    typer.Option(
        "--suffix", metavar="TEXT", help="What your own questions are to end with.", rich_help_panel=DATA
    ),
]
QuestionsOption = Annotated[
    int, typer.Option(min=1, help="How many questions to ask about drawn images.", rich_help_panel=DATA)
]
SeedOption = Annotated[
    int | None,
    typer.Option(help="Of the bootstrap; of drawn images (by default one that training never uses)."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Write the tables (.md), or every figure as a row (.csv, .jsonl, .parquet).",
        show_default="stdout",
        rich_help_panel=options.OUTPUT,
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Picture of score against tokens (.png; needs m3score\\[plot]).",
        rich_help_panel=options.OUTPUT,
    ),
]
TracesOption = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        metavar="FILE",
        help="Also write every answer, one row per scale (.csv, .jsonl, .parquet; of drawn images .csv).",
        rich_help_panel=options.OUTPUT,
    ),
]
WorkOption = Annotated[
    Path,
    typer.Option(
        "--work",
        metavar="FOLDER",
        help="Where answers are kept: FOLDER/MODEL/TASK.",
        rich_help_panel=options.OUTPUT,
    ),
]
RestartOption = Annotated[
    bool,
    typer.Option("--restart", help="Ask anew, whatever answers are kept.", rich_help_panel=options.OUTPUT),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images given to the model at once.",
        show_default="32 on a GPU, else 8",
        rich_help_panel=options.MODEL,
    ),
]


@takes_server
def evaluate(
    tasks: TasksArgument = None,
    listed: ListedOption = False,
    model: options.Model = "m3-tiny",
    data_dir: DataDirOption = None,
    limit: LimitOption = None,
    frames: options.Frames = None,
    metric: MetricOption = None,
    suffix: SuffixOption = None,
    questions: QuestionsOption = 4000,
    seed: SeedOption = None,
    out: OutOption = None,
    plot: PlotOption = None,
    traces: TracesOption = None,
    work: WorkOption = Path("evaluations"),
    restart: RestartOption = False,
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    rungs: options.Rungs = None,
    server: Server | None = None,
    batch_size: BatchSizeOption = None,
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:  # fmt: skip
    """Measure a model on benchmarks: accuracy at every scale, and how many tokens a data set needs.

    Shares come with 95% bootstrap intervals over images, the oracle with an estimate of how much of it is
    luck, and both beside the M3 paper's figures where these are known.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    if listed:
        _list()
        return
    if not tasks:
        raise M3ScoreError("name a task; m3score evaluate --list shows them.")
    loading = {"device": device, "dtype": dtype, "quantize": quantize, "revision": revision,
               "rungs": rungs, "server": server}  # fmt: skip
    if DRAWN in tasks:
        if len(set(tasks)) > 1:
            raise M3ScoreError("drawn is judged by itself: leave the other tasks out, or it.")
        _check(((out, (".md",)), (traces, (".csv",))), overwrite)
        _drawn(model, questions, seed, out, traces, loading, console)
        return
    tables = (".csv", ".jsonl", ".parquet")
    _check(((out, (".md", *tables)), (traces, tables), (plot, (".png",))), overwrite)
    _needs_matplotlib(plot)
    console.print("Reading questions ...")
    sources = [
        replace(_source(name, data_dir, metric, suffix), frames=frames) for name in dict.fromkeys(tasks)
    ]
    home = work / _slug(called(model, server))
    sources, folders = _placed(sources, home, frames)
    asking = AskOptions(limit, batch_size or "auto", workers, restart, seed or 0)
    judged = _judge(sources, folders, model, loading, asking, console)
    _write(judged, folders, out, plot, traces, console)
    console.print(f"Answers are kept in {plain(home)}: m3score calibrate takes these folders.")
    if any(one.failed for one in judged):
        raise typer.Exit(SOME_FAILED)


def _list() -> None:
    from m3score.calibration.benchmarks.tasks import tasks

    for task in tasks().values():
        where = f"{task.hub} {task.split}" if task.hub else f"--data-dir with {task.file[0]}"
        typer.echo(f"{task.name:16}{task.metric:18}{where}")


def _check(targets: Any, overwrite: bool) -> None:
    for path, suffixes in targets:
        if path is None:
            continue
        if path.suffix not in suffixes:
            raise M3ScoreError(f"{path}: the name must end in {' or '.join(suffixes)}.")
        if not path.parent.is_dir():
            raise M3ScoreError(f"{path}: there is no folder {path.parent}.")
        if path.exists() and not overwrite:
            raise M3ScoreError(f"{path}: exists already; give --overwrite to replace it.")


def _needs_matplotlib(plot: Path | None) -> None:
    """Complain now, not after hours of work."""
    from importlib.util import find_spec

    from m3score.common.errors import MissingExtraError

    if plot is not None and find_spec("matplotlib") is None:
        raise MissingExtraError("--plot", "plot")


def _source(name: str, data_dir: Path | None, metric: str | None, suffix: str | None) -> TaskSource:
    from m3score.calibration.benchmarks.task_data import load_own, load_task
    from m3score.calibration.benchmarks.tasks import find_task

    if Path(name).suffix.lower() in (".csv", ".jsonl", ".ndjson"):
        return load_own(name, metric, suffix)
    if metric is not None or suffix is not None:
        raise M3ScoreError(f"--metric and --suffix are for your own questions; {name} has its own.")
    return load_task(find_task(name), data_dir)


def _placed(
    sources: list[TaskSource], parent: Path, frames: int | None
) -> tuple[list[TaskSource], list[Path]]:
    """Where each source's answers are kept; a source is called like its folder, so that no two are alike."""
    from m3score.calibration.benchmarks.kept import place_for

    ending = "" if frames is None else f"-{frames}-frames"  # other answers, kept apart
    placed: list[TaskSource] = []
    folders: list[Path] = []
    for source in {source.origin if source.own else source.task.name: source for source in sources}.values():
        folder = parent / f"{source.task.name}{ending}"
        if source.own:
            folder = place_for(source, parent, folders, ending)
            name = folder.name.removesuffix(ending)
            source = replace(source, task=replace(source.task, name=name, title=name))
        placed.append(source)
        folders.append(folder)
    return placed, folders


def _slug(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", model.strip("./")) or "model"


@dataclass(frozen=True)
class AskOptions:
    """How a benchmark's questions are asked: arguments of evaluate_task."""

    limit: int | None
    batch_size: int | Literal["auto"]
    workers: int | None
    overwrite: bool
    seed: int


def _judge(
    sources: list[TaskSource],
    folders: list[Path],
    model: str,
    loading: dict[str, Any],
    asking: AskOptions,
    console: Console,
) -> list[BenchmarkResult]:
    from m3score.calibration.benchmarks.evaluate import evaluate_task
    from m3score.cli.progress import progress, repeat
    from m3score.models.fingerprint import calibration_identity

    answerer = load_answerer(model, console=console, **loading)
    prints = calibration_identity(answerer)
    judged = []
    for source, folder in zip(sources, folders, strict=True):
        count = min(source.count(), asking.limit or source.count())
        with sigterm_as_interrupt():
            try:
                with progress(console, partial(int, count), f"Asking {plain(source.task.title)}") as advance:
                    told = partial(repeat, advance)
                    judged.append(
                        evaluate_task(
                            source, answerer, folder, fingerprint=prints, progress=told, **vars(asking)
                        )
                    )
            except KeyboardInterrupt:
                console.print(f"Interrupted. Answers are kept in {plain(folder)}: run again to go on.")
                raise typer.Exit(INTERRUPTED) from None
    return judged


def _write(
    judged: list[BenchmarkResult],
    folders: list[Path],
    out: Path | None,
    plot: Path | None,
    traces: Path | None,
    console: Console,
) -> None:
    from m3score.calibration.benchmarks import scoreboard
    from m3score.tables.io import write_table, write_whole

    if out is None:
        show(judged)
    elif out.suffix == ".md":
        write_whole(out, scoreboard.to_markdown(judged).encode())
    else:
        write_table([row for one in judged for row in scoreboard.rows(one)], out, scoreboard.FIGURES)
    if plot is not None:
        from m3score.calibration.benchmarks.plot import write_png

        write_png(judged, plot)
    if traces is not None:
        _write_traces(folders, traces)
    for one in judged if out is not None else ():
        console.print(plain(scoreboard.needs(one)))


def _write_traces(folders: list[Path], path: Path) -> None:
    import pandas as pd

    from m3score.calibration.predictor.labelling.collection import open_collection
    from m3score.tables.io import write_traces

    write_traces(pd.concat([open_collection(folder).traces() for folder in folders]), path)


def _drawn(
    model: str,
    questions: int,
    seed: int | None,
    out: Path | None,
    traces: Path | None,
    loading: dict[str, Any],
    console: Console,
) -> None:
    from rich.progress import Progress

    from m3score.calibration.benchmarks.evaluate import EVALUATION_SEED, evaluate_drawn

    answerer = load_answerer(model, console=console, **loading)
    with Progress(console=console, disable=console.quiet) as bar:
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
