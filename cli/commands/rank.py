"""m3score rank: images in, a table out, most complex first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from m3score.cli import choices, options, scorer_options
from m3score.cli.commands.report import check_page, page_of_run
from m3score.cli.console import plain, set_up
from m3score.cli.progress import carry_out
from m3score.cli.server import takes_server
from m3score.common.errors import M3ScoreError
from m3score.common.limits import MAX_PIXELS, SECONDS, Limits

if TYPE_CHECKING:
    from rich.console import Console

    from m3score.runs.request import Inputs, Request, Target

EPILOG = """Examples:

m3score rank photos/ --out scores.csv

m3score rank "photos/**/*.webp" --model mucai/llava-v1.5-7b-m3 --out scores.parquet

find . -name "*.jpg" | m3score rank - --question "What is on the table?" | head

m3score rank photos/ --questions asked.csv --traces traces.jsonl --out scores.csv

m3score rank "data/shard-{0000..0099}.tar" --out scores.parquet

m3score rank --dataset user/pictures --split test --streaming --limit 1000 --out scores.csv

m3score rank photos/ --endpoint http://localhost:8000/v1 --questions asked.jsonl --out scores.csv

m3score rank photos/ --scorer predictor --out scores.csv

m3score rank photos/ --scorer cascade --budget 10% --out scores.csv

m3score rank photos/ --scorer cat --model llava-hf/llava-1.5-7b-hf --cat-llm Qwen/Qwen2.5-7B-Instruct"""


@takes_server
def rank(
    ctx: typer.Context,
    paths: options.Paths = None,
    out: options.Out = None,
    format: options.FormatOption = None,
    traces: options.Traces = None,
    report: options.Report = None,
    overwrite: options.Overwrite = False,
    scorer: scorer_options.ScorerName = None,
    budget: scorer_options.BudgetOption = None,
    max_model_images: scorer_options.MaxModelImages = None,
    cat_llm: scorer_options.CatLlm = None,
    cat_prompts: scorer_options.CatPrompts = None,
    alit_model: scorer_options.AlitModel = None,
    alit_threshold: scorer_options.AlitThreshold = None,
    scorer_option: scorer_options.ScorerOption = None,
    predictor: options.PredictorOption = "m3-tiny",
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    rungs: options.Rungs = None,
    batch_size: options.BatchSize = None,
    max_new_tokens: options.MaxNewTokens = 32,
    question: options.AskedOfAll = None,
    questions: options.QuestionsFile = None,
    answers: options.CoarseAnswers = True,
    rule: options.RuleOption = choices.Rule.stays,
    frames: options.Frames = None,
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
    profile: options.ProfileOption = False,
    engine: options.EngineOption = choices.Engine.local,
    address: options.Address = None,
    num_gpus: options.NumGpus = None,
    workers: options.EngineWorkers = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Rank images by complexity, most complex first: by how many visual tokens each needs.

    Without a question, the model's vision tower tells how many distinct visual tokens a picture has, or how
    many it takes to read it. With --question or --questions, the model answers at every scale, and the fewest
    tokens with which it still answers as with all of them count.
    Every input is one row: an image that can't be read has its reason in the column error.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    limits = Limits.of(max_pixels, max_bytes, image_timeout)
    from m3score.cli.summary import leave, show_outcome, show_profile
    from m3score.common.profiling import profiled
    from m3score.runs.request import Target, inputs_of

    target = Target(out or Path("-"), format, traces).checked(overwrite=overwrite)
    _check(out, report, overwrite=overwrite, profile=profile, engine=engine)
    inputs = inputs_of(
        paths, limit, dataset=dataset, split=split, columns=scorer_options.columns_of(ctx.params),
        streaming=streaming, max_bytes=limits.max_embedded_bytes,
    )  # fmt: skip
    request = _request(ctx, inputs, target, limits)
    with profiled() if profile else nullcontext() as measured:
        outcome = carry_out(request, console, engine=engine, address=address, num_gpus=num_gpus)
    if outcome.unused and not (outcome.interrupted or limit):
        _say_unused(outcome.unused, questions, console)
    show_outcome(outcome, console, rule=rule)
    if measured is not None:
        show_profile(measured, console)
    if report is not None and out is not None and not outcome.interrupted:
        page_of_run(report, out, format, traces, outcome.model, console, inputs)
    leave(outcome, out, console)


def _request(ctx: typer.Context, inputs: Inputs, target: Target, limits: Limits) -> Request:
    """The run that the options ask for. Without --scorer it hangs on whether there is a question."""
    from m3score.runs.ranking import default_scorer, request_for
    from m3score.scoring.registry import option_names

    given = ctx.params
    scorer = given["scorer"]
    if scorer is None:
        asked = {name: given[name] or None for name in ("question", "questions", "endpoint")}
        scorer = default_scorer(asked, inputs)
    own = scorer_options.given_to_scorer(ctx, option_names(scorer), given["scorer_option"])
    return request_for(
        scorer, own, inputs, target, spelled=scorer_options.spelled, limits=limits,
        workers=given["workers"], anew=given["overwrite"],
    )  # fmt: skip


def _say_unused(unused: Sequence[str], questions: Path | None, console: Console) -> None:
    fitted = f"{len(unused):,} of the images in {questions}"
    console.print(f"[yellow]Not among the inputs:[/] {plain(fitted)}, such as {plain(unused[0])}.")


def _check(out: Path | None, report: Path | None, *, overwrite: bool, profile: bool, engine: str) -> None:
    """What can be known before any work."""
    check_page(report, overwrite=overwrite)
    if report is not None and (out is None or str(out) == "-"):
        raise M3ScoreError("--report needs --out FILE: the page is made of the finished table.")
    if profile and engine != choices.Engine.local:
        raise M3ScoreError("--profile is for --engine local.")
