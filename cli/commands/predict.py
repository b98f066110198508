"""m3score predict: how many visual tokens images need, by cheap features: no model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3score.cli import options
from m3score.cli.cluster import predictor_elsewhere
from m3score.cli.console import check_target, plain, set_up, sigterm_as_interrupt
from m3score.common.limits import MAX_PIXELS, SECONDS, Limits

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.cli.cluster import Stream
    from m3score.cli.running import Run, Target
    from m3score.cli.search import Search
    from m3score.data.discover import FoundImage
    from m3score.routing.predict import Prediction
    from m3score.runs.executors.ray_cluster import Cluster
    from m3score.runs.tally import Tally

EPILOG = """Examples:

m3score predict photos/ --out scales.csv

m3score predict photos/ --question "What does the sign say?" --predictor my.predictor --max-drop 0.05

m3score predict photos/ --mean-tokens 60 --out scales.csv"""


def predict(
    paths: options.Paths = None,
    out: options.Out = None,
    format: options.FormatOption = None,
    overwrite: options.Overwrite = False,
    question: Annotated[
        str | None, typer.Option("--question", metavar="TEXT", help="What every image will be asked.")
    ] = None,
    predictor: options.PredictorOption = "m3-tiny",
    max_drop: options.MaxDrop = 0.02,
    confidence: options.Confidence = 0.95,
    per: options.Per = options.Promise.image,
    mean_tokens: options.MeanTokens = None,
    frames: options.Frames = None,
    workers: options.Workers = None,
    dataset: options.DatasetOption = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    question_column: options.QuestionColumn = None,
    answers_column: options.AnswersColumn = None,
    streaming: options.Streaming = False,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many images.")] = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    max_bytes: options.MaxBytes = None,
    image_timeout: options.ImageTimeout = SECONDS,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Predict the scale for each image: the visual tokens to give a model so that its answers hold.

    Every input is one row, in the order of the inputs: an image that can't be read has its reason in the
    column error. A picture unlike those that the predictor was calibrated on gets the finest scale; it is not
    certified, and the column reason says why.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    limits = Limits.of(max_pixels, max_bytes, image_timeout)
    check_target(out, format, overwrite=overwrite, out=out)
    from m3score.cli.running import Run, Target
    from m3score.cli.search import search_for
    from m3score.routing.predict import load_predictor
    from m3score.routing.registry import predictor_digest
    from m3score.runs.journal import open_journal
    from m3score.tables.schema import PREDICTIONS

    loaded = load_predictor(predictor)
    if mean_tokens is not None:
        loaded.price(mean_tokens, with_question=question is not None)  # complains by itself
    else:
        certificate = loaded.certificate(
            max_drop, confidence, with_question=question is not None, per=per.value
        )
        if not certificate.certified:
            console.print(f"[yellow]{plain(certificate.note)}[/]")
    search = search_for(
        paths,
        limit,
        dataset=dataset,
        split=split,
        image=image_column,
        question=question_column,
        answers=answers_column,
        streaming=streaming,
        asked=question,
        max_bytes=limits.max_embedded_bytes,
    )
    found = search.begin()
    depends_on = {
        "command": "predict",
        "--predictor": predictor_digest(predictor),
        "--question": question,
        "--max-drop": max_drop,
        "--confidence": confidence,
        "--per": per.value,
        "--mean-tokens": mean_tokens,
        "--max-pixels": max_pixels,
        "--max-bytes": max_bytes,
        "--frames": frames,
    }
    how = {
        "max_drop": max_drop,
        "confidence": confidence,
        "per": per.value,
        "mean_tokens": mean_tokens,
        "predictor": predictor,
        "workers": workers,
        "limits": limits,
        "frames": frames,
    }
    run = Run(open_journal(out, depends_on, overwrite=overwrite), search, console)
    target = Target(out, format, PREDICTIONS, (), loaded.ladder, ranked=False)
    _go(run, found, question, how, target, _row)


def _go(
    run: Run,
    found: Iterator[FoundImage],
    question: str | None,
    how: dict[str, Any],
    target: Target,
    row: Callable[[Prediction], dict[str, Any]],
    stream: Stream | None = None,
) -> None:
    """Predict, write the table and report. `stream` is what predicts, by default this machine."""
    from m3score.routing.predict import predict_many

    with sigterm_as_interrupt():
        tally = run.go(
            found,
            stream or (lambda items: predict_many(items, question, **how)),
            lambda prediction: run.collector.keep(row(prediction), transient=prediction.transient),
            target,
            "Predicting",
        )
    run.tell(tally, "Predicted")
    _summarise(tally, run.console)
    run.leave(tally, target.out)


def _row(prediction: Prediction) -> dict[str, Any]:
    return {
        "path": prediction.path,
        "predicted_tokens": prediction.tokens,
        "complexity": prediction.complexity,
        "certified": prediction.certified,
        "promise": prediction.promise,
        "reason": prediction.reason,
        "error": prediction.error,
    }


def _summarise(tally: Tally, console: Console) -> None:
    from m3score.cli.summary import histogram, show_failures

    if tally.scored:
        console.print("\nImages by predicted visual tokens per grid")
        console.print(histogram([(str(tokens), tally.predicted[tokens]) for tokens in tally.ladder]))
        mean = sum(tokens * count for tokens, count in tally.predicted.items()) / tally.scored
        console.print(f"Mean {mean:.1f} of {tally.ladder[-1]} tokens.")
    show_failures(tally, console)


def rank_by_predictor(
    search: Search,
    question: str | None,
    predictor: str,
    console: Console,
    out: Path | None,
    format: str | None,
    *,
    overwrite: bool = False,
    limits: Limits | None = None,
    workers: int | None = None,
    cluster: Cluster | None = None,
    frames: int | None = None,
) -> None:
    """m3score rank --scorer predictor: a score table of predicted complexity, most complex first.

    What only a model can tell (required_tokens, solved, agreement) stays empty; predicted_tokens is the
    predictor's scale without a safety margin.
    """
    from m3score.cli.running import Run, Target
    from m3score.routing.predict import load_predictor
    from m3score.routing.registry import predictor_digest
    from m3score.runs.journal import open_journal
    from m3score.scoring.rules import effective_tokens_of
    from m3score.tables.schema import SCORES

    loaded = load_predictor(predictor)
    ladder = loaded.ladder
    found = search.begin()
    depends_on = {
        "command": "rank --scorer predictor",
        "--predictor": predictor_digest(predictor),
        "--question": question,
        "--max-pixels": (limits or Limits()).max_pixels,
        "--max-bytes": [(limits or Limits()).max_bytes, (limits or Limits()).max_embedded_bytes],
        "--frames": frames,
    }

    def row(prediction: Prediction) -> dict[str, Any]:
        complexity = prediction.complexity
        return {
            "path": prediction.path,
            "complexity": complexity,
            "effective_tokens": None if complexity is None else effective_tokens_of(complexity, ladder),
            "predicted_tokens": prediction.tokens,
            "error": prediction.error,
        }

    elsewhere = predictor_elsewhere(cluster, loaded, question, limits or Limits(), frames)
    block = elsewhere.block if elsewhere else 1
    run = Run(open_journal(out, depends_on, overwrite=overwrite), search, console, block=block)
    target = Target(out, format, SCORES, ("predicted_tokens",), ladder, ranked=True)
    how = {
        "max_drop": None,
        "predictor": predictor,
        "limits": limits or Limits(),
        "workers": workers,
        "frames": frames,
    }
    if elsewhere is None:
        _go(run, found, question, how, target, row)
        return
    with elsewhere.streaming(out, depends_on, block, overwrite=overwrite) as stream:
        _go(run, found, question, how, target, row, stream)
