"""The files of a frontier: its numbers as csv, and the picture (matplotlib, the extra `plot`).

The curves themselves are made in m3score.routing.promises.frontier.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m3score.common.errors import MissingExtraError
from m3score.routing.promises.frontier import Curve
from m3score.tables.io import write_whole


def write_csv(curves: Mapping[str, Curve], path: Path) -> None:
    """All curves as rows of: curve, mean_tokens, accuracy, accuracy_kept (of the finest scale's)."""
    whole = _finest(curves)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")  # names of curves may hold commas
    table.writerow(["curve", "mean_tokens", "accuracy", "accuracy_kept"])
    for name, curve in curves.items():
        for tokens, accuracy in zip(curve.tokens, curve.accuracy, strict=True):
            table.writerow([name, f"{tokens:.4f}", f"{accuracy:.6f}", f"{accuracy / whole:.6f}"])
    write_whole(path, lines.getvalue().encode())


def _finest(curves: Mapping[str, Curve]) -> float:
    """Accuracy at the finest scale: that of the curve of fixed scales, else the dearest point of any."""
    curve = curves.get("fixed scales") or max(curves.values(), key=lambda one: one.tokens[-1])
    return float(curve.accuracy[-1]) or 1.0


_STYLES = {
    "oracle": {"color": "0.55", "linestyle": ":"},
    "required tokens": {"color": "0.7", "linewidth": 0.8, "linestyle": ":"},
    "random mixing": {"color": "0.35", "linestyle": "--"},
    "size alone": {"color": "tab:olive", "linewidth": 1.2},
    "image only": {"color": "tab:blue", "linewidth": 2},
    "image and question": {"color": "tab:red", "linewidth": 2},
    "image only, by margin": {"color": "tab:blue", "linewidth": 0.8, "linestyle": "-."},
    "image and question, by margin": {"color": "tab:red", "linewidth": 0.8, "linestyle": "-."},
}
_FINE = 240
"""Points along a straight line in tokens, which is a curve on a log axis."""


def write_png(
    curves: Mapping[str, Curve],
    path: Path,
    title: str,
    marks: Mapping[str, tuple[float, float]] | None = None,
    *,
    kept: bool = True,
) -> None:
    """Accuracy kept (% of the finest scale's) against mean tokens, on a log axis.

    Args:
        curves: by name; "fixed scales" is drawn as points.
        path: of the PNG.
        title: above the picture.
        marks: operating points by name: (mean tokens, accuracy).
        kept: as a share of the finest scale's; else plain accuracy, as where that is close to nothing.

    Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("The picture of the frontier", "plot") from None
    whole = _finest(curves) if kept else 1.0
    figure = Figure(figsize=(7.2, 4.8), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, curve in curves.items():
        if name == "fixed scales":
            axes.plot(curve.tokens, 100 * curve.accuracy / whole, "ks", ms=5, label=name, zorder=4)
            continue
        fine = np.geomspace(curve.tokens[0], curve.tokens[-1], _FINE)
        tokens = np.unique(np.concatenate([fine, curve.tokens]))
        axes.plot(tokens, 100 * curve.at(tokens) / whole, label=name, **_STYLES.get(name, {}))  # type: ignore[arg-type]
    for k, (name, (tokens_spent, accuracy)) in enumerate(sorted((marks or {}).items(), key=lambda m: m[1])):
        axes.plot([tokens_spent], [100 * accuracy / whole], "o", ms=7, mfc="none", mec="black", zorder=5)
        axes.annotate(
            name,
            (tokens_spent, 100 * accuracy / whole),
            xytext=(0, 10 if k % 2 else -16),  # above and below by turns: they may lie close
            textcoords="offset points",
            horizontalalignment="center",
            fontsize=8,
        )
    axes.set_xscale("log", subs=[])
    if "fixed scales" in curves:
        ticks = curves["fixed scales"].tokens
        axes.set_xticks(ticks, [f"{tokens:g}" for tokens in ticks])
    axes.minorticks_off()
    axes.set_xlabel("mean visual tokens per grid (log axis)")
    axes.set_ylabel("accuracy kept, % of the finest scale's" if kept else "accuracy, %")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best", framealpha=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
