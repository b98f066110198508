"""Tables of figures on a terminal: what m3score evaluate shows where its results go to no file."""

from __future__ import annotations

import re
import sys
from textwrap import fill
from typing import TYPE_CHECKING

import typer

from m3score.cli.console import plain

if TYPE_CHECKING:
    from rich.table import Table

    from m3score.calibration.benchmarks.judged import Judged
    from m3score.calibration.benchmarks.scoreboard import Grid

WIDE = 100
"""From so many columns on a table has room around its figures."""


def show(judged: list[Judged]) -> None:
    """Tables on a terminal, Markdown elsewhere."""
    from m3score.calibration.benchmarks import scoreboard

    if not sys.stdout.isatty():
        typer.echo(scoreboard.to_markdown(judged), nl=False)
        return
    from rich.console import Console

    screen = Console(highlight=False)
    grids = [scoreboard.overview(judged)] if len(judged) > 1 else []
    for one in judged:
        for grid in (*grids, *scoreboard.grids(one)):
            screen.print(table_of(grid, screen.width >= WIDE))
        grids = []
        for sentence in scoreboard.sentences(one):
            screen.print(f"  {plain(sentence)}")
        screen.print()


def table_of(grid: Grid, roomy: bool) -> Table:
    """Figures are never broken, headings between words only."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=plain(grid.title), title_justify="left", box=SIMPLE, padding=(0, 1) if roomy else 0)
    for i, column in enumerate(grid.header):
        heading = plain(_breakable(column))
        least = max(map(len, (*heading.split(), *(row[i] for row in grid.rows if i))))
        shown = heading if roomy else fill(heading, least)
        table.add_column(
            shown, justify="right" if i else "left", overflow="fold", min_width=least if i else None
        )
    for row in grid.rows:
        table.add_row(*map(plain, row))
    return table


def _breakable(heading: str) -> str:
    """With spaces where a narrow column may break it."""
    return re.sub(r"_|(?<=chance)-|-(?=\d)", " ", heading)
