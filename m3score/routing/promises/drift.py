"""Has the traffic drifted away from what a predictor was calibrated on?

A certificate holds for images drawn as the calibration's were. Fresh traces, labelled by a truth or by the
model's consistency with its own finest scale (as the calibration was), are compared with the calibration in
two ways, each by a two-sample Kolmogorov-Smirnov test:

1. the predictions: other pictures or questions come in;
2. ln(required) - prediction: the same predictions have come to mean something else. Unsolved questions need
   more than any scale gives; as the test sees ranks only, they count as infinite.

They are joined by Bonferroni's correction. The share of regrets at the certified margin is reported beside
them, with its exact binomial p-value: drift may well leave the promise intact, and then calibrating can wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.routing.predictor import Predictor
from m3score.routing.promises.certify import p_below, regrets_at
from m3score.scoring.rules import required_tokens


@dataclass(frozen=True)
class Drift:
    """Whether fresh traces differ from the calibration, and whether the promise still holds."""

    drifted: bool
    p_value: float
    """Of "nothing has changed": Bonferroni over the two tests. Drifted where it is at most 1 - confidence."""
    prediction_p_value: float
    residual_p_value: float
    regret: float
    """Share of regrets of the fresh images at the certified margin."""
    regret_p_value: float
    """Exact binomial p-value of "the true regret is at most max_drop": small where the promise is broken."""
    margin: float
    """In ln(tokens), as certified for max_drop and confidence."""
    images: int
    """Fresh images, one question each."""
    max_drop: float
    confidence: float
    note: str
    """One sentence for people."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def check_drift(
    predictor: Predictor,
    predictions: Any,
    sufficient: Any,
    *,
    with_question: bool = False,
    max_drop: float = 0.02,
    confidence: float = 0.95,
) -> Drift:
    """Compare fresh traces with a predictor's calibration.

    Args:
        predictor: the predictor in use.
        predictions: (n,) what it says of the fresh images: Predictor.predict. One question per image, drawn
            as for the calibration, else the tests see drift too readily.
        sufficient: bool (n, scales), coarsest first, by the rule that the calibration was labelled with.
        with_question: whether the predictions are of the form that sees the question.
        max_drop, confidence: of the promise; 1 - confidence is the chance of a false alarm.

    Raises:
        M3ScoreError: no images, arrays that do not fit each other or the ladder, or a calibration without
            images.
    """
    fresh, enough = np.asarray(predictions, dtype=np.float32), np.asarray(sufficient)
    ladder, record = predictor.ladder, predictor.calibration
    if fresh.ndim != 1 or enough.dtype != bool or enough.shape != (len(fresh), len(ladder)) or not len(fresh):
        raise M3ScoreError(
            f"drift needs at least one image: predictions (n,) and bool sufficient (n, {len(ladder)}), not "
            f"{fresh.shape} and {enough.dtype} {enough.shape}."
        )
    known = record.predictions(with_question)
    if not len(known):
        raise M3ScoreError("the predictor has no calibration images to compare with.")
    certificate = predictor.certificate(max_drop, confidence, with_question=with_question)
    p_values = (
        _two_sample(fresh, known),
        _two_sample(_residuals(fresh, enough, ladder), _residuals(known, record.sufficient, ladder)),
    )
    p_value = min(1.0, len(p_values) * min(p_values))
    regrets = regrets_at(fresh, enough, certificate.margin, ladder)
    drifted = p_value <= 1 - confidence
    broken_p = p_below(int(regrets.sum()), len(regrets), max_drop)
    return Drift(
        drifted=drifted,
        p_value=p_value,
        prediction_p_value=p_values[0],
        residual_p_value=p_values[1],
        regret=float(regrets.mean()),
        regret_p_value=broken_p,
        margin=certificate.margin,
        images=len(fresh),
        max_drop=max_drop,
        confidence=confidence,
        note=_note(drifted, p_value, float(regrets.mean()), broken_p, max_drop, confidence),
    )


def _residuals(predictions: np.ndarray, sufficient: np.ndarray, ladder: Sequence[int]) -> np.ndarray:
    """float64 (n,): ln(required) - prediction; where no scale suffices a number above all others."""
    needs = [required_tokens(row, ladder) for row in sufficient.tolist()]
    logs = np.array([np.inf if tokens is None else np.log(tokens) for tokens in needs])
    residuals = logs - predictions.astype(np.float64)
    return np.where(np.isinf(residuals), 2 * np.log(ladder[-1]), residuals)


def _two_sample(first: np.ndarray, second: np.ndarray) -> float:
    """p-value of a two-sided Kolmogorov-Smirnov test; with ties it is on the safe side."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(first, second, method="auto").pvalue)


def _note(
    drifted: bool, p_value: float, regret: float, broken_p: float, max_drop: float, confidence: float
) -> str:
    verdict = f"Drift (p = {p_value:.2g})" if drifted else f"No sign of drift (p = {p_value:.2g})"
    if broken_p <= 1 - confidence:
        promise = (
            f"the promise is broken: a regret of {regret:.2%}, above {max_drop:.2%} (p = {broken_p:.2g})"
        )
    else:
        promise = f"a regret of {regret:.2%}, against a promise of at most {max_drop:.2%}"
    return f"{verdict}; {promise}." + (" Calibrate anew on such images." if drifted else "")
