"""m3score rank: images in, a table out, most complex first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from m3score.cli import options
from m3score.cli.console import (
    INTERRUPTED,
    SOME_FAILED,
    check_target,
    load,
    plain,
    set_up,
    sigterm_as_interrupt,
)
from m3score.errors import M3ScoreError

if TYPE_CHECKING:
    from m3score.answers import LadderAnswerer
    from m3score.cli.search import Search
    from m3score.finding import FoundImage
    from m3score.prefetch import QuestionBook
    from m3score.ranking import RankedImage

EPILOG = """Examples:

m3score rank photos/ --out scores.csv

m3score rank "photos/**/*.webp" --model mucai/llava-v1.5-7b-m3 --out scores.parquet

find . -name "*.jpg" | m3score rank - --question "What is on the table?" | head

m3score rank photos/ --questions asked.csv --traces traces.jsonl --out scores.csv

m3score rank photos/ --scorer predictor --out scores.csv"""


def rank(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS",
            help='Images, folders (with all below), quoted patterns ("**/*.png"), or - for a list on stdin.',
        ),
    ],
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
    overwrite: options.Overwrite = False,
    scorer: Annotated[
        options.Scorer,
        typer.Option(
            "--scorer",
            help="model: ask it at every scale. predictor: foretell it from cheap features, much faster; "
            "complexity is then the predicted one, and no model options apply.",
        ),
    ] = options.Scorer.model,
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
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many images.")] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Say at the end where the time went.", rich_help_panel=options.OUTPUT),
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Rank images by how many visual tokens the model needs, most complex first.

    Every input is one row: an image that can't be read has its reason in the column error.
    """
    console = set_up(quiet=quiet, verbose=verbose)
    check_target(out, format, overwrite=overwrite)
    check_target(traces, None, overwrite=overwrite)
    if out is not None and out == traces:
        raise M3ScoreError("--out and --traces need different files.")
    from m3score.cli.search import Search
    from m3score.profiling import profiled, stage

    search = Search(paths, limit)
    if scorer is options.Scorer.predictor:
        from m3score.cli.predict import rank_by_predictor

        if traces is not None or questions is not None or len(question or ()) > 1 or profile:
            raise M3ScoreError(
                "--scorer predictor allows one --question, and no --questions, --traces or --profile."
            )
        rank_by_predictor(search, question[0] if question else None, predictor, console, out, format)
        return
    book = _book(question, questions)
    found = search.begin()
    with sigterm_as_interrupt():
        answerer = load(
            model, device=device, dtype=dtype, quantize=quantize, revision=revision, console=console
        )
        run = _Run(console, keep_traces=traces is not None)
        how = {
            "rule": rule,
            "batch_size": batch_size or "auto",
            "max_new_tokens": max_new_tokens,
            "coarse_answers": answers,
        }
        with profiled() if profile else nullcontext() as measured:
            try:
                run.go(search, found, answerer, book, how)
            finally:  # whatever happened, what was done is kept
                with stage("write"):
                    table = _write(run, answerer.ladder, out, format, traces)
    if (unused := book.unused()) and not (run.interrupted or limit):
        fitted = f"{len(unused):,} of the images in {questions}"
        console.print(f"[yellow]Not among the inputs:[/] {plain(fitted)}, such as {plain(unused[0])}.")
    _report(run, table, search, console, f"{model} on {answerer.device}", rule, out)
    if measured is not None:
        from m3score.cli.summary import show_profile

        show_profile(measured, console)
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)
    if table["complexity"].isna().any():
        raise typer.Exit(SOME_FAILED)


class _Run:
    """What a run has produced so far, whole or interrupted."""

    def __init__(self, console: Console, *, keep_traces: bool) -> None:
        self.console = console
        self.keep_traces = keep_traces
        self.rows: list[dict[str, Any]] = []
        self.traces: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.interrupted = False

    def go(
        self,
        search: Search,
        found: Iterator[FoundImage],
        answerer: LadderAnswerer,
        book: QuestionBook,
        how: Mapping[str, Any],
    ) -> None:
        """Rank until the end or Ctrl-C."""
        from m3score.cli.progress import progress
        from m3score.ranking import rank_stream

        begun = time.monotonic()
        try:
            with (
                closing(rank_stream(found, answerer, book, **how)) as stream,
                progress(self.console, None if "-" in search.paths else search.count) as advance,
            ):
                for result in stream:
                    self._keep(result)
                    advance()
        except KeyboardInterrupt:
            self.interrupted = True
        self.seconds = time.monotonic() - begun

    def _keep(self, result: RankedImage) -> None:
        self.rows.append(result.to_row())
        if self.keep_traces:
            self.traces.extend(result.trace_rows())


def _book(question: list[str] | None, questions: Path | None) -> QuestionBook:
    from m3score.prefetch import QuestionBook
    from m3score.questions import read_questions

    if questions is None:
        return QuestionBook(question or None)
    return QuestionBook(read_questions(questions), fallback=question or ())


def _write(
    run: _Run, ladder: tuple[int, ...], out: Path | None, format: str | None, traces: Path | None
) -> Any:
    from m3score.ranking import score_table
    from m3score.tables import write_scores, write_traces

    table = score_table(run.rows, ladder)
    try:
        write_scores(table, out or "-", format=format)
    finally:  # a full disk under one file may have room for the other elsewhere
        if traces is not None:
            write_traces(run.traces, traces)
    return table


def _report(
    run: _Run, table: Any, search: Search, console: Console, model: str, rule: str, out: Path | None
) -> None:
    from m3score.cli.progress import speed_text
    from m3score.cli.summary import show_skipped, show_summary

    verb = "Interrupted after" if run.interrupted else "Ranked"
    speed = len(table) / max(run.seconds, 1e-9)
    console.print(
        f"{verb} {len(table):,} image{'' if len(table) == 1 else 's'} in {run.seconds:.1f} s "
        f"({speed_text(speed)}) with {plain(model)}."
    )
    show_skipped(search.skipped, console)
    show_summary(table, console, rule=rule)
    if out is not None and str(out) != "-":
        console.print(f"\nWrote {plain(out)}.")
