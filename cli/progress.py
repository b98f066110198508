"""How far a run has come: a bar with speed and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from m3score.cli.console import plain, sigterm_as_interrupt

if TYPE_CHECKING:
    from m3score.runs.engine import Outcome
    from m3score.runs.request import Request
    from m3score.scoring.base import Result

SECONDS_BETWEEN_LINES = 30.0


class _Pace(ProgressColumn):
    """Speed and time left, by the mean so far: results come in batches, so that any shorter window jumps."""

    def render(self, task: Task) -> Text:
        worked = task.completed - task.fields["skipped"]
        if not worked or not task.elapsed:
            return Text("")
        speed = worked / task.elapsed
        pace = speed_text(speed)
        if task.total:
            left = timedelta(seconds=round((task.total - task.completed) / speed))
            pace += f", {left} left"
        return Text(pace)


def speed_text(images_per_second: float) -> str:
    """A speed with two or three digits that matter."""
    digits = 0 if images_per_second >= 100 else 1 if images_per_second >= 10 else 2
    return f"{images_per_second:,.{digits}f} images/s"


@contextmanager
def progress(
    console: Console, count: Callable[[], int | None] | None, verb: str = "Ranking"
) -> Iterator[Callable[..., None]]:
    """Show the progress of a loop; call what this yields once per image.

    `worked=False` is for an image that was done before: it counts, but not for the speed.

    Args:
        console: where to show it.
        count: finds out how many there are, in a thread of its own, so that work can begin at once; None if
            there is no telling.
        verb: what is being done.
    """
    if console.quiet:
        yield lambda worked=True: None
    elif console.is_terminal:
        yield from _bar(console, count, verb)
    else:
        yield _lines(console)


def repeat(advance: Callable[[], None], times: int) -> None:
    """Call `advance` so many times: for what counts several images at once."""
    for _ in range(times):
        advance()


def _bar(
    console: Console, count: Callable[[], int | None] | None, verb: str
) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn(verb),
        BarColumn(bar_width=None if console.width < 80 else 40),
        MofNCompleteColumn(),
        _Pace(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, skipped=0)
        skipped = 0
        if count is not None:
            counter = threading.Thread(target=lambda: bar.update(task, total=count()), daemon=True)
            counter.start()

        def advance(worked: bool = True) -> None:
            nonlocal skipped
            skipped += not worked
            bar.update(task, advance=1, skipped=skipped)

        yield advance


def _lines(console: Console) -> Callable[..., None]:
    begun = said = time.monotonic()
    done = skipped = 0

    def advance(worked: bool = True) -> None:
        nonlocal done, skipped, said
        done += 1
        skipped += not worked
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            console.print(f"{done:,} images, {speed_text((done - skipped) / (now - begun))}")

    return advance


# ---- runs -----------------------------------------------------------------------------------------------


def carry_out(
    request: Request,
    console: Console,
    *,
    engine: str = "local",
    address: str | None = None,
    num_gpus: float | None = None,
) -> Outcome:
    """A run, with its progress shown; SIGTERM interrupts it as Ctrl-C does.

    Args:
        request: what is wanted.
        console: where to show it.
        engine, address, num_gpus: see executor_of.
    """
    from m3score.runs.engine import executor_of, run

    executor = executor_of(engine, address=address, num_gpus=num_gpus, workers=request.workers)
    with sigterm_as_interrupt(), executor:
        return run(request, executor, console_watcher(console))


def console_watcher(console: Console) -> Any:
    """A Watcher that shows a run on a console."""
    from m3score.runs.progress import Watcher

    class ConsoleWatcher(Watcher):
        def __init__(self) -> None:
            self._advance: Callable[..., None] = lambda worked=True: None

        def preparing(self, what: str) -> AbstractContextManager[Any]:
            return console.status(plain(what))

        @contextmanager
        def phase(self, name: str, count: Callable[[], int | None] | None) -> Iterator[None]:
            with progress(console, count, name) as self._advance:
                yield

        def advance(self, result: Result | None) -> None:
            self._advance(worked=result is not None)

        def say(self, text: str) -> None:
            console.print(plain(text))

    return ConsoleWatcher()
