"""Benchmark results as a plot of score against tokens, beside the M3 paper's figures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3score.calibration.benchmarks.results import BenchmarkResult
from m3score.calibration.benchmarks.scoreboard import UNSOLVED_WORDS, headline, published
from m3score.common.errors import MissingExtraError
from m3score.tables.io import write_whole


def write_png(results: Sequence[BenchmarkResult], path: Path) -> None:
    """Plot score against tokens on a log axis, with its interval and the oracle: one panel per task.

    Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("The picture of accuracy against tokens", "plot") from None
    across = min(4, len(results))
    down = math.ceil(len(results) / across)
    size = (max(5.2, 3.9 * across), 3.9 * down)
    drawing = Figure(figsize=size, dpi=140, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(down, across, squeeze=False).ravel()
    for axes, result in zip(panels, results, strict=False):
        _panel(axes, result)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def _panel(axes: Any, result: BenchmarkResult) -> None:
    scores = [result.score(tokens) for tokens in result.ladder]
    axes.fill_between(
        result.ladder, [100 * s.low for s in scores], [100 * s.high for s in scores], alpha=0.18, lw=0
    )
    axes.plot(result.ladder, [100 * s.value for s in scores], "o-", ms=5, label=result.model)
    for unsolved, marker in (("one", "*"), ("finest", "P")):
        mean = result.get("mean tokens", rule="first", unsolved=unsolved).value
        oracle = 100 * result.get("oracle", rule="first", unsolved=unsolved).value
        label = f"oracle, {UNSOLVED_WORDS[unsolved].format(finest=result.ladder[-1])}"
        axes.plot([mean], [oracle], marker, ms=11, color="tab:red", label=label)
    paper = published(result)
    if paper:
        theirs = {t: v for t, v in paper.accuracy.items() if t in result.ladder}
        axes.plot(
            list(theirs), list(theirs.values()), "s--", ms=4, color="0.5", label=f"{paper.title} (paper)"
        )
        if paper.oracle_accuracy is not None:
            axes.plot([paper.oracle_tokens], [paper.oracle_accuracy], "*", ms=11, color="0.5")
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), max(high, 5.0))
    axes.set_xscale("log", subs=[])
    axes.set_xticks(result.ladder, [str(tokens) for tokens in result.ladder])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens per grid")
    axes.set_ylabel(f"{headline(result)}, %")
    axes.set_title(result.task.title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="best", framealpha=0.6)
