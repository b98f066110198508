"""Tables of figures on a terminal: what m3score evaluate and m3score compare show."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from m3score.cli.console import plain

if TYPE_CHECKING:
    from m3score.analysis.compare import Comparison, Correlation, Pair
    from m3score.calibration.benchmarks.results import BenchmarkResult
    from m3score.calibration.benchmarks.scoreboard import TextTable

UNBROKEN = 10_000
"""Columns of what is no terminal: its lines are for other programs, and are broken nowhere."""
WIDE = 100
"""From so many columns on a table has room around its figures."""


def screen() -> Console:
    """A console on stdout. Made anew for each use, as console.stderr is."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else UNBROKEN)


def print_table(table: Table, on: Console) -> None:
    """Print a table with all that is in it: figures (columns on the right) in one piece, names folded."""
    for column in table.columns:
        words = str(column.header).split()
        column.overflow = "fold"
        if column.justify == "right":
            column.min_width = max((cell_len(str(cell)) for cell in (*words, *column.cells)), default=0)
    on.print(table, crop=False)


def show(judged: list[BenchmarkResult]) -> None:
    """Tables on a terminal, Markdown elsewhere."""
    from m3score.calibration.benchmarks import scoreboard

    if not sys.stdout.isatty():
        typer.echo(scoreboard.to_markdown(judged), nl=False)
        return
    on = screen()
    grids = [scoreboard.overview(judged)] if len(judged) > 1 else []
    for one in judged:
        for grid in (*grids, *scoreboard.grids(one)):
            on.print(table_of(grid, on.width >= WIDE))
        grids = []
        for sentence in scoreboard.sentences(one):
            on.print(f"  {plain(sentence)}")
        on.print()


def table_of(grid: TextTable, roomy: bool) -> Table:
    """Figures are never broken, headings between words only."""
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


# ---- m3score compare ------------------------------------------------------------------------------------


def show_comparison(found: Comparison, moved: int, confidence: float) -> None:
    """Correlations, what only one table has, and the images that moved most."""
    on = screen()
    if found.pairs:
        _correlations(f"Rank correlation of {found.by}", found.pairs, confidence, on)
    if found.rated:
        title = f"Rank correlation of {found.by} with the ratings"
        _correlations(title, found.rated, confidence, on)
        if len(found.names) > 1 and len({pair.category for pair in found.rated}) > 1:
            _side_by_side(f"{title}: Spearman, per category", found.rated, on)
    for name in found.names:
        if found.judged.get(name):
            on.print(f"{plain(name)} was judged by {plain(' and '.join(found.judged[name]))}.")
    if found.unlike:
        on.print(
            "What judged the tables differs, so their complexities and tokens are different quantities: "
            "compare ranks, not single values."
        )
    for name, count in found.unsolved.items():
        if count:
            on.print(
                f"Unsolved in {plain(name)}: {count:,}. The model does not know, but they rank as complex "
                "(m3score select leaves them out)."
            )
    for name, count in found.only.items():
        if count:
            on.print(f"Only in {plain(name)}: {count:,}.")
    for name, count in found.without.items():
        if count:
            on.print(f"Without a score in {plain(name)}: {count:,}.")
    if found.pairs and moved:
        _movers(found, moved, on)


def _correlations(title: str, pairs: Sequence[Pair], confidence: float, on: Console) -> None:
    from m3score.analysis.compare import ALL

    with_category = any(pair.category != ALL for pair in pairs)
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("", *(["category"] if with_category else [])):
        table.add_column(column, overflow="fold")
    for column in (
        "images",
        "Spearman",
        f"{confidence:.0%} interval",
        "Kendall",
        f"{confidence:.0%} interval",
    ):
        table.add_column(column, justify="right")
    for pair in pairs:
        name = pair.first if pair.second == "rating" else f"{pair.first} - {pair.second}"
        figures = [cell for one in (pair.spearman, pair.kendall) for cell in _cells(one)]
        label = [plain(name), *([plain(pair.category)] if with_category else [])]
        table.add_row(*label, f"{pair.images:,}", *figures)
        if with_category and pair.category == ALL:
            table.add_row(plain(name), "mean of categories", "", *_means(pairs, pair.first), end_section=True)
    print_table(table, on)


def _side_by_side(title: str, pairs: Sequence[Pair], on: Console) -> None:
    """Categories down, tables across: ratings are comparable within a category only, so no row for all."""
    from m3score.analysis.compare import ALL

    names = list(dict.fromkeys(pair.first for pair in pairs))
    categories = [category for category in dict.fromkeys(pair.category for pair in pairs) if category != ALL]
    found = {(pair.first, pair.category): pair.spearman.value for pair in pairs}
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(plain(name), justify="right", overflow="fold")
    for category in categories:
        values = [found.get((name, category)) for name in names]
        cells = ["-" if value is None else f"{value:.2f}" for value in values]
        table.add_row(plain(category), *cells, end_section=category == categories[-1])
    table.add_row("mean", *(_means(pairs, name)[0] for name in names))
    print_table(table, on)


def _means(pairs: Sequence[Pair], name: str) -> list[str]:
    from m3score.analysis.compare import ALL

    own = [pair for pair in pairs if pair.first == name and pair.category != ALL]
    cells = []
    for values in ([pair.spearman.value for pair in own], [pair.kendall.value for pair in own]):
        known = [value for value in values if value is not None]
        cells += [f"{sum(known) / len(known):.3f}" if known else "-", ""]
    return cells


def _cells(one: Correlation) -> tuple[str, str]:
    interval = "" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
    return "-" if one.value is None else f"{one.value:.3f}", interval


def _movers(found: Comparison, most: int, on: Console) -> None:
    rows = found.table[found.table["moved"].abs() > 0].head(most)
    if not len(rows):
        on.print("No image changed its rank.")
        return
    two = len(found.names) == 2
    table = Table(title="Moved most, by the share of images that are simpler", title_justify="left")
    table.add_column("path", overflow="fold")
    for name in found.names:
        table.add_column(plain(name), justify="right")
    table.add_column("moved" if two else "apart", justify="right")
    for row in rows.to_dict("records"):
        places: list[Any] = [f"{row[f'{name}_rank']:.0%}" for name in found.names]
        table.add_row(plain(row["path"]), *places, f"{row['moved']:+.0%}" if two else f"{row['moved']:.0%}")
    print_table(table, on)
