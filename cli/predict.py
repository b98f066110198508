"""m3score predict: how many visual tokens images need, by cheap features: no model runs."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3score.cli import options
from m3score.cli.console import INTERRUPTED, SOME_FAILED, check_target, plain, set_up, sigterm_as_interrupt

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.cli.search import Search

EPILOG = """Examples:

m3score predict photos/ --out scales.csv

m3score predict photos/ --question "What does the sign say?" --predictor my.predictor --max-drop 0.05"""


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help='Images, folders (with all below), quoted patterns ("**/*.png"), or - for a list on stdin.',
        ),
    ],
    out: options.Out = None,
    format: options.FormatOption = None,
    overwrite: options.Overwrite = False,
    question: Annotated[
        str | None, typer.Option("--question", metavar="TEXT", help="What every image will be asked.")
    ] = None,
    predictor: options.PredictorOption = "m3-tiny",
    max_drop: options.MaxDrop = 0.02,
    confidence: options.Confidence = 0.95,
    workers: options.Workers = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many images.")] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Predict the scale for each image: the visual tokens to give a model so that its answers hold.

    Every input is one row, in the order of the inputs: an image that can't be read has its reason in the
    column error.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    check_target(out, format, overwrite=overwrite)
    from m3score.cli.search import Search
    from m3score.columns import PREDICTIONS
    from m3score.predict import load_predictor
    from m3score.tables import write_table

    loaded = load_predictor(predictor)
    certificate = loaded.certificate(max_drop, confidence, with_question=question is not None)
    if not certificate.certified:
        console.print(f"[yellow]{plain(certificate.note)}[/]")
    search = Search(paths, limit)
    how = {"max_drop": max_drop, "confidence": confidence, "predictor": predictor, "workers": workers}
    rows, seconds, interrupted = predict_rows(search, question, how, console)
    write_table(rows, out or "-", PREDICTIONS, format=format)
    _report(rows, seconds, interrupted, search, console, loaded.ladder, out)
    _leave(rows, interrupted)


def predict_rows(
    search: Search, question: str | None, how: dict[str, Any], console: Console
) -> tuple[list[dict[str, Any]], float, bool]:
    """Rows of the prediction table, the seconds that they took, and whether Ctrl-C cut them short.

    Args:
        search: the inputs; M3ScoreError if there are none.
        question: what every image will be asked.
        how: further arguments of predict_many.
        console: where progress is shown.
    """
    from m3score.cli.progress import progress
    from m3score.predict import predict_many

    found = search.begin()
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    interrupted = False
    with sigterm_as_interrupt():
        try:
            with (
                closing(predict_many(found, question, **how)) as stream,  # type: ignore[type-var]
                progress(console, None if "-" in search.paths else search.count, "Predicting") as advance,
            ):
                for prediction in stream:
                    rows.append(_row(prediction.to_dict()))
                    advance()
        except KeyboardInterrupt:
            interrupted = True
    return rows, time.monotonic() - begun, interrupted


def rank_by_predictor(
    search: Search,
    question: str | None,
    predictor: str,
    console: Console,
    out: Path | None,
    format: str | None,
) -> None:
    """m3score rank --scorer predictor: a score table of predicted complexity, most complex first.

    What only a model can tell (required_tokens, solved, agreement) stays empty; predicted_tokens is the
    predictor's scale without a safety margin.
    """
    from m3score.predict import load_predictor
    from m3score.ranking import score_table
    from m3score.rules import effective_tokens_of
    from m3score.tables import write_scores

    ladder = load_predictor(predictor).ladder
    predicted, seconds, interrupted = predict_rows(
        search, question, {"max_drop": None, "predictor": predictor}, console
    )
    rows = [
        {
            "path": row["path"],
            "complexity": row["complexity"],
            "effective_tokens": None if row["error"] else effective_tokens_of(row["complexity"], ladder),
            "predicted_tokens": row["predicted_tokens"],
            "error": row["error"],
        }
        for row in predicted
    ]
    write_scores(score_table(rows, ()), out or "-", format=format)
    _report(predicted, seconds, interrupted, search, console, ladder, out)
    _leave(predicted, interrupted)


def _leave(rows: list[dict[str, Any]], interrupted: bool) -> None:
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(row["error"] for row in rows):
        raise typer.Exit(SOME_FAILED)


def _row(prediction: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": prediction["path"],
        "predicted_tokens": prediction["tokens"],
        "complexity": prediction["complexity"],
        "certified": prediction["certified"],
        "error": prediction["error"],
    }


def _report(
    rows: list[dict[str, Any]],
    seconds: float,
    interrupted: bool,
    search: Search,
    console: Console,
    ladder: tuple[int, ...],
    out: Path | None,
) -> None:
    from m3score.cli.progress import speed_text
    from m3score.cli.summary import FAILURES_SHOWN, histogram, show_skipped

    verb = "Interrupted after" if interrupted else "Predicted"
    speed = speed_text(len(rows) / max(seconds, 1e-9))
    console.print(f"{verb} {len(rows):,} image{'' if len(rows) == 1 else 's'} in {seconds:.1f} s ({speed}).")
    show_skipped(search.skipped, console)
    good = [row["predicted_tokens"] for row in rows if row["error"] is None]
    if good:
        console.print("\nImages by predicted visual tokens per grid")
        console.print(histogram([(str(tokens), good.count(tokens)) for tokens in ladder]))
        console.print(f"Mean {sum(good) / len(good):.1f} of {ladder[-1]} tokens.")
    failed = [row for row in rows if row["error"]]
    if failed:
        console.print(f"\n[bold red]{len(failed):,} failed[/] (see the column error):")
        for row in failed[:FAILURES_SHOWN]:
            console.print(f"  {plain(row['path'])}: {plain(row['error'])}", soft_wrap=True)
    if out is not None and str(out) != "-":
        console.print(f"\nWrote {plain(out)}.")
