"""Certified routing: rounding, exact p-values, and the promise itself, by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3score.common.errors import M3ScoreError
from m3score.routing.promises.certify import (
    Certificate,
    certify,
    certify_questions,
    images_needed,
    margins,
    p_above,
    p_below,
    p_by_betting,
    regrets_at,
    route,
    route_levels,
)
from tests.benchmarks.promises import broken, population

LADDER = (1, 9, 36, 144, 576)
TOP = math.log(576)


@given(
    predictions=st.lists(st.floats(0, TOP), min_size=1, max_size=20),
    margin=st.floats(-TOP, TOP),
)
def test_route_is_the_smallest_scale_that_is_large_enough(predictions: list[float], margin: float) -> None:
    for prediction, tokens in zip(predictions, route(predictions, margin, LADDER), strict=True):
        enough = [t for t in LADDER if math.log(t) >= prediction + margin - 1e-6]
        assert tokens == (enough[0] if enough else 576)


def test_a_prediction_that_is_a_scale_stays_there() -> None:
    exact = np.log(LADDER).astype(np.float32)
    assert route(exact, 0.0, LADDER).tolist() == list(LADDER)
    assert route(exact + np.float32(1e-3), 0.0, LADDER).tolist() == [9, 36, 144, 576, 576]


def test_margins_go_from_always_the_finest_to_always_the_coarsest() -> None:
    grid = margins(LADDER)
    extremes = np.array([0, 1.5, np.float32(TOP)], dtype=np.float32)
    assert route(extremes, grid[0], LADDER).tolist() == [576] * 3
    assert route(extremes, grid[-1], LADDER).tolist() == [1] * 3
    assert all(before > after for before, after in pairwise(grid)) and 0.0 in grid


def test_regret_needs_a_finest_scale_that_is_right() -> None:
    sufficient = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], dtype=bool)
    predictions = np.log([9, 9, 36, 1])
    assert route(predictions, 0.0, LADDER).tolist() == [9, 9, 36, 1]
    assert regrets_at(predictions, sufficient, 0.0, LADDER).tolist() == [True, False, True, False]
    assert regrets_at(predictions, sufficient, TOP, LADDER).tolist() == [False] * 4


@given(n=st.integers(1, 60), count=st.integers(0, 60), rate=st.floats(0.01, 0.5))
def test_p_values_are_binomial_sums(n: int, count: int, rate: float) -> None:
    count = min(count, n)
    terms = [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
    assert p_above(count, n, rate) == pytest.approx(sum(terms[: count + 1]), abs=1e-9)
    assert p_below(count, n, rate) == pytest.approx(sum(terms[count:]), abs=1e-9)


def test_testing_stops_at_the_first_margin_that_fails() -> None:
    """A later margin that would pass again is not taken: the order of the tests is the promise."""
    counts = {3.0: 0, 2.0: 1, 1.0: 50, 0.0: 0}
    found = certify([3.0, 2.0, 1.0, 0.0], lambda margin: np.arange(500) < counts[margin], 0.02, 0.95)
    assert found.certified and found.margin == 2.0 and found.regret == 1 / 500
    assert found.p_value == pytest.approx(p_above(1, 500, 0.02)) and found.p_value < 0.05


def _nothing_to_regret(images: int) -> Callable[[float], np.ndarray]:
    return lambda margin: np.zeros(images, dtype=bool)


def test_too_few_images_certify_nothing_and_say_how_many_it_takes() -> None:
    assert images_needed(0.02, 0.95) == 149 and 0.98**149 <= 0.05 < 0.98**148
    assert images_needed(0.01, 0.95) == 299
    grid = margins(LADDER)
    for images, certified in ((149, True), (148, False), (0, False)):
        found = certify(grid, _nothing_to_regret(images), 0.02, 0.95)
        assert found.certified is certified and found.images == images
        assert found.margin == (grid[-1] if certified else grid[0])
        assert certified or f"at least 149 calibration images, and there are {images}" in found.note
    assert "drop of at most 0.02 per image at confidence 0.95" in found.note


@pytest.mark.parametrize(("max_drop", "confidence"), [(0, 0.9), (1, 0.9), (0.1, 0), (0.1, 1), (-1, 0.5)])
def test_levels_out_of_range(max_drop: float, confidence: float) -> None:
    with pytest.raises(M3ScoreError, match="must lie between 0 and 1"):
        certify([1.0], lambda margin: np.zeros(9, dtype=bool), max_drop, confidence)


def test_no_margins() -> None:
    with pytest.raises(M3ScoreError, match="at least one margin"):
        certify([], lambda margin: np.zeros(9, dtype=bool), 0.1, 0.9)


# ---- the promise --------------------------------------------------------------------------------------

SPLITS = 600


def poor_predictor(size: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, sufficient) of a poor predictor and a model that does not always gain by more tokens."""
    random = np.random.default_rng(20)
    needed = random.choice(len(LADDER) + 1, size, p=[0.3, 0.2, 0.15, 0.1, 0.1, 0.15])  # the last: unsolved
    sufficient = np.arange(len(LADDER)) >= needed[:, None]
    sufficient ^= random.random(sufficient.shape) < 0.05
    logs = np.log([*LADDER, 2 * LADDER[-1]])[needed]
    predictions = np.clip(logs + random.normal(scale=2.0, size=size), 0, TOP)
    return predictions.astype(np.float32), sufficient


@pytest.mark.parametrize(
    ("max_drop", "confidence", "images"), [(0.05, 0.9, 300), (0.02, 0.95, 700), (0.1, 0.8, 100)]
)
def test_promise_is_kept_in_as_many_splits_as_promised(
    max_drop: float, confidence: float, images: int
) -> None:
    """Calibration images are drawn anew, a margin is certified on them, and its true regret is looked up.

    The plain choice, the lowest margin whose regrets do not exceed max_drop on the calibration images, fails
    about every other time; so this test would notice if certify did no better.
    """
    predictions, sufficient = poor_predictor()
    grid = margins(LADDER)
    regrets = {float(m): regrets_at(predictions, sufficient, float(m), LADDER) for m in grid}
    true = {margin: float(values.mean()) for margin, values in regrets.items()}
    random = np.random.default_rng(21)
    broken = plain_broken = certified = 0
    tokens = []
    for _ in range(SPLITS):
        drawn = random.integers(len(predictions), size=images)
        found = certify(grid, _of_rows(regrets, drawn), max_drop, confidence)
        broken += true[found.margin] > max_drop
        certified += found.certified
        tokens.append(route(predictions[drawn], found.margin, LADDER).mean())
        plain = min(m for m in regrets if regrets[m][drawn].mean() <= max_drop)
        plain_broken += true[plain] > max_drop
    allowed = 1 - confidence
    error = math.sqrt(allowed * confidence / SPLITS)
    assert broken / SPLITS <= allowed + 2.5 * error
    assert plain_broken / SPLITS > allowed + 5 * error
    assert certified == SPLITS and np.mean(tokens) < 0.9 * LADDER[-1]  # the promise is not an empty one


def _of_rows(regrets: dict[float, np.ndarray], rows: np.ndarray) -> Callable[[float], np.ndarray]:
    return lambda margin: regrets[margin][rows]


def test_levels_agree_with_route() -> None:
    predictions = np.linspace(0, TOP, 50)
    levels = route_levels(predictions, 0.3, LADDER)
    assert np.asarray(LADDER)[levels].tolist() == route(predictions, 0.3, LADDER).tolist()


# ---- per question -------------------------------------------------------------------------------------


def test_either_promise_is_kept_and_one_is_not_the_other() -> None:
    """Where complex images have more questions, a promise per image is none about all questions."""
    results = broken(population(6000), images=300, max_drop=0.1, confidence=0.9, pipelines=200)
    error = math.sqrt(0.1 * 0.9 / 200)
    for name in ("per image", "per question"):
        share, certified, tokens = results[name]
        assert share <= 0.1 + 2.5 * error and certified == 1 and tokens < 0.8 * LADDER[-1], name
    assert results["per image, held to all questions"][0] > 0.1 + 5 * error


@pytest.mark.parametrize(("max_drop", "confidence", "images"), [(0.05, 0.9, 300), (0.02, 0.95, 700)])
def test_bets_against_a_broken_promise_win_no_oftener_than_allowed(
    max_drop: float, confidence: float, images: int
) -> None:
    """At the border, where questions of an image are right or wrong together: the hardest case."""
    rng, won = np.random.default_rng(3), 0
    for _ in range(600):
        asked = rng.integers(1, 9, images)
        regrets = asked * (rng.random(images) < max_drop)
        won += p_by_betting((regrets - max_drop * asked) / 8, max_drop, confidence) <= 1 - confidence
    allowed = 1 - confidence
    assert won / 600 <= allowed + 2.5 * math.sqrt(allowed * confidence / 600)


def test_bets_win_where_the_promise_is_kept_by_far() -> None:
    rng = np.random.default_rng(4)
    asked = rng.integers(1, 9, 600)
    excess = (rng.binomial(asked, 0.01) - 0.05 * asked) / 8
    assert p_by_betting(excess, 0.05, 0.95) < 0.05 and p_by_betting(np.zeros(0), 0.05, 0.95) == 1
    assert p_by_betting(excess[:20], 0.05, 0.95) > 0.05


def test_how_many_images_a_promise_per_question_needs() -> None:
    """As many as said certify without any regret, and hardly fewer do."""
    for asked in (1, 4):
        image = np.repeat(np.arange(1000), asked)

        def found(images: int, image: np.ndarray = image, asked: int = asked) -> Certificate:
            none = np.zeros(images * asked, bool)
            return certify_questions([1.0], lambda margin: none, image[: len(none)], 4, 0.05, 0.95)

        needed = found(1000).images_needed
        assert found(needed).certified and not found(int(0.95 * needed)).certified
        assert "per question" in found(needed).note and found(needed).per == "question"
        assert f"at least {needed}" in found(20).note


def test_an_image_with_too_many_questions_is_refused() -> None:
    with pytest.raises(M3ScoreError, match="an image has 3 questions, but 2 are the most"):
        certify_questions([1.0], lambda margin: np.zeros(3, bool), np.zeros(3, int), 2, 0.05, 0.95)
