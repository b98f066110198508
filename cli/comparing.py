"""m3score compare --scorers: score images with several scorers, or take the tables that are there already."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from m3score.cli import options
from m3score.cli.console import SOME_FAILED, plain
from m3score.common.errors import M3ScoreError

_SLOW = (options.Scorer.cat, options.Scorer.model)


def parse_scorers(text: str) -> list[options.Scorer]:
    """The names in a comma-separated list; M3ScoreError for one that is not known, or for none."""
    names = list(dict.fromkeys(filter(None, (name.strip() for name in text.split(",")))))
    allowed = [scorer.value for scorer in options.Scorer]
    if unknown := [name for name in names if name not in allowed]:
        raise M3ScoreError(f"--scorers: no scorer {unknown[0]!r}; there are {', '.join(allowed)}.")
    if not names:
        raise M3ScoreError(f"--scorers needs names out of {', '.join(allowed)}.")
    return [options.Scorer(name) for name in names]


@contextmanager
def tables_of(
    images: Sequence[str],
    scorers: Sequence[options.Scorer],
    keep: Path | None,
    console: Console,
    *,
    overwrite: bool = False,
    **how: Any,
) -> Iterator[list[Path]]:
    """One score table per scorer, named after it.

    Args:
        images: what m3score rank takes.
        keep: the folder for the tables; those that are there are taken as they are, and an unfinished one is
            gone on with. None: they are gone afterwards.
        console: says what is being done.
        overwrite: score everything anew.
        how: further options of m3score rank.

    Raises:
        M3ScoreError: see m3score rank.
        typer.Exit: interrupted; kept tables are gone on with next time.
    """
    with tempfile.TemporaryDirectory(prefix="m3score-") as scratch:
        folder = Path(scratch) if keep is None else keep
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise M3ScoreError(f"--keep {folder}: cannot make the folder ({error.strerror}).") from None
        told = {**how, "overwrite": overwrite}
        slow_last = sorted(
            scorers, key=lambda scorer: scorer in _SLOW
        )  # a mistake shows before hours of work
        made = {scorer: _table(images, scorer, folder, console, told) for scorer in slow_last}
        yield [made[scorer] for scorer in scorers]


def _table(
    images: Sequence[str], scorer: options.Scorer, folder: Path, console: Console, how: dict[str, Any]
) -> Path:
    from m3score.cli.commands.rank import rank
    from m3score.runs.journal import written_by_earlier_run

    out = folder / f"{scorer}.csv"
    if out.is_file() and not how["overwrite"] and not written_by_earlier_run(out, out):
        console.print(f"{scorer}: taken from {plain(out)}; --overwrite scores the images anew.")
        return out
    console.print(f"[bold]{scorer}[/]")
    try:
        rank(list(images), out=out, scorer=scorer, **how)
    except typer.Exit as stop:
        if stop.exit_code != SOME_FAILED:  # failed images are rows of the table
            raise
    return out
