"""What every command says on stderr, and how: messages, logging, models, checks of output files."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from typing import Literal

USAGE = 2
"""Exit code: the command was not understood, or nothing could be done."""
SOME_FAILED = 3
"""Exit code: rows were written, but some inputs failed."""
CANNOT_WRITE = 4
"""Exit code: an output can't be written, as when the disk is full; what was done before is kept."""
INTERRUPTED = 130
"""Exit code: stopped by Ctrl-C or SIGTERM; what was done is kept."""


def stderr(*, quiet: bool = False) -> Console:
    """A console on stderr. Made anew for each use: tests and callers may swap sys.stderr."""
    return Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=not sys.stderr.isatty())


def say_error(message: str) -> None:
    """One error on stderr, --quiet or not."""
    stderr().print(f"[bold red]error:[/] {plain(message)}")


def plain(text: object) -> str:
    """Text from outside (file names, answers) for a console: no markup, no control characters."""
    return escape("".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text)))


def set_up(*, quiet: bool, verbose: int) -> Console:
    """Logging and warnings as -q and -v ask, and the console for everything else that is said."""
    from rich.logging import RichHandler

    console = stderr(quiet=quiet)
    level = logging.ERROR if quiet else [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    handler = RichHandler(console=stderr(), show_path=False, show_time=verbose > 0, rich_tracebacks=False)
    logger = logging.getLogger("m3score")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
    return console


def load(
    name: str,
    *,
    device: str,
    dtype: str,
    quantize: str | None,
    revision: str | None,
    rungs: str | None = None,
    console: Console,
) -> Any:
    """load_model, with a sign of life on stderr."""
    from m3score.models.budgets.base import parse_rungs

    told = {} if rungs is None else {"rungs": parse_rungs(rungs)}
    with console.status(f"Loading {name} ..."):
        from transformers.utils import logging as transformers_logging

        from m3score.models.loading import load_model

        transformers_logging.disable_progress_bar()  # one bar per shard says less than the line above
        bits = cast('Literal["4bit", "8bit"] | None', quantize)  # load_model checks it
        return load_model(name, device=device, dtype=dtype, quantize=bits, revision=revision, **told)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM (batch schedulers, containers) stop the work as Ctrl-C does, keeping what was done."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
