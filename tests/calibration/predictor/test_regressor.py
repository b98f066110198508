"""The estimator: scikit-learn's own checks, and what becomes of unsolved questions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import check_estimator

from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.common.errors import M3ScoreError

BOUND = math.log(576)


def made_up(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) features and needs around 3 + 2 x_0, some of them beyond the ladder's end."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, 4))
    return X, 4.5 + 2 * X[:, 0] + random.normal(size=n)


@pytest.mark.parametrize(
    "settings",
    [{"max_iter": 20}, {"kind": "linear"}, {"kind": "linear", "unsolved": "impute"}],
    ids=["boosted", "linear", "impute"],
)
def test_scikit_learn_takes_it_for_an_estimator(settings: dict[str, Any]) -> None:
    check_estimator(ScaleRegressor(**settings))


def test_excluded_questions_leave_no_trace_in_the_fit() -> None:
    X, need = made_up()
    censored = need > BOUND
    assert 40 < censored.sum() < 200
    y = np.minimum(need, BOUND)
    for kind in ("linear", "boosted"):
        fitted = ScaleRegressor(kind, max_iter=20).fit(X, y, censored)
        alone = ScaleRegressor(kind, max_iter=20).fit(X[~censored], y[~censored])
        assert np.array_equal(fitted.predict(X), alone.predict(X))


def test_imputing_recovers_what_excluding_and_the_bound_both_miss() -> None:
    X, need = made_up(4000)
    censored = need > BOUND
    y = np.minimum(need, BOUND)
    truth = 4.5 + 2 * X[:, 0]
    imputed = ScaleRegressor("linear", unsolved="impute", impute_rounds=30).fit(X, y, censored).predict(X)
    excluded = ScaleRegressor("linear").fit(X, y, censored).predict(X)
    at_bound = LinearRegression().fit(X, y).predict(X)
    errors = [float(np.abs(guess - truth).mean()) for guess in (imputed, excluded, at_bound)]
    assert errors[0] < 0.1 < 0.3 < min(errors[1:])


def test_imputed_trees_predict_more_for_unsolved_questions_but_do_not_run_away() -> None:
    X, need = made_up(2000)
    censored = need > BOUND
    y = np.minimum(need, BOUND)
    settings: dict[str, Any] = {"max_iter": 40, "max_leaf_nodes": 8}
    imputed = ScaleRegressor(unsolved="impute", **settings).fit(X, y, censored).predict(X[censored])
    excluded = ScaleRegressor(**settings).fit(X, y, censored).predict(X[censored])
    assert imputed.mean() > excluded.mean() + 0.5
    assert imputed.max() < need.max() + 1


def test_imputing_stays_finite_far_below_the_bound() -> None:
    X = np.arange(40.0)[:, None]
    y = 1e-3 * np.sin(np.arange(40.0))
    y[::2] = BOUND  # thousands of standard deviations away from the others
    fitted = ScaleRegressor("linear", unsolved="impute").fit(X, y, y == BOUND)
    assert np.isfinite(fitted.predict(X)).all()


@pytest.mark.parametrize(
    ("settings", "censored", "message"),
    [
        ({"kind": "deep"}, None, "kind is 'deep'; it must be one of 'boosted', 'linear'"),
        ({"unsolved": "guess"}, None, "unsolved is 'guess'; it must be one of 'exclude', 'impute'"),
        ({}, [True] * 400, "no question is solved"),
        ({}, [True] * 3, "each of the 400 rows"),
        ({}, [1] * 400, "true or false"),
    ],
)
def test_what_cannot_be_fitted_is_said(settings: dict[str, Any], censored: Any, message: str) -> None:
    X, y = made_up()
    with pytest.raises(M3ScoreError, match=message):
        ScaleRegressor(**settings).fit(X, y, censored)


def test_same_seed_same_predictions_and_clones_are_alike() -> None:
    X, y = made_up()
    first = ScaleRegressor(max_iter=20)
    assert np.array_equal(first.fit(X, y).predict(X), clone(first).fit(X, y).predict(X))
