"""m3score predict: how many visual tokens images need, by cheap features: no model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3score.cli import choices, options, scorer_options
from m3score.cli.console import plain, set_up
from m3score.cli.progress import carry_out
from m3score.common.limits import MAX_PIXELS, SECONDS, Limits

EPILOG = """Examples:

m3score predict photos/ --out scales.csv

m3score predict photos/ --question "What does the sign say?" --predictor my.predictor --max-drop 0.05

m3score predict photos/ --mean-tokens 60 --out scales.csv

m3score predict photos/ --predictor my.predictor --as request --out requests.jsonl"""


def predict(
    ctx: typer.Context,
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
    per: options.Per = choices.Promise.image,
    mean_tokens: options.MeanTokens = None,
    written_as: Annotated[
        choices.WrittenAs,
        typer.Option(
            "--as",
            help="scale: the visual tokens. request: also what to send to the predictor's model for them, "
            "such as the arguments of its processor, the fields of a request to its server, or the size to "
            "resize to; as objects in jsonl.",
        ),
    ] = choices.WrittenAs.scale,
    frames: options.Frames = None,
    workers: options.Workers = None,
    dataset: options.DatasetOption = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    question_column: options.QuestionColumn = None,
    answers_column: options.AnswersColumn = None,
    streaming: options.Streaming = False,
    limit: options.Limit = None,
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
    from m3score.cli.summary import leave, show_outcome
    from m3score.routing.scorer import Router, RouterOptions
    from m3score.runs.request import Request, Target, inputs_of
    from m3score.tables.schema import PREDICTIONS

    target = Target(out or Path("-"), format, kind=PREDICTIONS, ranked=False).checked(overwrite=overwrite)
    told = RouterOptions(**scorer_options.given_to_scorer(ctx, ()))
    if told.nothing_certified:
        console.print(f"[yellow]{plain(told.nothing_certified)}[/]")
    inputs = inputs_of(
        paths, limit, dataset=dataset, split=split, columns=scorer_options.columns_of(ctx.params),
        streaming=streaming, max_bytes=limits.max_embedded_bytes,
    )  # fmt: skip
    request = Request(inputs, Router, told, target, "predict", limits, workers, anew=overwrite)
    outcome = carry_out(request, console)
    show_outcome(outcome, console, rule="", ranked=False)
    leave(outcome, out, console)
