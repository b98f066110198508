"""The vision score from cheap features: a regressor of each of its two demands, of which the harder counts.

The scorer `vision` gives a picture the larger of two numbers, the distinct tokens that it has and the tokens
that reading it takes (models/vision/complexity.py). Each is learnt by itself: what makes a page of print hard
says nothing about a photograph, and one regressor of both spoils either. Knows feature vectors, no images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.routing.regression.ensemble import Ensemble


@dataclass(frozen=True, eq=False)
class Demands:
    """Two regressors of the same features; M3ScoreError if they take different ones."""

    distinct: Ensemble
    """Features to ln(distinct tokens)."""
    reading: Ensemble
    """Features to ln(reading tokens), of pictures that show enough to read."""

    def __post_init__(self) -> None:
        if self.distinct.n_features != self.reading.n_features:
            raise M3ScoreError("the two demands of the vision score must take the same features.")

    @property
    def n_features(self) -> int:
        """How many features a row has."""
        return self.distinct.n_features

    def predict(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,): ln(effective tokens); rows and errors are those of Ensemble.predict."""
        return np.maximum(self.distinct.predict(X), self.reading.predict(X))

    def spread(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,): Ensemble.spread of the demand that counts."""
        reads = self.reading.predict(X) > self.distinct.predict(X)
        return np.where(reads, self.reading.spread(X), self.distinct.spread(X))
