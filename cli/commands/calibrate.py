"""m3score calibrate: labels from a model, and a predictor of its scales from the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3score.cli import options
from m3score.cli.console import SOME_FAILED, set_up
from m3score.common.errors import M3ScoreError

EPILOG = """Examples:

m3score calibrate photos/ --questions asked.csv --model mucai/llava-v1.5-7b-m3 --out my.predictor

m3score calibrate drawn --limit 10000 --work labels/ --collect-only

m3score calibrate labels/ more-labels/ --max-drop 0.05 --out my.predictor

Labels are kept in --work and go on where they stopped. Accuracy against tokens, as numbers and as a picture,
and the predictor's card are written to --report."""

LABELS = "Labels"


def calibrate(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCES",
            help="drawn (images with known answers); varied (the same as files of many sizes, most of them "
            "JPEGs); image files or folders; a data set that datasets saved on disk, or its hub id; or "
            "folders of labels that this command collected.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="The predictor (.predictor).",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="FOLDER",
            help="Where labels are kept.",
            show_default="FILE with the suffix .labels",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FOLDER",
            help="Where the card and the frontier (csv, png) go.",
            show_default="FILE with the suffix .report",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    collect_only: Annotated[
        bool, typer.Option("--collect-only", help="Collect labels and fit nothing.", rich_help_panel=LABELS)
    ] = False,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="csv or jsonl with the columns image and question, and maybe answers, options, metric. "
            "Without it, images are asked the probe panel.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Images per source.", rich_help_panel=LABELS)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of drawn images, and of the splits.")] = 0,
    split: Annotated[
        str | None, typer.Option("--split", help="Split of a data set.", rich_help_panel=LABELS)
    ] = None,
    image_column: options.ImageColumn = None,
    question_column: options.QuestionColumn = None,
    answers_column: options.AnswersColumn = None,
    frames: options.Frames = None,
    features: Annotated[
        options.Features,
        typer.Option("--features", help="From the pixels, or from the model's own vision tower."),
    ] = options.Features.pixels,
    sufficiency: options.SufficiencyOption = options.Sufficiency.auto,
    shares: Annotated[
        str, typer.Option("--shares", help="Shares of the images to fit, calibrate and test.")
    ] = "0.6,0.2,0.2",
    test: Annotated[
        list[Path] | None,
        typer.Option("--test", metavar="FOLDER", help="Also judge on these labels. Repeatable."),
    ] = None,
    max_drop: options.MaxDrop = 0.02,
    confidence: options.Confidence = 0.95,
    per: options.Per = options.Promise.image,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Go on where there are too few images for any promise."),
    ] = False,
    notes: Annotated[
        Path | None,
        typer.Option("--notes", metavar="FILE", help="Markdown to put into the predictor's card."),
    ] = None,
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images given to the model at once.",
                     show_default="32 on a GPU, else 8", rich_help_panel=options.MODEL),
    ] = None,
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
    from m3score.calibration.predictor.sources import find_source
    from m3score.cli import calibrating

    parts = _shares(shares)
    text = _read(notes)
    where = work or Path(str(out)).with_suffix(".labels")
    asked = {"questions": questions, "split": split, "image": image_column, "question": question_column,
             "answers": answers_column, "frames": frames}  # fmt: skip
    found = {
        name: None if _collected(name) else find_source(name, seed=seed, **asked)  # type: ignore[arg-type]
        for name in dict.fromkeys(sources)
    }
    if out is not None and not collect_only:
        calibrating.say_what_a_promise_needs(
            found, limit, parts, max_drop, confidence, per.value, anyway, console
        )
    how = {"limit": limit, "feature_set": features.value, "max_new_tokens": max_new_tokens,
           "batch_size": batch_size or "auto", "workers": workers, "overwrite": overwrite}  # fmt: skip
    loading = {"device": device, "dtype": dtype, "quantize": quantize, "revision": revision}
    folders = calibrating.collect(found, where, model, loading, how, console)
    if collect_only or out is None:
        calibrating.say_collected(folders, console)
        return
    fitted = calibrating.fit(
        folders, test or [], parts, sufficiency, max_drop, confidence, per.value, seed, workers, console
    )
    failed = calibrating.write(
        fitted, out, report or out.with_suffix(".report"), max_drop, confidence, per.value, text, console
    )
    if failed:
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
    from m3score.routing.certify import check_levels

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


def _collected(source: str) -> bool:
    from m3score.calibration.predictor.collect import is_collection

    return is_collection(source)
