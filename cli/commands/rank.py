"""m3score rank: images in, a table out, most complex first."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3score.cli import options
from m3score.cli.cluster import cluster_for, elsewhere_for
from m3score.cli.commands.report import check_page, page_of_run
from m3score.cli.console import check_target, load, plain, set_up, sigterm_as_interrupt
from m3score.common.errors import M3ScoreError
from m3score.common.limits import MAX_PIXELS, SECONDS, Limits

if TYPE_CHECKING:
    from m3score.data.discover import FoundImage
    from m3score.data.loader import QuestionBook
    from m3score.runs.ranking import RankedImage

EPILOG = """Examples:

m3score rank photos/ --out scores.csv

m3score rank "photos/**/*.webp" --model mucai/llava-v1.5-7b-m3 --out scores.parquet

find . -name "*.jpg" | m3score rank - --question "What is on the table?" | head

m3score rank photos/ --questions asked.csv --traces traces.jsonl --out scores.csv

m3score rank "data/shard-{0000..0099}.tar" --out scores.parquet

m3score rank --dataset user/pictures --split test --streaming --limit 1000 --out scores.csv

m3score rank photos/ --scorer predictor --out scores.csv

m3score rank photos/ --scorer cascade --budget 10% --out scores.csv

m3score rank photos/ --scorer cat --model llava-hf/llava-1.5-7b-hf --cat-llm Qwen/Qwen2.5-7B-Instruct"""


def rank(
    paths: options.Paths = None,
    out: options.Out = None,
    format: options.FormatOption = None,
    traces: Annotated[
        Path | None,
        typer.Option(
            "--traces",
            metavar="FILE",
            help="Also write every answer at every scale; m3score rescore reads it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Also write a page of the results (.html); needs --out. See m3score report.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    scorer: Annotated[
        options.Scorer,
        typer.Option(
            "--scorer",
            help="model: ask it at every scale. predictor: foretell it from cheap features, much faster; "
            "complexity is then the predicted one, and no model options apply. cascade: the predictor scores "
            "all, the model what the predictor is unsure of. jpeg, edges, entropy: simple "
            "measures of pixels. cat: --model describes the image and --cat-llm rates that. alit: how many "
            "adaptive tokens rebuild it.",
        ),
    ] = options.Scorer.model,
    budget: options.BudgetOption = None,
    max_model_images: options.MaxModelImages = None,
    cat_llm: options.CatLlm = None,
    cat_prompts: options.CatPrompts = None,
    alit_model: options.AlitModel = None,
    alit_threshold: options.AlitThreshold = None,
    predictor: options.PredictorOption = "m3-tiny",
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = options.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Images given to the model at once.",
            show_default="32 on a GPU, else 8",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 32,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", metavar="TEXT", help="Ask this of every image. Repeatable."),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help="csv or jsonl with the columns image and question, and maybe answers, options, metric: each "
            "image is asked its own. Images are matched by the end of their path; those without a row fail, "
            "unless --question says what to ask them.",
        ),
    ] = None,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers/--no-answers",
            help="Whether coarser scales' answers are decoded where they differ from the finest scale's. "
            "Without: faster; they are empty in --traces then, and ground truths are not judged by.",
            rich_help_panel=options.MODEL,
        ),
    ] = True,
    rule: options.RuleOption = options.Rule.stays,
    frames: options.Frames = None,
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
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Say at the end where the time went.", rich_help_panel=options.OUTPUT),
    ] = False,
    engine: options.EngineOption = options.Engine.local,
    address: options.Address = None,
    num_gpus: options.NumGpus = None,
    workers: options.EngineWorkers = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Rank images by how many visual tokens the model needs, most complex first.

    Every input is one row: an image that can't be read has its reason in the column error.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    limits = Limits.of(max_pixels, max_bytes, image_timeout)
    check_target(out, format, overwrite=overwrite, out=out)
    check_target(traces, None, overwrite=overwrite, out=out)
    check_page(report, overwrite=overwrite)
    if report is not None and (out is None or str(out) == "-"):
        raise M3ScoreError("--report needs --out FILE: the page is made of the finished table.")
    if out is not None and out == traces:
        raise M3ScoreError("--out and --traces need different files.")
    from hashlib import sha256

    from m3score.cli.running import Run, Target
    from m3score.cli.search import search_for
    from m3score.cli.summary import show_profile, show_summary
    from m3score.common.profiling import profiled
    from m3score.runs.executors.jobs import identity_of
    from m3score.runs.journal import keeps_journal, open_journal
    from m3score.runs.ranking import BLOCK_BATCHES, images_at_once, rank_stream
    from m3score.tables.io import read_whole
    from m3score.tables.schema import SCORES

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
    if scorer is options.Scorer.predictor:
        from m3score.cli.commands.predict import rank_by_predictor

        if traces is not None or questions is not None or len(question or ()) > 1 or profile or report:
            raise M3ScoreError(
                "--scorer predictor allows one --question, and no --questions, --traces, --report, --profile."
            )
        asked = question[0] if question else None
        with sigterm_as_interrupt(), cluster_for(engine, address, num_gpus, workers) as cluster:
            rank_by_predictor(
                search,
                asked,
                predictor,
                console,
                out,
                format,
                overwrite=overwrite,
                limits=limits,
                workers=workers,
                cluster=cluster,
                frames=frames,
            )
        return
    if engine is options.Engine.ray and scorer is not options.Scorer.model:
        raise M3ScoreError(f"--engine ray is for the scorers model and predictor, not {scorer}.")
    cascading = scorer is options.Scorer.cascade
    if not cascading and (budget is not None or max_model_images is not None):
        raise M3ScoreError("--budget and --max-model-images go with --scorer cascade.")
    of_cascade: dict[str, Any] = {}
    if cascading:
        from m3score.cli.cascade import COLUMNS, Cascade, in_cascade, keep_stdin, predictions_journal

        of_cascade = in_cascade(budget, max_model_images, predictor)
        if "-" in (paths or ()):
            keep_stdin()
    if scorer is not options.Scorer.model and not cascading:
        from m3score.cli.scoring import rank_by_scorer
        from m3score.scoring.scorers import ScorerOptions

        if traces is not None or questions is not None or question or profile or report or quantize or frames:
            raise M3ScoreError(
                f"--scorer {scorer} allows no --question, --questions, --traces, --report, --profile, "
                "--quantize and --frames."
            )
        told = ScorerOptions(
            model, device, dtype, revision, batch_size, cat_llm, cat_prompts, alit_model, alit_threshold
        )
        rank_by_scorer(scorer, told, search, console, out, format, overwrite=overwrite, limits=limits)
        return
    book = _book(question, questions)
    found = search.begin()
    how: dict[str, Any] = {
        "rule": rule,
        "batch_size": batch_size or "auto",
        "max_new_tokens": max_new_tokens,
        "coarse_answers": answers,
        "limits": limits,
        "workers": workers,
        "frames": frames,
    }
    if engine is options.Engine.ray and profile:
        raise M3ScoreError("--profile is for --engine local.")
    with sigterm_as_interrupt(), cluster_for(engine, address, num_gpus, workers) as cluster:
        loading: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "quantize": quantize,
            "revision": revision,
        }
        elsewhere = elsewhere_for(cluster, model, loading, book, how, traces=traces is not None)
        answerer: Any = elsewhere.facts() if elsewhere else load(model, console=console, **loading)
        depends_on = {
            "command": "rank",
            "--model": identity_of(model, revision) if keeps_journal(out) else model,
            "--device": str(answerer.device).partition(":")[0],
            "--dtype": str(getattr(answerer, "dtype", dtype)),
            "--quantize": quantize,
            "--question": question,
            "--questions": None if questions is None else sha256(read_whole(questions)).hexdigest(),
            "--rule": rule,
            "--max-new-tokens": max_new_tokens,
            "--answers": answers,
            "--traces": traces is not None,
            "--max-pixels": max_pixels,
            "--max-bytes": max_bytes,
            "--frames": frames,
        }
        depends_on |= of_cascade
        journal = open_journal(out, depends_on, overwrite=overwrite)
        block = BLOCK_BATCHES * images_at_once(answerer, batch_size or "auto")

        def ask_for(item: FoundImage) -> None:
            with suppress(M3ScoreError):
                book.of(item.name, item.questions)  # its questions are used, if not now

        passes: dict[str, Any] = {"block": block, "on_skip": ask_for}
        if cascading:
            passes |= {
                "predictions": predictions_journal(out, depends_on, overwrite=overwrite),
                "budget": (budget, max_model_images),
                "predictor": predictor,
                "model": answerer,
                "book": book if question or questions else None,
                "limits": limits,
            }
        run = (Cascade if cascading else Run)(journal, search, console, **passes)

        def keep(result: RankedImage) -> None:
            traced = result.trace_rows() if traces is not None else ()
            run.collector.keep(result.to_row(), traced, transient=result.transient)

        columns = tuple(f"agreement_{tokens}" for tokens in answerer.ladder)
        if cascading:
            columns = (*columns, *COLUMNS)
        target = Target(out, format, SCORES, columns, answerer.ladder, ranked=True, traces=traces)
        with profiled() if profile else nullcontext() as measured:
            if elsewhere:
                with elsewhere.streaming(out, depends_on, block, ask_for, overwrite=overwrite) as stream:
                    tally = run.go(found, stream, keep, target)
            else:
                tally = run.go(found, lambda items: rank_stream(items, answerer, book, **how), keep, target)
    if (unused := book.unused()) and not (run.interrupted or limit):
        fitted = f"{len(unused):,} of the images in {questions}"
        console.print(f"[yellow]Not among the inputs:[/] {plain(fitted)}, such as {plain(unused[0])}.")
    run.tell(tally, "Ranked", f" with {plain(model)} on {answerer.device}")
    if not run.show(tally, model):
        show_summary(tally, console, rule=rule)
    if measured is not None:
        show_profile(measured, console)
    if report is not None and out is not None and not run.interrupted:
        page_of_run(report, out, format, traces, answerer, console, search)
    run.leave(tally, out)


def _book(question: list[str] | None, questions: Path | None) -> QuestionBook:
    from m3score.data.loader import QuestionBook
    from m3score.data.questions import read_questions

    if questions is None:
        return QuestionBook(question or None)
    return QuestionBook(read_questions(questions), fallback=question or ())
