"""What more tokens are worth to a question: the learnt gain of each step to the next finer scale.

Knows feature vectors, no images, files or prices. A step's gain is the chance that the finer scale suffices
less the chance that the coarser one does; steps are learnt as such, not as differences of learnt chances,
whose errors would add up where scales are almost equally good.

A gain that is only noise costs tokens and answers nothing: of two scales that are equally good on the whole,
who believes his estimates buys the finer one for the questions whose error is largest. So each step's gains
are shrunk towards their mean by the slope of what happened on what was foreseen, on questions that the fit
never saw (`shrunk`). Where nothing is known the slope is 0, all questions have the same gain, and routing by
price (prices.py) is the best random mixing of fixed scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.routing.regression.ensemble import Ensemble


@dataclass(frozen=True, eq=False)
class Gains:
    """A regressor per step of the ladder; M3ScoreError if they take different features or there are none."""

    steps: tuple[Ensemble, ...]
    """Of the step from each scale to the next finer one, coarsest first: features to gain."""

    def __post_init__(self) -> None:
        if len({step.n_features for step in self.steps}) != 1:
            raise M3ScoreError("gains need at least one step, and all of them the same features.")

    @property
    def n_features(self) -> int:
        """How many features a row has."""
        return self.steps[0].n_features

    def predict(self, X: np.ndarray) -> np.ndarray:
        """float32 (n, steps) in [-1, 1]; rows and errors are those of Ensemble.predict."""
        foreseen = np.column_stack([step.predict(X) for step in self.steps])
        return np.clip(foreseen, -1, 1).astype(np.float32)


def over_coarsest(gains: np.ndarray) -> np.ndarray:
    """float64 (n, scales): the chance that each scale suffices less that of the coarsest, from (n, steps)."""
    summed = np.cumsum(np.asarray(gains, dtype=np.float64), axis=1)
    return np.hstack([np.zeros((len(summed), 1)), summed])


def steps_of(sufficient: np.ndarray) -> np.ndarray:
    """float64 (n, steps) of -1, 0 and 1: what each step gained, from bool (n, scales)."""
    return np.diff(np.asarray(sufficient, dtype=np.float64), axis=1)


def shrunk(
    steps: Sequence[Ensemble],
    fitted: tuple[np.ndarray, np.ndarray],
    held: tuple[np.ndarray, np.ndarray],
) -> Gains:
    """Fitted regressors, shrunk towards the mean gain by what they foresaw on questions held out.

    Args:
        steps: as in Gains, fitted.
        fitted: features (m, features) and what sufficed (m, scales) of the questions of the fit. They have a
            say in the mean only.
        held: the same of questions about other images.
    """
    happened = steps_of(np.concatenate([fitted[1], held[1]])).mean(axis=0)
    kept = []
    for k, step in enumerate(steps):
        known, fresh = step.predict(fitted[0]), step.predict(held[0])
        slope = _slope(fresh, steps_of(held[1])[:, k])
        middle = np.concatenate([known, fresh]).mean()
        kept.append(_scaled(step, slope, float(happened[k] - slope * middle)))
    return Gains(tuple(kept))


def _slope(foreseen: np.ndarray, happened: np.ndarray) -> float:
    """Of the least-squares line, 0 at least; 0 where all questions were foreseen alike."""
    away = foreseen - foreseen.mean()
    spread = float(away @ away)
    return max(0.0, float(away @ happened) / spread) if spread > 1e-9 * len(away) else 0.0


def _scaled(step: Ensemble, slope: float, offset: float) -> Ensemble:
    """offset + slope * step, as an ensemble again."""
    return replace(
        step,
        intercept=slope * step.intercept + offset,
        coefficients=slope * step.coefficients,
        value=slope * step.value,
    )
