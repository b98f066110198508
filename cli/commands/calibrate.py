"""m3score calibrate: labels from a model, and a predictor of its scales from the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from m3score.cli import choices, options
from m3score.cli.console import INTERRUPTED, SOME_FAILED, plain, set_up, sigterm_as_interrupt
from m3score.cli.progress import progress, repeat
from m3score.cli.server import Server, load_answerer, takes_server
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    from m3score.calibration.predictor.calibrate import FitOptions
    from m3score.calibration.predictor.fit import Fitted

EPILOG = """Examples:

m3score calibrate photos/ --questions asked.csv --model mucai/llava-v1.5-7b-m3 --out my.predictor

m3score calibrate drawn --limit 10000 --work labels/ --collect-only

m3score calibrate labels/ more-labels/ --max-drop 0.05 --out my.predictor

Labels are kept in --work and go on where they stopped. Accuracy against tokens, as numbers and as a picture,
and the predictor's card are written to --report."""

LABELS = "Labels"


SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCES",
        help="drawn (images with known answers); varied (the same as files of many sizes, most of them "
        "JPEGs); assorted (drawings of all kinds that nothing is asked about, for the vision score); image "
        "files or folders; a data set that datasets saved on disk, or its hub id; or folders of labels that "
        "this command collected.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="The predictor (.predictor).",
        rich_help_panel=options.OUTPUT,
    ),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(
        "--work",
        metavar="FOLDER",
        help="Where labels are kept.",
        show_default="FILE with the suffix .labels",
        rich_help_panel=options.OUTPUT,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FOLDER",
        help="Where the card and the frontier (csv, png) go.",
        show_default="FILE with the suffix .report",
        rich_help_panel=options.OUTPUT,
    ),
]
CollectOnlyOption = Annotated[
    bool, typer.Option("--collect-only", help="Collect labels and fit nothing.", rich_help_panel=LABELS)
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        metavar="FILE",
        help="csv or jsonl with the columns image and question, and maybe answers, options, metric. "
        'Without it, the model is asked to "Describe the image.".',
        rich_help_panel=LABELS,
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Images per source.", rich_help_panel=LABELS)
]
SeedOption = Annotated[int, typer.Option(help="Of drawn images, and of the splits.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Split of a data set.", rich_help_panel=LABELS)
]
FeaturesOption = Annotated[
    choices.Features,
    typer.Option("--features", help="From the pixels, or from the model's own vision tower."),
]
SharesOption = Annotated[
    str, typer.Option("--shares", help="Shares of the images to fit, calibrate and test.")
]
TestOption = Annotated[
    list[Path] | None,
    typer.Option("--test", metavar="FOLDER", help="Also judge on these labels. Repeatable."),
]
AnywayOption = Annotated[
    bool, typer.Option("--anyway", help="Go on where there are too few images for any promise.")
]
NotesOption = Annotated[
    Path | None,
    typer.Option("--notes", metavar="FILE", help="Markdown to put into the predictor's card."),
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
def calibrate(
    sources: SourcesArgument,
    out: OutOption = None,
    work: WorkOption = None,
    report: ReportOption = None,
    overwrite: options.Overwrite = False,
    collect_only: CollectOnlyOption = False,
    questions: QuestionsOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    split: SplitOption = None,
    image_column: options.ImageColumn = None,
    question_column: options.QuestionColumn = None,
    answers_column: options.AnswersColumn = None,
    frames: options.Frames = None,
    features: FeaturesOption = choices.Features.pixels,
    sufficiency: options.SufficiencyOption = choices.Sufficiency.auto,
    shares: SharesOption = "0.6,0.2,0.2",
    test: TestOption = None,
    max_drop: options.MaxDrop = 0.02,
    confidence: options.Confidence = 0.95,
    per: options.Per = choices.Promise.image,
    anyway: AnywayOption = False,
    notes: NotesOption = None,
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    rungs: options.Rungs = None,
    server: Server | None = None,
    batch_size: BatchSizeOption = None,
    max_new_tokens: options.MaxNewTokens = 32,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:  # fmt: skip
    """Calibrate a predictor on your own traffic: ask the model at every scale, then fit, certify and judge.

    Images are split into three parts that share nothing: one to fit on, one that certifies the safety
    margins, and one to test on. How many images a promise needs is said before any is asked about. Without
    --out or with --collect-only, only labels are collected.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    _check(out, work, collect_only, overwrite, max_drop, confidence)
    from m3score.calibration.predictor import calibrate as steps
    from m3score.models.fingerprint import calibration_identity

    fitting = steps.FitOptions(
        _shares(shares), sufficiency.value, max_drop, confidence, per.value, seed, workers
    )
    text = _read(notes)
    found = steps.find_sources(
        sources, seed=seed, questions=questions, split=split, image=image_column,
        question=question_column, answers=answers_column, frames=frames,
    )  # fmt: skip
    if out is not None and not collect_only:
        console.print(plain(steps.what_a_promise_needs(found, limit, fitting, anyway=anyway)))
    folders = steps.label_folders(found, work or Path(str(out)).with_suffix(".labels"))
    if any(found.values()):
        collecting = steps.CollectOptions(
            limit, features.value, max_new_tokens, batch_size or "auto", workers, overwrite
        )
        answerer = load_answerer(
            model, server, device=device, dtype=dtype, quantize=quantize, revision=revision, rungs=rungs,
            console=console,
        )  # fmt: skip
        watch = partial(_watched, console)
        steps.collect_labels(found, folders, answerer, calibration_identity(answerer), collecting, watch)
    if collect_only or out is None:
        _say_collected(list(folders.values()), console)
        return
    with _said(console) as say:
        fitted = steps.fit_labels(list(folders.values()), test or [], fitting, say)
    pages = report or out.with_suffix(".report")
    missing = steps.write_predictor(fitted, out, pages, fitting, text)
    _show(fitted, out, pages, fitting, missing, console)


@contextmanager
def _watched(
    console: Console, name: str, folder: Path, count: Callable[[], int | None]
) -> Iterator[Callable[[int], None]]:
    """The progress of asking about one source; interrupted, it says where the labels are."""
    with sigterm_as_interrupt():
        try:
            with progress(console, count, f"Asking about {plain(name)}") as advance:
                yield partial(repeat, advance)
        except KeyboardInterrupt:
            console.print(f"Interrupted. What was done is kept in {plain(folder)}: run again to go on.")
            raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _said(console: Console) -> Iterator[Callable[[str], None]]:
    """What is being done: a line that changes on a terminal, lines elsewhere."""
    with console.status("Reading labels ...") as status:

        def say(text: str) -> None:
            line = f"{text[:1].upper()}{text[1:]} ..."
            if console.is_terminal:
                status.update(line)
            else:
                console.print(line)

        yield say


def _say_collected(folders: list[Path], console: Console) -> None:
    from m3score.calibration.predictor.labelling.collection import open_collection

    failed = 0
    for folder in folders:
        held = open_collection(folder)
        traces = held.traces()
        failed += int(traces["tokens"].isna().sum())
        console.print(
            f"{plain(folder)}: {len(held.features()):,} images, {traces['tokens'].notna().sum():,} "
            f"answers, {int(traces['tokens'].isna().sum()):,} images failed."
        )
    if failed:
        raise typer.Exit(SOME_FAILED)


def _show(
    fitted: Fitted, out: Path, folder: Path, options: FitOptions, missing: str, console: Console
) -> None:
    """The certificate, and what the test split says; exit code 3 if images failed."""
    predictor = fitted.predictor
    if missing:
        console.print(f"[yellow]{plain(missing)}[/]")
    asked = predictor.with_question is not None
    certificate = predictor.certificate(
        options.max_drop, options.confidence, with_question=asked, per=options.per
    )
    console.print(f"{plain(certificate.note)}")
    if weak := fitted.verdicts[0].weakness(predictor.model):
        console.print(f"[yellow]{plain(weak)}[/]")
    for form in fitted.verdicts[0].forms:
        point = form.points[0]
        console.print(
            f"Test, {form.form}, {plain(point.name)}: {point.mean_tokens:.1f} tokens on average "
            f"({point.saved:.0%} saved), accuracy {point.accuracy:.1%} ({100 * point.change:+.1f} points), "
            f"random mixing {point.mixing:.1%}, oracle {point.oracle:.1%}."
        )
    console.print(f"\nWrote {plain(out)}, and its card and frontier to {plain(folder)}.")
    if failed := predictor.data["failed_images"]:
        console.print(f"[yellow]{failed:,} images failed[/]; their rows in the labels say why.")
        raise typer.Exit(SOME_FAILED)


def _check(
    out: Path | None,
    work: Path | None,
    collect_only: bool,
    overwrite: bool,
    max_drop: float,
    confidence: float,
) -> None:
    """What can be known before hours of work."""
    from m3score.routing.promises.certify import check_levels

    check_levels(max_drop, confidence)
    if out is None:
        if not (collect_only and work):
            raise M3ScoreError("give --out FILE.predictor, or --collect-only with --work FOLDER.")
        return
    if out.suffix != ".predictor":
        raise M3ScoreError(f"{out}: the name of a predictor has to end in .predictor.")
    if not out.parent.is_dir():
        raise M3ScoreError(f"{out}: there is no folder {out.parent}.")
    if out.exists() and not (overwrite or collect_only):
        raise M3ScoreError(f"{out}: exists already; give --overwrite to replace it.")


def _shares(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not min(numbers) > 0:
        raise M3ScoreError(f"--shares has to be three positive numbers such as 0.6,0.2,0.2, not {text!r}.")
    return numbers


def _read(notes: Path | None) -> str:
    if notes is None:
        return ""
    try:
        return notes.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise M3ScoreError(f"{notes}: can't be read as text ({error}).") from None
