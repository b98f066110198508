"""The scikit-learn estimator behind a predictor: cheap features in, ln(required tokens) out.

Imports scikit-learn, so only what fits imports this; a fitted one is exported by ensemble.py. Tried with
scikit-learn 1.6.0 and 1.9.1: what either has fitted predicts the same without both.

Unsolved questions (no scale of the ladder was sufficient) are right-censored: what they need lies somewhere
above ln(finest), nobody knows where. They are neither 1 token nor the finest scale, so `fit` takes them by a
mask and `unsolved` says what becomes of them:

- "exclude": they are left out of the fit. The regressor then answers "what does a question need, if it can be
  answered at all?". That is what routing wants: an unsolved question cannot be routed wrongly, as the finest
  scale fails too.
- "impute": iterative conditional means (Schmee & Hahn, "A Simple Method for Regression Analysis with Censored
  Data", Technometrics 21, 1979). Each is given its expected value beyond the bound under normal residuals
  around the present fit, then the fit is repeated. Hard questions then pull the prediction up. As trees
  follow what they are given, the rounds are few and fixed in number, not run until nothing moves.

Which of the two serves better is for cross-validation to say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from m3score.common.errors import M3ScoreError

KINDS = ("boosted", "linear")
UNSOLVED = ("exclude", "impute")


class ScaleRegressor(RegressorMixin, BaseEstimator):
    """Regresses ln(required tokens per grid) on features; passes scikit-learn's check_estimator.

    Args:
        kind: "boosted" = gradient-boosted trees on histograms (HistGradientBoostingRegressor), "linear" =
            ridge regression on standardised features.
        max_iter: how many trees.
        learning_rate, max_leaf_nodes, min_samples_leaf, l2_regularization, max_features: of the trees, as in
            scikit-learn. No early stopping: its validation rows would be drawn across images.
        loss: of the trees: "squared_error" (the mean), "absolute_error" (the median) or "quantile".
        quantile: which one, for loss="quantile".
        alpha: the ridge penalty of kind="linear".
        unsolved: "exclude" or "impute"; see the head of this file.
        impute_rounds: how often "impute" refits.
        random_state: seed of the trees.
    """

    def __init__(
        self,
        kind: str = "boosted",
        *,
        learning_rate: float = 0.1,
        max_iter: int = 150,
        max_leaf_nodes: int = 15,
        min_samples_leaf: int = 20,
        l2_regularization: float = 0.0,
        max_features: float = 1.0,
        loss: str = "squared_error",
        quantile: float = 0.5,
        alpha: float = 1.0,
        unsolved: str = "exclude",
        impute_rounds: int = 4,
        random_state: int | None = 0,
    ) -> None:
        self.kind = kind
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.max_leaf_nodes = max_leaf_nodes
        self.min_samples_leaf = min_samples_leaf
        self.l2_regularization = l2_regularization
        self.max_features = max_features
        self.loss = loss
        self.quantile = quantile
        self.alpha = alpha
        self.unsolved = unsolved
        self.impute_rounds = impute_rounds
        self.random_state = random_state

    def fit(self, X: Any, y: Any, censored: Any = None) -> ScaleRegressor:
        """Fit.

        Args:
            X: (n, features), finite.
            y: (n,) ln(required tokens); where censored, ln(finest), the bound that the need lies above.
            censored: bool (n,), true for unsolved questions; None = all are solved.

        Raises:
            M3ScoreError (a ValueError): unknown kind or unsolved, a mask of another length, or nothing
                solved.
        """
        _one_of("kind", self.kind, KINDS)
        _one_of("unsolved", self.unsolved, UNSOLVED)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        mask = _mask(censored, len(y))
        solved = ~mask
        self.regressor_ = self._new().fit(X[solved], y[solved])
        if self.unsolved == "impute" and mask.any():
            self._impute(X, y, mask)
        self.n_iter_ = 1 if self.kind == "linear" else self.regressor_.n_iter_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """float64 (n,): ln(tokens), not clipped to the ladder."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return np.asarray(self.regressor_.predict(X), dtype=np.float64)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The fitted regressor in the form of ensemble.Ensemble, which checks it."""
        check_is_fitted(self)
        if self.kind == "linear":
            return _linear_arrays(self.regressor_)
        return _tree_arrays(self.regressor_, self.n_features_in_)

    def _new(self) -> Any:
        if self.kind == "linear":
            return make_pipeline(StandardScaler(), Ridge(alpha=self.alpha))
        return HistGradientBoostingRegressor(
            loss=self.loss,
            quantile=self.quantile if self.loss == "quantile" else None,
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            max_leaf_nodes=self.max_leaf_nodes,
            min_samples_leaf=self.min_samples_leaf,
            l2_regularization=self.l2_regularization,
            max_features=self.max_features,
            early_stopping=False,
            random_state=self.random_state,
        )

    def _impute(self, X: np.ndarray, y: np.ndarray, mask: np.ndarray) -> None:
        """Schmee & Hahn's rounds, from the fit to the solved rows on."""
        filled = y.copy()
        spread = _root_mean_square(y[~mask] - self.regressor_.predict(X[~mask]))
        for _ in range(self.impute_rounds):
            filled[mask] = _mean_beyond(y[mask], self.regressor_.predict(X[mask]), spread)
            self.regressor_ = self._new().fit(X, filled)
            spread = _root_mean_square(filled - self.regressor_.predict(X))


def _mean_beyond(bound: np.ndarray, mean: np.ndarray, spread: float) -> np.ndarray:
    """E[y | y > bound] for y normal with the mean and standard deviation given; never below the bound."""
    from scipy.special import log_ndtr

    if spread <= 0:
        return np.maximum(bound, mean)
    z = (bound - mean) / spread
    log_density = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    # density / survival function, in logarithms: far beyond the mean both underflow
    return np.maximum(bound, mean + spread * np.exp(log_density - log_ndtr(-z)))


def _root_mean_square(residuals: np.ndarray) -> float:
    return float(np.sqrt(np.mean(residuals**2)))


def _mask(censored: Any, n: int) -> np.ndarray:
    if censored is None:
        return np.zeros(n, dtype=bool)
    mask = np.asarray(censored)
    if mask.dtype != bool or mask.shape != (n,):
        raise M3ScoreError(f"censored must be true or false for each of the {n} rows.")
    if mask.all():
        raise M3ScoreError("no question is solved at any scale: there is nothing to fit to.")
    return mask


def _one_of(option: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise M3ScoreError(f"{option} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")


def _linear_arrays(pipeline: Any) -> dict[str, np.ndarray]:
    """Scaling and ridge as one linear form."""
    scaler, ridge = pipeline[0], pipeline[1]
    coefficients = np.asarray(ridge.coef_, dtype=np.float64).ravel() / scaler.scale_
    intercept = float(ridge.intercept_) - float(coefficients @ scaler.mean_)
    none = np.zeros(0)
    indices = dict.fromkeys(("roots", "feature", "left", "right"), none.astype(np.int32))
    return {
        "intercept": np.array([intercept]),
        "coefficients": coefficients,
        "threshold": none,
        "value": none,
        **indices,
    }


def _tree_arrays(boosted: Any, n_features: int) -> dict[str, np.ndarray]:
    """Trees of HistGradientBoostingRegressor, whose private nodes have had these names since 0.24."""
    trees = [iteration[0].nodes for iteration in boosted._predictors]
    starts = np.cumsum([0, *(len(nodes) for nodes in trees)])
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("feature", "threshold", "left", "right", "value")
    }
    for nodes, start in zip(trees, starts, strict=False):
        leaf = nodes["is_leaf"].astype(bool)
        own = np.arange(len(nodes)) + start
        columns["feature"].append(np.where(leaf, -1, nodes["feature_idx"]))
        columns["threshold"].append(np.where(leaf, 0.0, nodes["num_threshold"]))
        columns["left"].append(np.where(leaf, own, nodes["left"].astype(np.int64) + start))
        columns["right"].append(np.where(leaf, own, nodes["right"].astype(np.int64) + start))
        columns["value"].append(np.where(leaf, nodes["value"], 0.0))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return {
        "intercept": np.asarray(boosted._baseline_prediction, dtype=np.float64).reshape(-1)[:1].copy(),
        "coefficients": np.zeros(n_features),
        "roots": starts[:-1].astype(np.int32),
        **{name: joined[name].astype(np.int32) for name in ("feature", "left", "right")},
        **{name: joined[name].astype(np.float64) for name in ("threshold", "value")},
    }
