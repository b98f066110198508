"""Gains: what is foreseen counts as far as it came true on questions held out, and no further."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.routing.regression.ensemble import Ensemble
from m3score.routing.regression.gains import Gains, over_coarsest, shrunk, steps_of
from m3score.routing.regression.prices import levels

LADDER = (1, 9, 36, 144, 576)


def linear(*coefficients: float, intercept: float = 0.0) -> Ensemble:
    """A regressor without trees."""
    none = np.zeros(0)
    whole = {name: none.astype(np.int32) for name in ("roots", "feature", "left", "right")}
    arrays = {"intercept": np.array([intercept]), "coefficients": np.array(coefficients, float)}
    return Ensemble.from_arrays({**arrays, **whole, "threshold": none, "value": none})


def drawn(n: int, seed: int, signal: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of which the first shifts the only step's gain by `signal`, and what sufficed at 2 scales."""
    random = np.random.default_rng(seed)
    X = random.uniform(-1, 1, (n, 2))
    finer = random.random(n) < 0.5 + signal * X[:, 0] / 2
    return X, np.column_stack([random.random(n) < 0.3, finer])


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(-3, 3), st.integers(0, 100))
def test_shrunk_gains_err_less_than_the_mean_and_than_what_was_foreseen(
    signal: float, boldness: float, seed: int
) -> None:
    held = drawn(300, seed, signal)
    step = linear(boldness, 0.0, intercept=0.4)
    kept = shrunk([step], held, held).steps[0].predict(held[0])
    happened = steps_of(held[1])[:, 0]

    def error(foreseen: np.ndarray | float) -> float:
        return float(((happened - foreseen) ** 2).mean())

    assert kept.mean() == pytest.approx(happened.mean())
    assert error(kept) <= error(float(happened.mean())) + 1e-12
    if boldness > 0:
        assert error(kept) <= error(step.predict(held[0])) + 1e-12


def test_the_bold_are_cut_down_and_the_wrong_are_not_heard() -> None:
    fit, held = drawn(4000, 1, 0.5), drawn(4000, 2, 0.5)
    (bold,) = shrunk([linear(2.0, 0.0)], fit, held).steps
    assert bold.coefficients[0] == pytest.approx(0.25, abs=0.06)
    (wrong,) = shrunk([linear(-1.0, 0.0)], fit, held).steps
    assert wrong.coefficients.tolist() == [0, 0]
    (constant,) = shrunk([linear(0.0, 0.0, intercept=7.0)], fit, held).steps
    both = np.concatenate([steps_of(fit[1]), steps_of(held[1])]).mean()
    for step in (wrong, constant):
        assert step.predict(held[0]) == pytest.approx(np.full(4000, both))


def test_all_questions_are_routed_alike_where_nothing_is_known() -> None:
    gains = Gains(tuple(linear(0.0, intercept=gain) for gain in (0.2, 0.05, 0.01, -0.002)))
    utility = over_coarsest(gains.predict(np.random.default_rng(0).normal(size=(50, 1))))
    for price, level in ((0.0, 3), (0.05, 3), (0.06, 2), (1.0, 2), (2.0, 1), (20.0, 0)):
        assert set(levels(utility, price, LADDER)) == {level}  # never the finest, which is no better


def test_gains_are_differences_of_chances() -> None:
    wild = Gains((linear(1e6), linear(-1e6)))
    found = wild.predict(np.array([[1.0], [-1.0], [0.0]]))
    assert found.dtype == np.float32 and found.tolist() == [[1, -1], [-1, 1], [0, 0]]
    assert over_coarsest(found).tolist() == [[0, 1, 0], [0, -1, 0], [0, 0, 0]]


def test_gains_need_steps_from_the_same_features() -> None:
    for steps in ((), (linear(1.0), linear(1.0, 2.0))):
        with pytest.raises(M3ScoreError, match="all of them the same features"):
            Gains(steps)
