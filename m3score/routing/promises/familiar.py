"""Is a picture like those of the calibration? A density of image features, and conformal p-values.

A certificate holds for pictures that are drawn as the calibration's were. A predictor cannot know that of one
picture, but it can notice those that the calibration hardly holds any like: a mixture of normal densities is
fitted to the features of the *fit* images, and what it gives a picture is compared with what it gives the
*calibration* images, which it never saw. With n of those, of which k are no likelier than the picture,

    p = (1 + k) / (n + 1)

is at most `level` for at most a share `level` of the pictures that are drawn as the calibration's were (split
conformal p-values: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; for outliers
Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 51, 2023). How many of the
others it finds is a matter of the density alone.

Knows numbers only; the mixture is fitted in calibration/predictor/familiarity.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from m3score.common.errors import M3ScoreError

_ROWS = 512
"""FeatureResult at together: what they take fits a processor's cache, or nearly."""
LEVEL = 0.05
"""Share of the pictures like the calibration's that may be taken for others: they cost tokens, no answers."""


@dataclass(frozen=True, eq=False)
class Familiarity:
    """A mixture of normal densities, and how likely the calibration images are under it."""

    middle: np.ndarray
    """float32 (features,): subtracted from features, "standardised" below."""
    scale: np.ndarray
    """float32 (features,): and divided by, above 0."""
    offsets: np.ndarray
    """float32 (parts,): logarithm of each part's weight and of its density at its mean."""
    means: np.ndarray
    """float32 (parts, features), standardised."""
    factors: np.ndarray
    """float32 (parts, features * (features + 1) / 2): the upper triangle of C, row by row, where C C^T is the
    inverse of the part's covariance."""
    scores: np.ndarray
    """float32 (n,) ascending: `strangeness` of the calibration images."""

    @property
    def n_features(self) -> int:
        """How many features a row has."""
        return len(self.middle)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], where: str = "the predictor") -> Familiarity:
        """From `arrays()`; M3ScoreError for arrays that are missing, not finite or of another shape."""
        shapes = {"middle": 1, "scale": 1, "offsets": 1, "means": 2, "factors": 2, "scores": 1}
        kept = {}
        for name, axes in shapes.items():
            array = arrays.get(name)
            if array is None or array.dtype != np.float32 or array.ndim != axes or not array.size:
                raise M3ScoreError(f"{where}: {name!r} must be float32 numbers in {axes} axes.")
            if not np.isfinite(array).all():
                raise M3ScoreError(f"{where}: {name!r} holds values that are not finite.")
            kept[name] = array
        parts, features = len(kept["offsets"]), len(kept["middle"])
        wanted = {
            "scale": (features,),
            "means": (parts, features),
            "factors": (parts, features * (features + 1) // 2),
        }
        if any(kept[name].shape != shape for name, shape in wanted.items()) or (kept["scale"] <= 0).any():
            raise M3ScoreError(f"{where}: its parts do not fit each other.")
        if (np.diff(kept["scores"]) < 0).any():
            raise M3ScoreError(f"{where}: its scores must ascend.")
        return cls(**kept)

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def strangeness(self, X: np.ndarray) -> np.ndarray:
        """float32 (n,): minus the log density, up to a constant, of (n, features) rows."""
        rows = (np.asarray(X, np.float64) - self.middle) / self.scale
        found = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _ROWS):
            away = rows[start : start + _ROWS, None] - self.means
            # one product per row and part: in a larger one BLAS would round a row as its neighbours have it
            away = np.matmul(away[:, :, None], self._triangles)[:, :, 0]
            logs = self.offsets - 0.5 * np.square(away).sum(axis=2)
            found[start : start + _ROWS] = -np.logaddexp.reduce(logs, axis=1)
        return found

    def p_values(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,) in (0, 1]: small for pictures that the calibration holds hardly any like."""
        stranger = len(self.scores) - np.searchsorted(self.scores, self.strangeness(X), side="left")
        return np.asarray((1 + stranger) / (len(self.scores) + 1))

    @cached_property
    def _triangles(self) -> np.ndarray:
        """float64 (parts, features, features)"""
        size = self.n_features
        whole = np.zeros((len(self.offsets), size, size))
        whole[:, *np.triu_indices(size)] = self.factors
        return whole


def fewest(level: float = LEVEL) -> int:
    """Calibration images below which no picture can be called strange: 1 / level - 1."""
    return math.ceil(1 / level - 1 - 1e-9)
