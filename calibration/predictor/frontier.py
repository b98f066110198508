"""Accuracy kept against mean visual tokens: routers, fixed scales, random mixing of scales, and the oracle.

Numbers first (points, csv), then the picture (matplotlib, the extra `plot`). Knows no models, images or
regressors: a router is a number per question, and `sufficient` says at which scales a question is answered.

Random mixing answers each question at a scale drawn by lot. Every mean number of tokens between two scales is
such a mix, and the best mixes lie on the upper concave hull of the fixed scales: that hull is what a router
has to beat, not the fixed scales alone.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3score.common.errors import MissingExtraError
from m3score.routing.certify import route_levels
from m3score.routing.prices import levels
from m3score.scoring.rules import required_tokens
from m3score.tables.io import write_whole

POINTS = 400
"""Margins that a router's frontier is made of: at quantiles of where its routes change."""


@dataclass(frozen=True)
class Curve:
    """Accuracy at every mean number of tokens: straight between its points, a mix of the two neighbours."""

    tokens: np.ndarray
    """(k,) mean visual tokens per grid, ascending."""
    accuracy: np.ndarray
    """(k,) share of the questions that are answered."""

    def at(self, tokens: float | np.ndarray) -> np.ndarray:
        """Accuracy at mean token numbers; beyond its ends that of the ends."""
        return np.interp(tokens, self.tokens, self.accuracy)

    def tokens_for(self, accuracy: float) -> float:
        """The fewest mean tokens with at least this accuracy; NaN if the curve never gets there."""
        reached = np.flatnonzero(self.accuracy >= accuracy - 1e-12)
        if not len(reached):
            return math.nan
        i = int(reached[0])
        if i == 0:
            return float(self.tokens[0])
        (x0, x1), (y0, y1) = self.tokens[i - 1 : i + 1], self.accuracy[i - 1 : i + 1]
        return float(x0 + (x1 - x0) * min(1.0, max(0.0, (accuracy - y0) / (y1 - y0))))

    def log_mean(self, coarsest: float, finest: float) -> float:
        """Mean accuracy over the logarithm of the tokens between two scales: a frontier as one number."""
        if finest <= coarsest:
            return float(self.at(finest))
        logs = np.linspace(math.log(coarsest), math.log(finest), 257)
        return float(np.mean(self.at(np.exp(logs))))


def upper_hull(tokens: Sequence[float] | np.ndarray, accuracy: Sequence[float] | np.ndarray) -> Curve:
    """The best that mixing points at random gives for at most so many tokens: concave, never falling."""
    hull: list[tuple[float, float]] = []
    for point in sorted(zip(map(float, tokens), map(float, accuracy), strict=True)):
        if hull and point[1] <= hull[-1][1]:
            continue  # dearer and no better: spend less instead
        if hull and point[0] == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return Curve(np.array([x for x, _ in hull]), np.array([y for _, y in hull]))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def fixed_scales(sufficient: np.ndarray, ladder: Sequence[int]) -> Curve:
    """Every question at one scale. `sufficient` is (n, scales), coarsest first."""
    return Curve(np.array(ladder, float), np.asarray(sufficient, float).mean(axis=0))


def mixing(sufficient: np.ndarray, ladder: Sequence[int]) -> Curve:
    """The best random mixes of fixed scales."""
    fixed = fixed_scales(sufficient, ladder)
    return upper_hull(fixed.tokens, fixed.accuracy)


def oracle(sufficient: np.ndarray, ladder: Sequence[int], rule: str = "stays") -> Curve:
    """The ceiling: who knows the required tokens of every question, and spends them where they cost least.

    All questions begin at the coarsest scale, and are raised to their required tokens, the cheapest first.
    Those that no scale solves stay where they are: they are lost at any price.
    """
    right = np.asarray(sufficient, bool)
    needed = np.array([required_tokens(list(row), ladder, rule) or ladder[0] for row in right], float)
    gain = right[np.arange(len(right)), np.searchsorted(ladder, needed)].astype(float) - right[:, 0]
    order = np.argsort(needed, kind="stable")
    tokens = ladder[0] + np.concatenate([[0.0], np.cumsum(needed[order] - ladder[0])]) / len(right)
    accuracy = right[:, 0].mean() + np.concatenate([[0.0], np.cumsum(gain[order])]) / len(right)
    return upper_hull(tokens, accuracy)


def routed(predictions: np.ndarray, sufficient: np.ndarray, ladder: Sequence[int]) -> Curve:
    """A router's frontier: every margin that makes a difference, or POINTS of them.

    Args:
        predictions: (n,) ln of the tokens that each question is thought to need.
        sufficient: (n, scales) bool.
    """
    logs = np.log(np.asarray(ladder, float))
    predicted = np.asarray(predictions, float)
    changes = np.unique((logs[:-1, None] - predicted[None, :]).ravel())  # above it the next scale is taken
    if len(changes) > POINTS:
        changes = np.quantile(changes, np.linspace(0, 1, POINTS))
    margins = [changes[0] - 1.0, *(changes + 1e-5), changes[-1] + 1.0] if len(changes) else [0.0]
    points = [outcome(route_levels(predicted, margin, ladder), sufficient, ladder) for margin in margins]
    return Curve(np.array([tokens for tokens, _ in points]), np.array([right for _, right in points]))


def priced(worth: np.ndarray, sufficient: np.ndarray, ladder: Sequence[int]) -> Curve:
    """A router's frontier when tokens have a price (prices.py): every price, from none to too much.

    It ends where tokens are free, which need not be the finest scale: nobody spends what buys nothing.

    Args:
        worth: (n, scales) what each scale is worth to each question, as prices.levels takes it.
        sufficient: (n, scales) bool.
    """
    prices = [0.0, *np.geomspace(1e-4, 1e4, POINTS), 1e6]
    chosen = (levels(worth, price, ladder) for price in reversed(prices))
    points = list(dict.fromkeys(outcome(level, sufficient, ladder) for level in chosen))
    return Curve(np.array([tokens for tokens, _ in points]), np.array([right for _, right in points]))


def outcome(scales: np.ndarray, sufficient: np.ndarray, ladder: Sequence[int]) -> tuple[float, float]:
    """Mean tokens per grid and accuracy of the scales (indices) that were chosen."""
    rows = np.arange(len(scales))
    return float(np.asarray(ladder, float)[scales].mean()), float(sufficient[rows, scales].mean())


def lead(router: Curve, baseline: Curve) -> tuple[float, float]:
    """The least and the mean lead of a router over a baseline at equal tokens, over the router's points."""
    ahead = router.accuracy - baseline.at(router.tokens)
    return float(ahead.min()), float(ahead.mean())


def gap_closed(tokens: float, accuracy: float, baseline: Curve, ceiling: Curve) -> float | None:
    """Share of the gap between baseline and ceiling, at these tokens, that is closed; None where none is."""
    low, high = float(baseline.at(tokens)), float(ceiling.at(tokens))
    return (accuracy - low) / (high - low) if high - low > 1e-9 else None


# ---- files --------------------------------------------------------------------------------------------


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
) -> None:
    """Accuracy kept (% of the finest scale's) against mean tokens, on a log axis.

    Args:
        curves: by name; "fixed scales" is drawn as points.
        path: of the PNG.
        title: above the picture.
        marks: operating points by name: (mean tokens, accuracy).

    Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("The picture of the frontier", "plot") from None
    whole = _finest(curves)
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
    axes.set_ylabel("accuracy kept, % of the finest scale's")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best", framealpha=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
