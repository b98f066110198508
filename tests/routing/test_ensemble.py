"""Regressors as arrays: the same predictions, and arrays that nobody should trust."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.common.errors import M3ScoreError
from m3score.routing.regression.ensemble import Ensemble


def fitted(n: int = 300, features: int = 5, seed: int = 0, **settings: Any) -> ScaleRegressor:
    """A regressor that has seen n made-up rows, as float32 as features are."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(n, features)).astype(np.float32)
    X[:, -1] = np.round(X[:, -1])  # a feature with ties, so that rows lie on thresholds' bins
    y = X[:, 0] * 2 + np.sin(3 * X[:, 1 % features]) + random.normal(size=n)
    return ScaleRegressor(**{"max_iter": 25, "min_samples_leaf": 5, **settings}).fit(X, y)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return Ensemble.of(fitted()).arrays()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["boosted", "linear"]),
    leaves=st.integers(2, 31),
    n=st.integers(8, 400),
    features=st.integers(1, 12),
    loss=st.sampled_from(["squared_error", "absolute_error", "quantile"]),
)
def test_predicts_as_scikit_learn_does(
    seed: int, kind: str, leaves: int, n: int, features: int, loss: str
) -> None:
    regressor = fitted(n, features, seed, kind=kind, max_leaf_nodes=leaves, loss=loss, max_iter=8)
    ensemble = Ensemble.of(regressor)
    rows = np.random.default_rng(seed + 1).normal(scale=3, size=(200, features)).astype(np.float32)
    assert np.abs(ensemble.predict(rows) - regressor.predict(rows)).max() <= 1e-6
    again = Ensemble.from_arrays(ensemble.arrays())
    assert np.array_equal(again.predict(rows), ensemble.predict(rows))


def test_a_row_is_predicted_alike_alone_and_among_many() -> None:
    random = np.random.default_rng(3)
    for kind in ("boosted", "linear"):
        ensemble = Ensemble.of(fitted(kind=kind))
        rows = random.normal(size=(1000, 5))
        alone = np.concatenate([ensemble.predict(row[None]) for row in rows])
        assert np.array_equal(alone, ensemble.predict(rows))


def test_many_rows_are_walked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble.of(fitted())
    rows = np.random.default_rng(4).normal(size=(101, 5))
    whole = ensemble.predict(rows)
    monkeypatch.setattr("m3score.routing.regression.ensemble._CELLS", 25 * 10)
    assert np.array_equal(ensemble.predict(rows), whole)
    assert ensemble.predict(rows[:0]).shape == (0,)


def test_export_that_does_not_match_is_refused() -> None:
    regressor = fitted()
    arrays = regressor.to_arrays()
    arrays["threshold"] = arrays["threshold"] + 0.1  # as if scikit-learn had changed how it stores trees
    regressor.to_arrays = lambda: arrays  # type: ignore[method-assign]
    with pytest.raises(M3ScoreError, match=r"differs from scikit-learn's by .* stores its trees"):
        Ensemble.of(regressor)


def test_smallest_difference_between_thresholds_is_seen() -> None:
    """The rows of the check lie on the thresholds, where < and <= part."""
    regressor = fitted()
    arrays = regressor.to_arrays()
    arrays["threshold"] = np.nextafter(arrays["threshold"], -np.inf)
    regressor.to_arrays = lambda: arrays  # type: ignore[method-assign]
    with pytest.raises(M3ScoreError, match="differs from scikit-learn's"):
        Ensemble.of(regressor)


def _set(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any]], None]:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays[name] = change(arrays[name].copy())

    return spoil


def _put(position: int, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def put(array: np.ndarray) -> np.ndarray:
        array[position] = value
        return array

    return put


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a loop": (_set("left", _put(1, 0)), "trees are damaged"),
    "child out of range": (_set("right", _put(0, 10**6)), "trees are damaged"),
    "negative child": (_set("left", _put(0, -1)), "trees are damaged"),
    "feature out of range": (_set("feature", _put(0, 5)), "trees are damaged"),
    "negative feature": (_set("feature", _put(0, -2)), "trees are damaged"),
    "feature of a leaf": (_set("feature", _put(-1, 5)), "trees are damaged"),
    "root out of range": (_set("roots", _put(0, 10**6)), "trees are damaged"),
    "not finite": (_set("value", _put(0, np.nan)), "'value' holds values that are not finite"),
    "infinite threshold": (_set("threshold", _put(0, np.inf)), "'threshold' holds values that are not"),
    "another length": (_set("value", lambda array: array[:-1]), "not equally long"),
    "another type": (_set("left", lambda array: array.astype(np.int64)), "'left' must be a list of int32"),
    "another shape": (_set("roots", lambda array: array[:, None]), "'roots' must be a list of int32"),
    "objects": (_set("value", lambda array: array.astype(object)), "'value' must be a list of float64"),
    "two intercepts": (_set("intercept", lambda array: np.zeros(2)), "one intercept"),
    "no features": (_set("coefficients", lambda array: np.zeros(0)), "at least one feature"),
    "missing": (lambda arrays: arrays.pop("roots"), "'roots' must be a list"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_arrays_are_refused(kind: str, arrays: dict[str, np.ndarray]) -> None:
    spoil, message = DAMAGE[kind]
    damaged = dict(arrays)
    spoil(damaged)
    with pytest.raises(M3ScoreError, match=f"^mine: .*{message}"):
        Ensemble.from_arrays(damaged, where="mine")


def test_endless_chain_of_nodes_is_refused() -> None:
    n = 5000  # each node's left child is the next one: no loop, but a walk without end in sight
    nodes = np.arange(n, dtype=np.int32)
    chain = np.minimum(nodes + 1, n - 1)
    feature = np.where(nodes < n - 1, 0, -1).astype(np.int32)
    with pytest.raises(M3ScoreError, match="deeper than 256 levels"):
        Ensemble.from_arrays(
            {
                "intercept": np.zeros(1),
                "coefficients": np.zeros(1),
                "roots": np.zeros(1, dtype=np.int32),
                "feature": feature,
                "threshold": np.zeros(n),
                "left": chain,
                "right": chain,
                "value": np.zeros(n),
            }
        )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever is written into the indices, a prediction comes out or an M3ScoreError."""
    arrays = Ensemble.of(_SMALL).arrays()
    name = data.draw(st.sampled_from(["left", "right", "feature", "roots"]))
    values = arrays[name].copy()
    values[data.draw(st.integers(0, len(values) - 1))] = data.draw(st.integers(-(2**31), 2**31 - 1))
    try:
        ensemble = Ensemble.from_arrays(arrays | {name: values})
    except M3ScoreError:
        return
    assert np.isfinite(ensemble.predict(np.zeros((3, 5)))).all()


_SMALL = fitted(max_iter=3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 4)), r"shape \(n, 5\), not \(2, 4\)"),
        (np.zeros(5), r"shape \(n, 5\), not \(5,\)"),
        (np.full((1, 5), np.nan), "finite"),
    ],
)
def test_features_that_do_not_fit_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(M3ScoreError, match=message):
        Ensemble.of(_SMALL).predict(rows)
