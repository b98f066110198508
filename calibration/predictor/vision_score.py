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
from m3score.routing.regression.demands import Demands
from m3score.routing.regression.ensemble import Ensemble

REGRESSOR: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_iter": 400,
    "max_features": 0.3,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
}
DISTINCT: dict[str, Any] = {**REGRESSOR, "loss": "absolute_error"}
"""Of ln(distinct tokens). A median heeds odd drawings less than a mean does: fitted to drawings, it is right
about photographs more often (Spearman within sets .77 to .90 for .45 to .75)."""
LEAST_READ = 20.0
"""Reading tokens below which all pictures count as alike: they hardly ever decide about a score, and the
regressor is not to spend its trees on telling 1 from 5."""
READERS = 3
"""How often a picture with more to read counts in the fit of reading tokens. Among drawings most have nothing
to read, and pages that are hardly told from textures would be taken for those."""
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
    distinct: np.ndarray
    """float64 (n,): distinct tokens."""
    reading: np.ndarray
    """float64 (n,): reading tokens."""
    sources: np.ndarray
    """(n,) text: the part of the data that a picture comes from."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(
        cls,
        features: Mapping[str, tuple[str, np.ndarray]],
        seen: Mapping[str, tuple[float, float]],
        source: str,
    ) -> VisionLabels:
        """From each picture's key and features, and its distinct and reading tokens, by the same name."""
        names = list(features)
        tokens = np.array([seen[name] for name in names], float).reshape(-1, 2)
        return cls(
            keys=np.array([features[name][0] for name in names], object),
            features=np.array([features[name][1] for name in names], np.float32),
            distinct=tokens[:, 0],
            reading=tokens[:, 1],
            sources=np.array([source] * len(names), object),
        )

    def logs(self, finest: int) -> np.ndarray:
        """float64 (n,): ln(effective tokens), at most ln(finest)."""
        return np.log(np.clip(np.maximum(self.distinct, self.reading), 1, finest))

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


def fit_vision(labels: VisionLabels, finest: int, seed: int = 0) -> Demands | None:
    """The regressors as arrays; None where there are fewer pictures than FEWEST.

    Args:
        labels: pictures.
        finest: tokens of the finest scale, above which reading counts no more.
        seed: of the trees.
    """
    if len(labels) < FEWEST:
        return None
    read = np.log(np.clip(labels.reading, min(LEAST_READ, finest), finest))
    often = np.repeat(np.arange(len(labels)), np.where(labels.reading > LEAST_READ, READERS, 1))
    distinct = ScaleRegressor(**DISTINCT, random_state=seed).fit(labels.features, np.log(labels.distinct))
    reading = ScaleRegressor(**REGRESSOR, random_state=seed).fit(labels.features[often], read[often])
    return Demands(Ensemble.of(distinct), Ensemble.of(reading), float(np.log(min(LEAST_READ, finest))))


def judge_vision(demands: Demands, labels: VisionLabels, finest: int) -> list[VisionVerdict]:
    """A verdict on each source of the pictures, and one on all of them where there are several."""
    names = list(dict.fromkeys(labels.sources))
    groups = {str(name): labels.take(labels.sources == name) for name in names}
    if len(groups) > 1:
        groups["all"] = labels
    verdicts = []
    for name, part in groups.items():
        predicted, happened = np.clip(demands.predict(part.features), 0, np.log(finest)), part.logs(finest)
        rank, error = spearman(predicted, happened, RANKED), np.abs(predicted - happened).mean()
        verdicts.append(VisionVerdict(name, len(part), float(rank), float(error)))
    return verdicts
