"""The m3score command: which commands there are, and what becomes of errors.

A command's module is imported when the command is used: `m3score --help` needs none of them.
"""

from __future__ import annotations

import errno
import io
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from m3score.cli.console import CANNOT_WRITE, USAGE, say_error
from m3score.common.errors import M3ScoreError, OutputError

COMMANDS = {
    "rank": "Rank images by complexity, most complex first: by how many visual tokens each needs",
    "predict": "Predict the scale for each image",
    "plan": "Say what a big run would take",
    "select": "Choose images by their scores: list them, copy them or link to them",
    "compare": "Compare score tables",
    "report": "Make a page of a score table",
    "rescore": "Score the answers in a trace table again under other rules",
    "ask": "Ask about an image with few visual tokens, or compare the answers at every scale",
    "evaluate": "Measure a model on benchmarks: accuracy at every scale",
    "calibrate": "Calibrate a predictor on your own traffic",
    "check-predictor": "Has the traffic drifted away from what the predictor was calibrated on?",
    "train": "Train an M3",
    "demo": "Try a model in the browser",
    "info": "Show versions, devices, bundled models, cache and environment",
}
"""Name and first words of every command. The function of the same name in the module of the same name in
cli/commands is the command, its docstring (which begins with these words) the help, EPILOG the examples."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for an output."""


ASCII = ("ascii", "ansi_x3.4-1968", "us-ascii")


class _Group(TyperGroup):
    """Loads commands when they are asked for. Turns the errors that users can mend into one line on stderr
    and exit code 2, or 4 where a disk is full."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{meant}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = load_command(cmd_name)
        return self.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        loaded = self.commands
        listed = {
            name: TyperCommand(name, help=text, rich_markup_mode="rich") for name, text in COMMANDS.items()
        }
        self.commands = {**listed, **loaded}
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = loaded

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except M3ScoreError as error:
            say_error(str(error))
            raise typer.Exit(CANNOT_WRITE if isinstance(error, OutputError) else USAGE) from None


class _Command(TyperCommand):
    """A command whose help names the scorers of installed packages too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for param in self.params:
            if param.name == "scorer":
                from m3score.scoring.registry import scorer_names

                param.metavar = f"<{'|'.join(scorer_names())}>"
        super().format_help(ctx, formatter)


def load_command(name: str) -> Any:
    """The click command of this name, one of COMMANDS."""
    module = import_module(f"m3score.cli.commands.{name.replace('-', '_')}")
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command(name, cls=_Command, epilog=module.EPILOG)(getattr(module, name.replace("-", "_")))
    return get_command(alone)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Example: [bold]m3score rank photos/ --out scores.csv[/]. Every command's --help has more.\n\n"
    "Exit codes: 0 fine, 2 wrong usage, 3 some inputs failed (their rows say why), 4 an output can't be "
    "written, as on a full disk (what was done is kept), 130 interrupted (what was done is kept).",
)


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
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() in ASCII:
        sys.stdout.reconfigure(encoding="utf-8")  # as tables are, whatever the locale
    try:
        app(prog_name="m3score")
    except OSError as error:
        if error.errno not in FULL:
            raise
        from m3score.tables.io import drop_stdout

        drop_stdout()
        say_error(f"cannot write{f' {error.filename}' if error.filename else ''} ({error.strerror}).")
        sys.exit(CANNOT_WRITE)
