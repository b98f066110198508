"""The m3score command: which commands there are, and what becomes of errors."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m3score.cli import (
    ask,
    calibrate,
    check_predictor,
    compare,
    demo,
    evaluate,
    info,
    predict,
    rank,
    report,
    rescore,
    select,
    train,
)
from m3score.cli.console import USAGE, say_error
from m3score.errors import M3ScoreError


class _Group(TyperGroup):
    """Turns the errors that users can mend into one line on stderr and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except M3ScoreError as error:
            say_error(str(error))
            raise typer.Exit(USAGE) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Example: [bold]m3score rank photos/ --out scores.csv[/]. Every command's --help has more.\n\n"
    "Exit codes: 0 fine, 2 wrong usage, 3 some inputs failed (their rows say why), 130 interrupted "
    "(what was done is kept).",
)
app.command("rank", epilog=rank.EPILOG)(rank.rank)
app.command("predict", epilog=predict.EPILOG)(predict.predict)
app.command("select", epilog=select.EPILOG)(select.select)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("rescore", epilog=rescore.EPILOG)(rescore.rescore)
app.command("ask", epilog=ask.EPILOG)(ask.ask)
app.command("evaluate", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("calibrate", epilog=calibrate.EPILOG)(calibrate.calibrate)
app.command("check-predictor", epilog=check_predictor.EPILOG)(check_predictor.check_predictor)
app.command("train", epilog=train.EPILOG)(train.train)
app.command("demo", epilog=demo.EPILOG)(demo.demo)
app.command("info", epilog=info.EPILOG)(info.info)


def _show_version(wanted: bool) -> None:
    if wanted:
        import m3score

        typer.echo(f"m3score {m3score.__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """How complex is an image? The fewest visual tokens with which a Matryoshka multimodal model answers."""


def main() -> None:
    """Entry point of the `m3score` script."""
    app(prog_name="m3score")
