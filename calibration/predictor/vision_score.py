"""The vision score of a picture, predicted from its cheap features: labels, fit, and how well it does.

What the scorer `vision` says of a picture depends on the picture alone, so there is one label a picture and
no question. Whoever asks about photographs has labels of photographs; the bundled predictor has drawings
only (drawings/assorted.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m3score.calibration.predictor.labels import SPLITS, split_of
from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.common.statistics import spearman
from m3score.routing.regression.ensemble import Ensemble

REGRESSOR: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_iter": 400,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
}
FEWEST = 100
"""Pictures to fit to, at least; with fewer there is no such regressor."""
RANKED = 10
"""Pictures that a rank correlation is told of, at least."""


@dataclass(frozen=True, eq=False)
class VisionLabels:
    """Pictures (n of them) with their vision scores."""

    keys: np.ndarray
    """(n,) text, equal for copies of a picture: what the split goes by."""
    features: np.ndarray
    """float32 (n, image features)"""
    logs: np.ndarray
    """float64 (n,): ln(effective tokens)."""
    sources: np.ndarray
    """(n,) text: the part of the data that a picture comes from."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(
        cls,
        features: Mapping[str, tuple[str, np.ndarray]],
        effective_tokens: Mapping[str, float],
        source: str,
    ) -> VisionLabels:
        """From each picture's key and features, and its score, by the same name."""
        names = list(features)
        return cls(
            keys=np.array([features[name][0] for name in names], object),
            features=np.array([features[name][1] for name in names], np.float32),
            logs=np.log(np.array([effective_tokens[name] for name in names], float)),
            sources=np.array([source] * len(names), object),
        )

    def take(self, rows: np.ndarray) -> VisionLabels:
        """Some of the pictures."""
        return VisionLabels(**{name: value[rows] for name, value in self.__dict__.items()})

    def split(self, seed: int, shares: Sequence[float]) -> dict[str, VisionLabels]:
        """As Labels.split, and the same pictures in each part; parts may be empty."""
        which = split_of(self.keys, seed, shares)
        return {name: self.take(which == i) for i, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class VisionVerdict:
    """How well the vision score is predicted on pictures that the fit never saw."""

    source: str
    pictures: int
    spearman: float
    error: float
    """Mean absolute error in ln(tokens)."""


def join_vision(parts: Sequence[VisionLabels]) -> VisionLabels | None:
    """Several parts as one; None for none."""
    held = [part for part in parts if len(part)]
    if not held:
        return None
    return VisionLabels(
        **{name: np.concatenate([getattr(part, name) for part in held]) for name in held[0].__dict__}
    )


def fit_vision(labels: VisionLabels, seed: int = 0) -> Ensemble | None:
    """The regressor as arrays; None where there are fewer pictures than FEWEST."""
    if len(labels) < FEWEST:
        return None
    return Ensemble.of(ScaleRegressor(**REGRESSOR, random_state=seed).fit(labels.features, labels.logs))


def judge_vision(ensemble: Ensemble, labels: VisionLabels) -> list[VisionVerdict]:
    """A verdict on each source of the pictures, and one on all of them where there are several."""
    names = list(dict.fromkeys(labels.sources))
    groups = {str(name): labels.take(labels.sources == name) for name in names}
    if len(groups) > 1:
        groups["all"] = labels
    verdicts = []
    for name, part in groups.items():
        predicted = ensemble.predict(part.features)
        verdicts.append(
            VisionVerdict(
                name,
                len(part),
                float(spearman(predicted, part.logs, RANKED)),
                float(np.abs(predicted - part.logs).mean()),
            )
        )
    return verdicts
