"""m3score ask: one image, one question, at one scale or at all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3score.cli import choices, options
from m3score.cli.console import plain, set_up
from m3score.cli.scorer_options import as_utf8
from m3score.cli.server import Server, load_answerer, takes_server
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    from m3score.scoring.traces import TraceRow

EPILOG = """Examples:

m3score ask photo.jpg "How many dogs are there?" --tokens 36

m3score ask photo.jpg "How many dogs are there?" --all --answer 3

m3score ask photo.jpg "How many dogs are there?" --all --endpoint http://localhost:8000/v1"""


@takes_server
def ask(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image or a video.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Asked word for word.")],
    frames: options.Frames = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", min=1, help="Visual tokens per grid: a scale of the model.", show_default="the finest"
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Answer at every scale, as a table.")] = False,
    answer: Annotated[
        list[str] | None,
        typer.Option("--answer", metavar="TEXT", help="With --all: a right answer, to judge by. Repeatable."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="With --answer: how to judge."),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="With --all: one JSON object per scale.", rich_help_panel=options.OUTPUT),
    ] = False,
    model: options.Model = "m3-tiny",
    device: options.DeviceOption = "auto",
    dtype: options.DtypeOption = choices.Dtype.auto,
    quantize: options.Quantize = None,
    revision: options.Revision = None,
    rungs: options.Rungs = None,
    server: Server | None = None,
    max_new_tokens: options.MaxNewTokens = 32,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Ask about an image with few visual tokens, or compare the answers at every scale."""
    from m3score.data.questions import Question, check_question
    from m3score.images.sandbox import open_visual
    from m3score.images.video import Frames
    from m3score.scoring.scorers.model_stream import check_frames

    if every and tokens is not None:
        raise M3ScoreError("--tokens and --all exclude each other.")
    if not every and (answer or metric or as_json):
        raise M3ScoreError("--answer, --metric and --json need --all.")
    if metric and not answer:
        raise M3ScoreError("--metric needs --answer.")
    question, answer = as_utf8(question), [*map(as_utf8, answer or ())]
    check_question(Question(question))
    console = set_up(quiet=quiet, verbose=verbose)
    opened = open_visual(image, frames)
    answerer = load_answerer(
        model, server, device=device, dtype=dtype, quantize=quantize, revision=revision, rungs=rungs,
        console=console,
    )  # fmt: skip
    if tokens is not None and tokens not in answerer.ladder:
        scales = ", ".join(map(str, answerer.ladder))
        raise M3ScoreError(f"--tokens {tokens} is no scale of {model}; it has {scales}.")
    if isinstance(opened, Frames):
        check_frames(frames, answerer, tokens)
    encode = getattr(answerer, "encode", None)  # a model that can look once, and answer often
    looked: Any = encode(opened) if encode else opened
    if not every:
        typer.echo(answerer.answer(looked, question, tokens, max_new_tokens=max_new_tokens))
        return
    from m3score.scoring.traces import trace

    references = [[answer]] if answer else None
    rows = trace(
        answerer, [looked], [[question]], references, metric, ids=[image], max_new_tokens=max_new_tokens
    )
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row.to_dict(), ensure_ascii=False))
    else:
        _show(rows, answer, "Tokens/grid" if encode else "Budget")


def _show(rows: Sequence[TraceRow], references: Sequence[str], scale: str) -> None:
    """A column per scale, finest first; a tick where the answer is right (or that of the finest scale)."""
    from rich.console import Console
    from rich.table import Table

    finest_first = sorted(rows, key=lambda row: -row.tokens)
    table = Table(
        title=plain(finest_first[0].question), title_justify="left", title_style="bold", show_lines=True
    )
    table.add_column(scale, style="dim", no_wrap=True)
    for row in finest_first:
        table.add_column(str(row.tokens), justify="center", overflow="fold", ratio=1)
    for label, cell in _lines(finest_first, references).items():
        table.add_row(label, *map(cell, finest_first))
    Console(highlight=False).print(table)


def _lines(rows: Sequence[TraceRow], references: Sequence[str]) -> dict[str, Any]:
    judged = f"Right: {' | '.join(references)}" if references else f"As with {rows[0].tokens}"
    return {
        "Answer": lambda row: plain(row.answer) or "[dim](nothing)[/]",
        plain(judged): lambda row: _tick(row.correct if references else row.consistent),
        "Agreement": lambda row: f"{row.agreement:.2f}",
        "Visual tokens": lambda row: f"{row.visual_tokens:,}",
    }


def _tick(right: bool | None) -> str:
    return "[bold green]✓[/]" if right else "[bold red]✗[/]"
