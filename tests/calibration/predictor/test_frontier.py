"""Curves of accuracy against tokens: hulls, routers, the oracle, and the files they are written to."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3score.calibration.predictor.frontier import write_csv, write_png
from m3score.common.errors import MissingExtraError
from m3score.routing.promises.frontier import (
    Curve,
    ceiling,
    fixed_scales,
    gap_closed,
    lead,
    mixing,
    outcome,
    priced,
    routed,
    stays,
    upper_hull,
)
from m3score.routing.regression.prices import SufficiencyCurve, levels, price_for

LADDER = (1, 9, 36, 144, 576)
SUFFICIENT = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=30).map(np.array)


def monotone(needs: np.ndarray) -> np.ndarray:
    """Sufficient from the scale (index; 5 = never) that each question needs."""
    return np.arange(5)[None, :] >= needs[:, None]


def test_a_mix_is_a_straight_line_between_scales():
    sufficient = np.array([[False, False, False, False, True]] * 3 + [[True] * 5])
    mix = mixing(sufficient, LADDER)
    assert mix.at(1) == 0.25 and mix.at(576) == 1
    assert mix.at((1 + 576) / 2) == pytest.approx(0.625)  # and not what 144 tokens alone give
    assert fixed_scales(sufficient, LADDER).at(144) == 0.25


@settings(max_examples=60, deadline=None)
@given(SUFFICIENT)
def test_hull_is_concave_and_above_every_scale_and_pair(sufficient: np.ndarray):
    fixed, mix = fixed_scales(sufficient, LADDER), mixing(sufficient, LADDER)
    assert (mix.at(fixed.tokens) >= fixed.accuracy - 1e-12).all()
    slopes = np.diff(mix.accuracy) / np.diff(mix.tokens)
    assert (slopes > 0).all() and (np.diff(slopes) < 1e-12).all()
    for i in range(4):
        for j in range(i + 1, 5):
            middle = (fixed.tokens[i] + fixed.tokens[j]) / 2
            assert mix.at(middle) >= (fixed.accuracy[i] + fixed.accuracy[j]) / 2 - 1e-12


@settings(max_examples=60, deadline=None)
@given(SUFFICIENT, st.integers(0, 10_000))
def test_a_blind_router_does_not_beat_random_mixing_and_none_beats_the_best_oracle(
    sufficient: np.ndarray, seed: int
):
    predictions = np.random.default_rng(seed).uniform(0, np.log(576), len(sufficient))
    best = ceiling(sufficient, LADDER)
    curve = routed(predictions, sufficient, LADDER)
    assert (curve.accuracy <= best.at(curve.tokens) + 1e-9).all()
    same = routed(np.full(len(sufficient), 2.0), sufficient, LADDER)
    assert lead(same, mixing(sufficient, LADDER))[0] <= 1e-12


def test_ends_of_a_router_are_the_coarsest_and_the_finest_scale():
    sufficient = monotone(np.array([0, 1, 2, 3, 4, 5]))
    curve = routed(np.array([0.1, 5.0, 2.0, 3.0, 1.0, 4.0]), sufficient, LADDER)
    assert (curve.tokens[0], curve.tokens[-1]) == (1, 576)
    assert curve.accuracy[0] == pytest.approx(1 / 6) and curve.accuracy[-1] == pytest.approx(5 / 6)
    assert (np.diff(curve.tokens) >= 0).all()


def test_who_predicts_what_is_needed_reaches_the_oracle():
    needs = np.random.default_rng(0).integers(0, 5, 400)
    sufficient = monotone(needs)
    curve = routed(np.log(np.array(LADDER))[needs], sufficient, LADDER)
    best = ceiling(sufficient, LADDER)
    spent = float(np.array(LADDER)[needs].mean())
    assert curve.at(spent) == pytest.approx(1.0) and best.at(spent) == pytest.approx(1.0)
    assert best.at(spent / 2) < 1
    assert gap_closed(spent, 1.0, mixing(sufficient, LADDER), best) == pytest.approx(1.0)


def test_oracle_leaves_the_unsolved_at_the_coarsest_scale():
    sufficient = monotone(np.array([5, 5, 5, 2]))
    best = ceiling(sufficient, LADDER)
    assert best.tokens[-1] == pytest.approx((1 + 1 + 1 + 36) / 4) and best.accuracy[-1] == 0.25


@settings(max_examples=60, deadline=None)
@given(SUFFICIENT, st.integers(0, 10_000))
def test_no_choice_of_scales_is_above_the_ceiling(sufficient: np.ndarray, seed: int):
    best = ceiling(sufficient, LADDER)
    for scales in np.random.default_rng(seed).integers(0, 5, (50, len(sufficient))):
        tokens, accuracy = outcome(scales, sufficient, LADDER)
        assert accuracy <= best.at(tokens) + 1e-9


def test_what_stays_is_no_ceiling():
    """Right at 1 token and wrong at 9, as luck has it: a route to 1 beats who waits for what stays."""
    sufficient = np.array([[True, False, False, True, True]] * 2)
    assert stays(sufficient, LADDER).accuracy[0] == ceiling(sufficient, LADDER).accuracy[0] == 1
    sufficient = np.array([[False, True, False, False, True], [False, True, False, False, False]])
    lucky = outcome(np.array([1, 1]), sufficient, LADDER)
    assert lucky == (9, 1.0) and ceiling(sufficient, LADDER).at(9) == 1
    assert stays(sufficient, LADDER).at(9) < 0.1 and stays(sufficient, LADDER).accuracy[-1] == 0.5


def test_tokens_for_an_accuracy():
    curve = upper_hull([1, 9, 36], [0.2, 0.6, 0.8])
    assert curve.tokens_for(0.6) == 9 and curve.tokens_for(0.4) == pytest.approx(5)
    assert curve.tokens_for(0.2) == 1 and np.isnan(curve.tokens_for(0.9))
    assert upper_hull([1, 9, 36], [0.2, 0.6, 0.5]).tokens.tolist() == [1, 9]


def test_log_mean_of_a_constant_is_the_constant():
    assert Curve(np.array([1.0, 576.0]), np.array([0.7, 0.7])).log_mean(1, 576) == pytest.approx(0.7)


def test_many_points_are_thinned_but_ends_stay():
    rng = np.random.default_rng(1)
    sufficient = monotone(rng.integers(0, 6, 5000))
    curve = routed(rng.uniform(0, 6, 5000), sufficient, LADDER)
    assert len(curve.tokens) < 500 and (curve.tokens[0], curve.tokens[-1]) == (1, 576)


@pytest.fixture
def curves() -> dict[str, Curve]:
    sufficient = monotone(np.random.default_rng(2).integers(0, 6, 200))
    return {
        "fixed scales": fixed_scales(sufficient, LADDER),
        "random mixing": mixing(sufficient, LADDER),
        "oracle": ceiling(sufficient, LADDER),
        "image only": routed(np.random.default_rng(3).uniform(0, 6, 200), sufficient, LADDER),
        "image only, by margin": routed(np.random.default_rng(4).uniform(0, 6, 200), sufficient, LADDER),
    }


def test_numbers_as_csv(curves: dict[str, Curve], tmp_path: Path):
    write_csv(curves, tmp_path / "f.csv")
    table = pd.read_csv(tmp_path / "f.csv")
    assert list(table) == ["curve", "mean_tokens", "accuracy", "accuracy_kept"]
    assert dict(table["curve"].value_counts()) == {name: len(curve.tokens) for name, curve in curves.items()}
    fixed = table[table["curve"] == "fixed scales"].set_index("mean_tokens")
    assert fixed["accuracy_kept"][576.0] == 1.0


def test_picture(curves: dict[str, Curve], tmp_path: Path):
    pytest.importorskip("matplotlib")
    write_png(curves, tmp_path / "f.png", "A title", {"certified 2%": (40.0, 0.5)})
    with Image.open(tmp_path / "f.png") as image:
        assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_without_matplotlib_the_pip_line_is_told(
    curves: dict[str, Curve], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"m3score\[plot\]"):
        write_png(curves, tmp_path / "f.png", "A title")
    assert not list(tmp_path.iterdir())


def test_priced_without_knowledge_is_random_mixing_and_with_it_leads():
    needs = np.random.default_rng(4).integers(0, 6, 2000)
    sufficient = monotone(needs)
    mix = mixing(sufficient, LADDER)
    blind = np.full(len(needs), 3.0)
    curve = priced(SufficiencyCurve.of(blind, sufficient).at(blind), sufficient, LADDER)
    np.testing.assert_allclose(curve.accuracy, mix.at(curve.tokens))
    seeing = np.log(np.array([*LADDER, 576]))[needs] + np.random.default_rng(5).normal(0, 0.5, len(needs))
    half = np.arange(len(needs)) < 1000
    chances = SufficiencyCurve.of(seeing[half], sufficient[half])
    curve = priced(chances.at(seeing[~half]), sufficient[~half], LADDER)
    least, mean = lead(curve, mixing(sufficient[~half], LADDER))
    assert least > -0.01 and mean > 0.1
    assert curve.tokens[0] == 1 and (np.diff(curve.tokens) >= 0).all()
    free = curve.tokens[-1], curve.accuracy[-1]  # free tokens are spent only where they may help
    assert free[0] < 400 and free[1] > sufficient[~half, -1].mean() - 0.01
    by_margin = routed(seeing[~half], sufficient[~half], LADDER)
    assert curve.log_mean(1, 576) > by_margin.log_mean(1, 576)


@settings(max_examples=60, deadline=None)
@given(SUFFICIENT, st.integers(0, 1000))
def test_chances_fall_with_the_prediction(sufficient: np.ndarray, seed: int):
    many = np.tile(sufficient, (8, 1))
    predictions = np.random.default_rng(seed).uniform(0, 6, len(many))
    chances = SufficiencyCurve.of(predictions, many)
    assert (np.diff(chances.chance, axis=0) <= 1e-12).all()
    at = chances.at(predictions)
    assert at.shape == many.shape and ((at >= 0) & (at <= 1)).all()


@settings(max_examples=60, deadline=None)
@given(SUFFICIENT, st.integers(1, 4), st.integers(0, 1000))
def test_who_knows_the_gains_of_groups_is_never_below_random_mixing(
    sufficient: np.ndarray, groups: int, seed: int
):
    """In-sample, and with the very shares of each group as what scales are worth to it."""
    group = np.random.default_rng(seed).integers(groups, size=len(sufficient))
    utility = np.stack([sufficient[group == own].mean(axis=0) for own in group])
    curve = priced(utility - utility[:, :1], sufficient, LADDER)  # only differences count
    mix = mixing(sufficient, LADDER)
    assert (curve.accuracy >= mix.at(curve.tokens) - 1e-7).all()
    assert curve.accuracy[-1] >= sufficient.mean(axis=0).max() - 1e-7  # nobody pays for nothing
    for budget in (1, 9, 30, 200, 576):
        price = price_for(budget, utility, LADDER)
        assert np.array(LADDER)[levels(utility, price, LADDER)].mean() <= budget


@settings(max_examples=40, deadline=None)
@given(SUFFICIENT)
def test_what_is_spent_is_the_ladder_where_nothing_else_is_said(sufficient: np.ndarray) -> None:
    spent = np.tile(np.array(LADDER, float), (len(sufficient), 1))
    predictions = np.linspace(0, 6, len(sufficient))
    utility = sufficient + np.linspace(0, 0.5, 5)
    pairs = [
        (fixed_scales(sufficient, LADDER), fixed_scales(sufficient, LADDER, spent)),
        (mixing(sufficient, LADDER), mixing(sufficient, LADDER, spent)),
        (ceiling(sufficient, LADDER), ceiling(sufficient, LADDER, spent)),
        (stays(sufficient, LADDER), stays(sufficient, LADDER, spent)),
        (routed(predictions, sufficient, LADDER), routed(predictions, sufficient, LADDER, spent=spent)),
        (priced(utility, sufficient, LADDER), priced(utility, sufficient, LADDER, spent)),
    ]
    for plain, told in pairs:
        between = np.linspace(1.1, 575.9, 41)
        np.testing.assert_allclose(plain.at(between), told.at(between), atol=1e-9)


def test_a_small_picture_is_cheap_at_every_budget() -> None:
    sufficient = np.array([[False, False, False, False, True]] * 2)
    spent = np.array([[1, 9, 36, 144, 576], [1, 9, 20, 20, 20]], float)
    assert ceiling(sufficient, LADDER, spent).tokens_for(0.5) == pytest.approx((1 + 20) / 2)
    assert fixed_scales(sufficient, LADDER, spent).tokens[-1] == pytest.approx(298)
    assert outcome(np.array([4, 4]), sufficient, LADDER, spent) == (298, 1.0)
    worth = sufficient.astype(float)
    assert levels(worth, 1.5, LADDER, spent).tolist() == [0, 4]  # dear: only the small picture is raised
