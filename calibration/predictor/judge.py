"""How well a router does on labels that it never saw, always beside what it has to beat.

Baselines at equal mean tokens: every fixed scale, the best random mixing of scales, a regressor that sees
the image's size alone. Ceiling: the oracle (the fewest tokens that are right, whatever finer scales say).
Knows predictions and labels; fits nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from m3score.calibration.predictor.labels import Labels
from m3score.common.statistics import spearman
from m3score.routing.promises import frontier
from m3score.routing.promises.certify import route_levels
from m3score.routing.promises.frontier import Curve
from m3score.routing.regression.prices import levels

FIXED, MIXING, ORACLE, SIZE = "fixed scales", "random mixing", "oracle", "size alone"
STAYS = "required tokens"
WEAK = 0.2
"""Accuracy of the finest scale below which "accuracy kept", a share of it, misleads."""
RANKED = 10
"""Solved questions below which a rank correlation says nothing."""
FORMS = ("image only", "image and question")
_DRAWS = 1000
"""Bootstrap draws of images for intervals."""


@dataclass(frozen=True)
class Point:
    """A router at one margin: what it costs and keeps on a test set. Shares are of the questions."""

    name: str
    margin: float | None
    """Added to predictions, in ln(tokens); None where a price routes instead."""
    mean_tokens: float
    saved: float
    """Share of the finest scale's visual tokens that is not spent."""
    accuracy: float
    change: float
    """Accuracy minus that of always the finest scale."""
    interval: tuple[float, float]
    """95 % of `change`, by drawing images anew (bootstrap)."""
    regret: float
    """Share that the finest scale answers and the routed one does not."""
    mixing: float
    """Accuracy of the best random mixing of scales at the same mean tokens."""
    size: float | None
    """Accuracy of the regressor on the image's size alone at the same mean tokens."""
    oracle: float
    """Accuracy of the oracle at the same mean tokens."""
    gap_closed: float | None
    """(accuracy - mixing) / (oracle - mixing); None where mixing is as good as the oracle."""
    promised: bool | None
    """For a certified margin: whether the test set's regret keeps the promise; None for other margins."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class RouterEvaluation:
    """One form of a router on one test set."""

    form: str
    spearman: float
    """Rank correlation of predictions and required tokens, over the solved questions; NaN if undefined."""
    mean_accuracy: float
    """Mean accuracy over the frontier, the mean taken over ln(tokens)."""
    least_lead: float
    """Over the frontier's points, the least accuracy in excess of random mixing at equal tokens."""
    mean_lead: float
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        rank = None if math.isnan(self.spearman) else self.spearman
        return {**asdict(self), "spearman": rank, "points": [point.to_dict() for point in self.points]}


@dataclass(frozen=True)
class Verdict:
    """Everything that is said about one test set."""

    name: str
    images: int
    questions: int
    solved: float
    """Share of the questions that some scale answers, finer ones included (rule "stays")."""
    by_truth: float
    """Share of the questions judged by a ground truth, not by consistency with the finest scale."""
    non_monotone: float
    """Share of the questions that are answered at some scale and not at a finer one."""
    fixed: dict[int, float]
    """Accuracy of each fixed scale."""
    oracle: tuple[float, float]
    """Mean tokens and accuracy of the ceiling: the first right scale, the coarsest for the unsolved."""
    stays: tuple[float, float]
    """The same of required tokens, which also have to hold at every finer scale: no ceiling."""
    forms: tuple[RouterEvaluation, ...]
    curves: dict[str, Curve]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, without the curves."""
        fields = {name: value for name, value in self.__dict__.items() if name not in ("forms", "curves")}
        return {
            **fields,
            "oracle": list(self.oracle),
            "stays": list(self.stays),
            "forms": [form.to_dict() for form in self.forms],
        }

    def weakness(self, model: str) -> str | None:
        """A sentence where the model answers so little that shares of it say nothing."""
        if not self.weak:
            return None
        finest = max(self.fixed)
        return (
            f"{model} answers {self.fixed[finest]:.1%} of the questions at {finest} tokens: too few for a "
            "router to keep much. See whether questions, answers and metric fit the model before using it."
        )

    @property
    def weak(self) -> bool:
        """Whether the finest scale answers less than WEAK."""
        return self.fixed[max(self.fixed)] < WEAK

    def marks(self) -> dict[str, tuple[float, float]]:
        """Certified points of the last form, for the picture."""
        return {
            point.name: (point.mean_tokens, point.accuracy)
            for point in self.forms[-1].points
            if point.promised is not None
        }


def judge(
    name: str,
    labels: Labels,
    predictions: Mapping[str, np.ndarray],
    margins: Mapping[str, Sequence[tuple[str, float, float | None]]],
    utility: Mapping[str, np.ndarray],
    size: np.ndarray | None = None,
    budgets: Mapping[str, Sequence[tuple[str, float]]] | None = None,
) -> Verdict:
    """Judge a router's forms on a test set.

    Args:
        name: of the test set.
        labels: of the test set.
        predictions: ln(tokens) of each form in FORMS.
        margins: of each form: (name, margin, the max_drop that is promised there or None).
        utility: of each form, (m, scales) as Predictor.utility gives it: it makes the form's frontier, by
            price. The frontier by margin is kept beside it.
        size: the size-alone regressor's predictions, where there is one.
        budgets: of each form, (name, price) of routes by price.
    """
    sufficient, ladder, spent = labels.sufficient, labels.ladder, labels.exact()
    curves = {
        FIXED: frontier.fixed_scales(sufficient, ladder, spent),
        MIXING: frontier.mixing(sufficient, ladder, spent),
        ORACLE: frontier.ceiling(sufficient, ladder, spent),
        STAYS: frontier.stays(sufficient, ladder, spent),
    }
    if size is not None:
        curves[SIZE] = frontier.routed(size, sufficient, ladder, spent=spent)
    target, unsolved = labels.targets()
    forms = []
    for form, predicted in predictions.items():
        curve = curves[form] = frontier.priced(utility[form], sufficient, ladder, spent)
        curves[f"{form}, by margin"] = frontier.routed(predicted, sufficient, ladder, spent=spent)
        least, mean = frontier.lead(curve, curves[MIXING])
        forms.append(
            RouterEvaluation(
                form=form,
                spearman=float(spearman(predicted[~unsolved], target[~unsolved], RANKED)),
                mean_accuracy=curve.log_mean(*labels.ends()),
                least_lead=least,
                mean_lead=mean,
                points=(
                    *(_by_margin(labels, predicted, curves, *margin) for margin in margins[form]),
                    *(
                        _point(labels, levels(utility[form], price, ladder, spent), curves, called)
                        for called, price in (budgets or {}).get(form, ())
                    ),
                ),
            )
        )
    accuracy = sufficient.mean(axis=0)
    return Verdict(
        name=name,
        images=len(set(labels.keys)),
        questions=len(labels),
        solved=float(1 - unsolved.mean()),
        by_truth=float(labels.by_truth.mean()),
        non_monotone=float((sufficient[:, :-1] & ~sufficient[:, 1:]).any(axis=1).mean()),
        fixed={tokens: float(value) for tokens, value in zip(ladder, accuracy, strict=True)},
        oracle=(float(curves[ORACLE].tokens[-1]), float(curves[ORACLE].accuracy[-1])),
        stays=(float(curves[STAYS].tokens[-1]), float(curves[STAYS].accuracy[-1])),
        forms=tuple(forms),
        curves=curves,
    )


def _by_margin(
    labels: Labels,
    predicted: np.ndarray,
    curves: Mapping[str, Curve],
    name: str,
    margin: float,
    max_drop: float | None,
) -> Point:
    levels = route_levels(predicted, margin, labels.ladder)
    return _point(labels, levels, curves, name, float(margin), max_drop)


def _point(
    labels: Labels,
    levels: np.ndarray,
    curves: Mapping[str, Curve],
    name: str,
    margin: float | None = None,
    max_drop: float | None = None,
) -> Point:
    sufficient, ladder, spent = labels.sufficient, labels.ladder, labels.exact()
    tokens, accuracy = frontier.outcome(levels, sufficient, ladder, spent)
    right = sufficient[np.arange(len(levels)), levels]
    regret = float((sufficient[:, -1] & ~right).mean())
    change = right.astype(float) - sufficient[:, -1]
    return Point(
        name=name,
        margin=margin,
        mean_tokens=tokens,
        saved=1 - tokens / labels.ends()[1],
        accuracy=accuracy,
        change=float(change.mean()),
        interval=bootstrap(change, labels.keys),
        regret=regret,
        mixing=float(curves[MIXING].at(tokens)),
        size=float(curves[SIZE].at(tokens)) if SIZE in curves else None,
        oracle=float(curves[ORACLE].at(tokens)),
        gap_closed=frontier.gap_closed(tokens, accuracy, curves[MIXING], curves[ORACLE]),
        promised=None if max_drop is None else regret <= max_drop,
    )


def bootstrap(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over rows of which those of one group (image) hang together."""
    _, which = np.unique(groups.astype(str), return_inverse=True)
    sums, counts = np.bincount(which, weights=values), np.bincount(which)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
