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

_CLEARLY = 0.35
"""In ln(tokens): so far above its floor a demand to read counts in full, and less in between. With twice as
much charts came out too simple."""


@dataclass(frozen=True, eq=False)
class Demands:
    """Two regressors of the same features; M3ScoreError if they take different ones."""

    distinct: Ensemble
    """Features to ln(distinct tokens)."""
    reading: Ensemble
    """Features to ln(reading tokens), of pictures that show enough to read."""
    floor: float = 0.0
    """ln(tokens) that all pictures with less to read were fitted as: at this `reading` says nothing, and it
    counts in full only where it is clearly above. 0 in older files, where it always counts."""

    def __post_init__(self) -> None:
        if not 0 <= self.floor < np.inf:
            raise M3ScoreError("the floor of what there is to read must be a number of 0 or more.")
        if self.distinct.n_features != self.reading.n_features:
            raise M3ScoreError("the two demands of the vision score must take the same features.")

    @property
    def n_features(self) -> int:
        """How many features a row has."""
        return self.distinct.n_features

    def predict(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,): ln(effective tokens); rows and errors are those of Ensemble.predict."""
        return np.maximum(self.distinct.predict(X), self._to_read(X))

    def spread(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,): Ensemble.spread of the demand that counts."""
        reads = self._to_read(X) > self.distinct.predict(X)
        return np.where(reads, self.reading.spread(X), self.distinct.spread(X))

    def _to_read(self, X: np.ndarray) -> np.ndarray:
        found = self.reading.predict(X)
        return found * np.clip((found - self.floor) / _CLEARLY, 0, 1) if self.floor else found
