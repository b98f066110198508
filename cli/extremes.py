"""The simplest and the most complex images of a run, as the last thing that m3score rank shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from m3score.cli.console import plain
from m3score.tables.schema import absent


def show_extremes(
    complex_first: Sequence[Mapping[str, Any]], simple_last: Sequence[Mapping[str, Any]], console: Console
) -> None:
    """Print paths with their complexity and tokens; no image twice, however few there are.

    Args:
        complex_first: rows of a score table, the most complex one first.
        simple_last: rows of the same table, the simplest one last.
        console: where to.
    """
    seen = {row["path"] for row in complex_first}
    others = [row for row in reversed(simple_last) if row["path"] not in seen]
    for title, rows in (("Most complex", complex_first), ("Simplest", others)):
        if rows:
            console.print(f"\n{title}")
            console.print(_table(rows))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", min_width=5, style="cyan")
    grid.add_column(justify="right", min_width=9, style="dim")
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(f"{row['complexity']:.3f}", _tokens(row), plain(row["path"]))
    return grid


def _tokens(row: Mapping[str, Any]) -> str:
    """What it needs, where that is known: a predictor knows its own guess only."""
    for column in ("required_tokens", "predicted_tokens"):
        if (value := row.get(column)) is not None and not absent(value):
            return f"{int(value)} token{'' if value == 1 else 's'}"
    return "unsolved" if row.get("solved") is False else ""
