"""The plot of a comparison: one panel per pair of tables, and one per table against the ratings."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

from m3score.analysis.compare import ALL, Comparison, Pair
from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.common.files import printable

SUFFIXES = (".png", ".svg", ".pdf")
MOST_PANELS = 12
MOST_POINTS = 3_000
"""With more images a panel shows their density instead of points."""


def check_plot(path: str | os.PathLike[str]) -> None:
    """M3ScoreError if the plot can't be drawn: a wrong suffix, or no matplotlib."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise M3ScoreError(f"{printable(str(path))}: a plot's name ends in {', '.join(SUFFIXES)}.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("The plot", "plot") from None


def draw_comparison(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw it to a file (.png, .svg, .pdf).

    Raises MissingExtraError without matplotlib, M3ScoreError for another suffix or a place
    that cannot be written to.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from m3score.tables.io import write_whole

    panels = [*(pair for pair in comparison.rated if pair.category == ALL), *comparison.pairs][:MOST_PANELS]
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(4.4 * across, 4.2 * down), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    for index, pair in enumerate(panels, start=1):
        _panel(figure.add_subplot(down, across, index), comparison, pair)
    buffer = io.BytesIO()
    kind = Path(path).suffix.lower()[1:]
    figure.savefig(buffer, format=kind, metadata={"Software": None} if kind == "png" else {"Creator": None})
    write_whole(path, buffer.getvalue())


def _panel(axes: Any, comparison: Comparison, pair: Pair) -> None:
    table = comparison.table
    if pair.second == "rating" and comparison.ratings is not None:  # a point for each category of an image
        table = table[["path", pair.first]].merge(comparison.ratings, on="path")
    both = table.dropna(subset=[pair.first, pair.second])
    if len(both) > MOST_POINTS:
        axes.hexbin(both[pair.first], both[pair.second], gridsize=45, bins="log", mincnt=1, cmap="viridis")
    elif pair.second == "rating" and both["category"].nunique() > 1:
        for category, group in both.groupby("category"):
            axes.plot(group[pair.first], group["rating"], "o", ms=3, alpha=0.6, label=_text(category))
        axes.legend(fontsize=7, framealpha=0.6)
    else:
        axes.plot(both[pair.first], both[pair.second], "o", ms=3, alpha=0.5)
    comparable = pair.second != "rating" and not comparison.unlike
    if comparable and len(both) and _alike(axes.get_xlim(), axes.get_ylim()):
        limits = axes.get_xlim(), axes.get_ylim()
        axes.axline((0, 0), slope=1, color="0.6", lw=1, zorder=0)  # where both scores are equal
        axes.set_xlim(limits[0])
        axes.set_ylim(limits[1])
    axes.set_xlabel(f"{comparison.by}: {_text(comparison.label(pair.first))}")
    axes.set_ylabel(
        "rating" if pair.second == "rating" else f"{comparison.by}: {_text(comparison.label(pair.second))}"
    )
    axes.set_title(f"Spearman {_spearman(comparison, pair)}, {pair.images:,} images", fontsize=10)
    axes.grid(alpha=0.25)


def _spearman(comparison: Comparison, pair: Pair) -> str:
    """A panel's correlation. With ratings, the mean over categories: ratings compare only within one."""
    within = [
        one.spearman.value
        for one in comparison.rated
        if (one.first, one.second) == (pair.first, pair.second) and one.category != ALL
    ]
    values = [value for value in within or [pair.spearman.value] if value is not None]
    mean = f"{sum(values) / len(values):.2f}" if values else "undefined"
    return f"{mean} within categories" if within else mean


def _text(name: object) -> str:
    """A name, escaped so that matplotlib reads no formula."""
    return str(name).replace("$", r"\$")


def _alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges overlap by half, so that both axes can be compared."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return shared > 0.5 * max(one[1] - one[0], other[1] - other[0])
