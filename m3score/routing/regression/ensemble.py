"""A fitted ScaleRegressor as plain numpy arrays: a linear part plus a sum of binary trees.

Knows no scikit-learn when it predicts, so a saved predictor depends neither on its version nor on its
presence (and cannot make it execute anything). Every kind of ScaleRegressor has this one form:

    prediction(x) = intercept + coefficients . x + sum over trees of the value of the leaf that x falls into

At an inner node x goes left where x[feature] <= threshold. Nodes of all trees lie in one table; children come
after their parent, and a leaf is its own left and right child, so that a walk of `depth` steps always ends in
a leaf, whatever the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from m3score.common.errors import M3ScoreError


class Regressor(Protocol):
    """What can be exported: calibration/predictor/regressor.py fits one."""

    def predict(self, X: Any) -> np.ndarray:
        """float64 (n,) of (n, features) rows."""

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fields of an Ensemble but for `depth`."""


MAX_DEPTH = 256
"""Deeper trees are refused: scikit-learn's own are no deeper than their number of leaves, a few dozen."""

_TOLERANCE = 1e-6
_CELLS = 1 << 16  # (rows x trees) walked at once: what fits a processor's cache
_DTYPES = {
    "intercept": np.float64,
    "coefficients": np.float64,
    "roots": np.int32,
    "feature": np.int32,
    "threshold": np.float64,
    "left": np.int32,
    "right": np.int32,
    "value": np.float64,
}
_PER_NODE = ("feature", "threshold", "left", "right", "value")


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Arrays of a regressor; `from_arrays` checks them. Predictions are ln(tokens), not yet clipped."""

    intercept: np.ndarray
    """float64 (1,)"""
    coefficients: np.ndarray
    """float64 (features,); zeros for a regressor of trees only."""
    roots: np.ndarray
    """int32 (trees,): each tree's first node."""
    feature: np.ndarray
    """int32 (nodes,); -1 at a leaf."""
    threshold: np.ndarray
    """float64 (nodes,)"""
    left: np.ndarray
    """int32 (nodes,)"""
    right: np.ndarray
    """int32 (nodes,)"""
    value: np.ndarray
    """float64 (nodes,): what a leaf adds; 0 at inner nodes."""
    depth: int
    """Steps from the roots to the deepest leaf."""

    @property
    def n_features(self) -> int:
        """How many features a row has."""
        return len(self.coefficients)

    @classmethod
    def of(cls, regressor: Regressor, X: np.ndarray | None = None) -> Ensemble:
        """The arrays of a fitted regressor.

        Args:
            regressor: a fitted one.
            X: (n, features) rows on which both are compared; by default random ones that are drawn around
                the trees' thresholds, where a difference would show.

        Raises:
            M3ScoreError: the arrays' predictions differ from the regressor's own by more than 1e-6.
        """
        ensemble = cls.from_arrays(regressor.to_arrays())
        rows = ensemble._probe_rows() if X is None else np.asarray(X)
        difference = float(np.max(np.abs(ensemble.predict(rows) - regressor.predict(rows)), initial=0.0))
        if not difference <= _TOLERANCE:
            raise M3ScoreError(
                f"the exported regressor differs from scikit-learn's by {difference:.2g} (allowed: "
                f"{_TOLERANCE:g}): this version of scikit-learn stores its trees in another way."
            )
        return ensemble

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], where: str = "the predictor") -> Ensemble:
        """An ensemble from `arrays()`; whatever could make a prediction fail or hang is refused.

        Args:
            arrays: the fields of this class but for `depth`.
            where: what to name in errors.

        Raises:
            M3ScoreError: an array is missing, of another type or shape, not finite, or no forest.
        """
        kept = {name: _checked(arrays, name, dtype, where) for name, dtype in _DTYPES.items()}
        nodes, features = len(kept["value"]), len(kept["coefficients"])
        if len(kept["intercept"]) != 1 or not features:
            raise M3ScoreError(f"{where}: needs one intercept and at least one feature.")
        if any(len(kept[name]) != nodes for name in _PER_NODE):
            raise M3ScoreError(f"{where}: the trees' arrays are not equally long.")
        own, left, right, feature = np.arange(nodes), kept["left"], kept["right"], kept["feature"]
        leaf = (left == own) & (right == own) & (feature == -1)
        inner = (left > own) & (right > own) & (left < nodes) & (right < nodes)
        inner &= (feature >= 0) & (feature < features)
        if not np.all(leaf | inner) or np.any((kept["roots"] < 0) | (kept["roots"] >= nodes)):
            raise M3ScoreError(
                f"{where}: its trees are damaged (a child or a feature out of range, or a loop)."
            )
        return cls(**kept, depth=_depth(kept["roots"], left, right, where))

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name in _DTYPES}

    def predict(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,) predictions of (n, features) rows, as the regressor's own within 1e-6.

        Raises M3ScoreError for rows of another length or with values that are not finite.
        """
        rows = np.asarray(X, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.n_features:
            raise M3ScoreError(f"features must have shape (n, {self.n_features}), not {rows.shape}.")
        if not np.isfinite(rows).all():
            raise M3ScoreError("features must be finite numbers.")
        # not a matrix product: BLAS rounds a row differently in another batch
        prediction = (rows * self.coefficients).sum(axis=1) + self.intercept[0]
        step = max(1, _CELLS // max(1, len(self.roots)))
        for start in range(0, len(rows) if len(self.roots) else 0, step):
            prediction[start : start + step] += self._leaves(rows[start : start + step])
        return prediction

    def spread(self, X: np.ndarray) -> np.ndarray:
        """float64 (n,) at least 0: how much the later half of the trees still moves the prediction of a row.

        The standard deviation of the predictions after each tree of that half: a "virtual ensemble" (Malinin
        et al., "Uncertainty in Gradient Boosting via Ensembles", ICLR 2021), which costs no further fit. 0
        without trees. Rows are those of `predict`, which checks them.
        """
        rows = np.asarray(X, dtype=np.float64)
        step, later = max(1, _CELLS // max(1, len(self.roots))), len(self.roots) // 2
        found = np.zeros(len(rows))
        for start in range(0, len(rows) if later else 0, step):
            values = self._values(rows[start : start + step])[:, later:]
            found[start : start + step] = np.cumsum(values, axis=1).std(axis=1)
        return found

    def _leaves(self, rows: np.ndarray) -> np.ndarray:
        """(n,) sums of the values of the leaves that each row reaches."""
        return self._values(rows).sum(axis=1)

    def _values(self, rows: np.ndarray) -> np.ndarray:
        """(n, trees) values of the leaves that each row reaches; all trees walked at once."""
        node = np.tile(self.roots, len(rows))
        row = np.repeat(np.arange(len(rows)) * self.n_features, len(self.roots))
        values, children = rows.ravel(), self._children
        for _ in range(self.depth):  # one line and `take`: several times as fast as indices of two axes
            goes_left = values.take(self.feature.take(node) + row) <= self.threshold.take(node)
            node = children.take(2 * node + goes_left)
        return self.value.take(node).reshape(len(rows), -1)

    @cached_property
    def _children(self) -> np.ndarray:
        """int32 (2 * nodes,): right child, left child of each node in turn."""
        return np.stack([self.right, self.left], axis=1).ravel()

    def _probe_rows(self, n: int = 256) -> np.ndarray:
        """(n, features) rows whose every value is a threshold of its feature or one next to it."""
        random = np.random.default_rng(0)
        rows = random.normal(size=(n, self.n_features))
        inner = self.left != np.arange(len(self.left))
        for j in np.unique(self.feature[inner]):
            drawn = random.choice(self.threshold[inner & (self.feature == j)], n)
            rows[:, j] = np.where(random.random(n) < 0.5, drawn, np.nextafter(drawn, np.inf))
        return rows


def _checked(arrays: Mapping[str, Any], name: str, dtype: Any, where: str) -> np.ndarray:
    array = arrays.get(name)
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise M3ScoreError(f"{where}: {name!r} must be a list of {np.dtype(dtype).name}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise M3ScoreError(f"{where}: {name!r} holds values that are not finite.")
    return array


def _depth(roots: np.ndarray, left: np.ndarray, right: np.ndarray, where: str) -> int:
    """Steps to the deepest leaf. Children come after their parents, so this ends."""
    level = np.unique(roots)
    for depth in range(MAX_DEPTH + 1):
        level = level[left[level] != level]  # leaves are done
        if not len(level):
            return depth
        level = np.unique(np.concatenate([left[level], right[level]]))
    raise M3ScoreError(f"{where}: a tree is deeper than {MAX_DEPTH} levels.")
