"""Fitting: a predictor that sees what matters beats its baselines on images that it never saw."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3score.calibration.predictor.card import write_card
from m3score.calibration.predictor.fit import (
    CANDIDATES,
    Fitted,
    _some_images,
    better_by_gains,
    fit_predictor,
    small_loss_margin,
    train_gains,
)
from m3score.calibration.predictor.judge import bootstrap, judge
from m3score.calibration.predictor.labels import Labels
from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.calibration.predictor.vision_score import VisionLabels
from m3score.common.errors import M3ScoreError
from m3score.routing.features.image import IMAGE_FEATURES
from m3score.routing.predictor import Predictor, clip_predictions
from m3score.routing.promises.frontier import lead, mixing, priced
from m3score.routing.regression.ensemble import Ensemble
from m3score.routing.regression.gains import over_coarsest, shrunk, steps_of
from m3score.routing.regression.prices import SufficiencyCurve

LADDER = (1, 9, 36, 144, 576)
ASKED = ("What color is it?", "Read the small text in the picture.")


def made_up(images: int, seed: int, noise: float = 0.5, model: str = "made up") -> Labels:
    """Images whose need rises with their first feature; reading needs one scale more; some are unsolved."""
    rng = np.random.default_rng(seed)
    detail = rng.uniform(0, 4, images)
    features = rng.normal(size=(images, len(IMAGE_FEATURES))).astype(np.float32)
    features[:, 0] = detail
    rows = np.repeat(np.arange(images), 2)
    reading = np.tile([0.0, 1.0], images)
    needs = np.round(detail[rows] - 0.5 + reading + noise * rng.normal(size=len(rows)))
    sufficient = np.arange(5)[None, :] >= needs[:, None]
    sufficient[rng.random(len(rows)) < 0.1] = False
    names = np.array([f"{seed}/{i}" for i in rows], object)
    return Labels(
        model=model,
        ladder=LADDER,
        images=names,
        keys=names.copy(),
        questions=np.array(ASKED * images, object),
        sizes=np.full((len(rows), 2), 336),
        features=features[rows],
        sufficient=sufficient,
        by_truth=np.ones(len(rows), bool),
        sources=np.array([f"stream {seed}"] * len(rows), object),
        spent=np.tile(np.array(LADDER, float), (len(rows), 1)),
    )


def vision_labels(pictures: int) -> VisionLabels:
    """Pictures whose vision score follows two features."""
    features = np.random.default_rng(3).normal(size=(pictures, len(IMAGE_FEATURES))).astype(np.float32)
    names = np.array([f"v/{i}" for i in range(pictures)], object)
    distinct = np.exp(3.0 + 0.4 * features[:, 1].astype(float))
    reading = np.exp(3.0 + features[:, 2].astype(float)) * (features[:, 2] > 0.5)
    return VisionLabels(names, features, distinct, reading, np.array(["made up"] * pictures, object))


@pytest.fixture(scope="module", autouse=True)
def fewer_candidates():
    """Two are enough to choose between."""
    kept = dict(CANDIDATES)
    for name in ("trees", "trees, many"):
        CANDIDATES.pop(name)
    CANDIDATES["trees, few"] = {"learning_rate": 0.1, "max_iter": 40, "max_leaf_nodes": 7}
    yield
    CANDIDATES.clear()
    CANDIDATES.update(kept)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit_predictor(
        made_up(600, 1),
        fingerprint="a" * 64,
        feature_set="pixels",
        image_features=IMAGE_FEATURES,
        max_drop=0.05,
        tests={"fresh": made_up(400, 2)},
    )


def test_it_leads_the_baselines_on_images_it_never_saw(fitted: Fitted):
    for verdict in fitted.verdicts[1:]:  # the test split is too small to tell
        image_only, both = verdict.forms
        assert image_only.spearman > 0.6 and both.spearman > image_only.spearman + 0.05
        assert both.mean_accuracy > image_only.mean_accuracy
        for form in verdict.forms:
            assert form.mean_lead > 0.03 and form.least_lead > -0.03
            (no_margin,) = (point for point in form.points if point.name == "no margin")
            assert no_margin.accuracy > no_margin.mixing
            assert no_margin.size is not None and no_margin.accuracy > no_margin.size
            assert no_margin.accuracy <= no_margin.oracle
            assert no_margin.gap_closed is not None and 0 < no_margin.gap_closed < 1
            budgets = [point for point in form.points if point.margin is None]
            assert [point.name for point in budgets] == [f"budget of {t}" for t in LADDER[1:-1]]
            for point, tokens in zip(budgets, LADDER[1:-1], strict=True):
                assert point.mean_tokens < 1.15 * tokens and point.accuracy > point.mixing


def test_certified_promises_are_kept_on_fresh_images(fitted: Fitted):
    for form in fitted.verdicts[1].forms:
        first = form.points[0]
        assert first.name == "certified 5%" and first.promised
        assert first.mean_tokens < 576 and first.regret <= 0.05
        assert first.interval[0] <= first.change <= first.interval[1] <= 0.0 + 1e-9
        assert first.saved == pytest.approx(1 - first.mean_tokens / 576)


def test_the_parts_share_nothing_and_calibration_has_one_question_per_image(fitted: Fitted):
    parts = fitted.parts
    assert not {*parts["fit"].keys} & {*parts["calibrate"].keys}
    assert len(fitted.predictor.calibration.sufficient) == len({*parts["calibrate"].keys})


def test_calibration_holds_what_the_predictor_says_itself(fitted: Fitted):
    predictor, drawn = fitted.predictor, fitted.parts["calibrate"].one_per_image(0)
    np.testing.assert_array_equal(predictor.calibration.image_only, predictor.predict(drawn.features))
    both = predictor.predict(drawn.features, drawn.question_features())
    np.testing.assert_array_equal(predictor.calibration.with_question, both)


def test_budgets_are_kept_on_the_images_that_set_their_price(fitted: Fitted):
    predictor, drawn = fitted.predictor, fitted.parts["calibrate"].one_per_image(0)
    for asked in (None, drawn.question_features()):
        gains = predictor.calibration.gains(asked is not None)
        if gains is not None:
            utility = predictor.utility(drawn.features, asked)
            np.testing.assert_array_equal(over_coarsest(gains), utility)
        for budget in (1, 9, 50, 300, 576):
            scales = predictor.route_within(budget, drawn.features, asked)
            assert scales.mean() <= budget and set(scales) <= set(LADDER)


def test_gains_are_taken_where_they_route_better():
    """One number cannot say that some questions gain by few tokens and others by many only."""
    random = np.random.default_rng(0)
    X = random.normal(size=(600, 2))
    kind = (X > 0).astype(int)
    needs = np.where(kind[:, 0] == 1, 0, np.where(kind[:, 1] == 1, 1, 5))  # 5: at no scale
    labels = made_up(300, 9)
    labels = Labels(**{**labels.__dict__, "sufficient": np.arange(5)[None, :] >= needs[:, None]})
    steps = [
        Ensemble.of(ScaleRegressor(max_iter=20).fit(X, gained)) for gained in steps_of(labels.sufficient).T
    ]
    told = shrunk(steps, (X, labels.sufficient), (X, labels.sufficient))
    blind = np.full(600, 3.0)
    assert better_by_gains(told, X, blind, labels)
    nothing = shrunk(steps, (X, labels.sufficient), (-X, labels.sufficient[::-1]))
    assert not better_by_gains(nothing, X, np.log([*LADDER, 576])[needs], labels)


def test_where_nothing_can_be_foreseen_a_budget_buys_the_best_fixed_scale():
    labels = made_up(400, 9)
    shuffled = labels.sufficient[np.random.default_rng(0).permutation(len(labels))]
    blind = Labels(**{**labels.__dict__, "sufficient": shuffled})
    parts = blind.split(0, (0.5, 0.25, 0.25))
    gains = train_gains("image only", parts["fit"], parts["calibrate"], 0)
    test = made_up(2000, 10)
    order = np.random.default_rng(1).permutation(len(test))
    sufficient = test.sufficient[order]
    curve = priced(over_coarsest(gains.predict(test.features)), sufficient, LADDER)
    assert lead(curve, mixing(sufficient, LADDER))[0] > -0.02


def test_candidates_are_listed_best_first_and_the_best_both_ways(fitted: Fitted):
    for tried in fitted.tried.values():
        scores = [one.mean_accuracy for one in tried]
        assert scores == sorted(scores, reverse=True) and len(tried) == len(CANDIDATES) + 1


def test_card_and_file(fitted: Fitted, tmp_path: Path):
    card = write_card(fitted, 0.95, 0.05, "Notes of mine.")
    for text in (
        "Notes of mine.",
        "stream 1",
        "## Result: fresh",
        "gap closed",
        "random mixing",
        "| certified 5%",
    ):
        assert text in card
    replace(fitted.predictor, card=card).save(tmp_path / "x.predictor")
    again = Predictor.load(tmp_path / "x.predictor")
    assert again.card == card and again.data["split_images"]["test"] == len({*fitted.parts["test"].keys})


def test_the_same_labels_give_the_same_predictor(tmp_path: Path):
    small = made_up(60, 4)
    for name in ("a", "b"):
        one = fit_predictor(small, fingerprint="", feature_set="pixels", image_features=IMAGE_FEATURES)
        one.predictor.save(tmp_path / f"{name}.predictor")
    assert (tmp_path / "a.predictor").read_bytes() == (tmp_path / "b.predictor").read_bytes()


def test_images_alone_where_all_are_asked_the_same():
    labels = made_up(80, 5)
    same = Labels(**{**labels.__dict__, "questions": np.array([ASKED[0]] * len(labels), object)})
    found = fit_predictor(same, fingerprint="", feature_set="pixels", image_features=IMAGE_FEATURES)
    assert found.predictor.with_question is None and len(found.verdicts[0].forms) == 1


def test_a_regressor_of_the_vision_score_is_fitted_where_enough_is_known_of_it():
    labels = made_up(80, 7)
    how = {"fingerprint": "", "feature_set": "pixels", "image_features": IMAGE_FEATURES}
    assert fit_predictor(labels, **how).predictor.vision is None  # type: ignore[arg-type]
    seen = vision_labels(400)
    found = fit_predictor(labels, vision=seen, **how)  # type: ignore[arg-type]
    assert found.predictor.vision is not None and 250 < found.predictor.data["vision_pictures"] < 350
    (verdict,) = found.vision
    held = seen.split(0, (0.6, 0.2, 0.2))["test"]
    assert verdict.pictures == len(held) and verdict.spearman > 0.9
    card = write_card(found, 0.95, 0.02)
    assert f"| made up | {len(held)} | {verdict.spearman:.2f} |" in card
    few = fit_predictor(labels, vision=vision_labels(90), **how)  # type: ignore[arg-type]
    assert few.predictor.vision is None and few.vision == []
    assert "does not know the vision score" in write_card(few, 0.95, 0.02)


def test_what_cannot_be_fitted():
    none = made_up(40, 6)
    unsolved = Labels(**{**none.__dict__, "sufficient": np.zeros_like(none.sufficient)})
    how = {"fingerprint": "", "feature_set": "pixels", "image_features": IMAGE_FEATURES}
    with pytest.raises(M3ScoreError, match="no question is solved"):
        fit_predictor(unsolved, **how)  # type: ignore[arg-type]
    with pytest.raises(M3ScoreError, match="fitted or calibrated on"):
        fit_predictor(none, tests={"again": none}, **how)  # type: ignore[arg-type]


def test_small_loss_margin_spends_least_within_the_loss():
    labels = made_up(500, 7)
    predicted = clip_predictions(labels.features[:, 0] * math.log(576) / 4, LADDER)
    margin = small_loss_margin(predicted, labels, 0.02)
    utility = {"image only": SufficiencyCurve.of(predicted, labels.sufficient).at(predicted)}
    verdict = judge("x", labels, {"image only": predicted}, {"image only": [("m", margin, None)]}, utility)
    (point,) = verdict.forms[0].points
    assert -0.02 <= point.change < 0 and point.mean_tokens < 576


def test_bootstrap_draws_images_not_questions():
    values = np.array([0.0, 1.0] * 100)
    low, high = bootstrap(values, np.repeat(np.arange(100), 2).astype(object))
    assert low == high == 0.5  # every image has the same mean
    low, high = bootstrap(values, np.arange(200).astype(object))
    assert 0.4 < low < 0.5 < high < 0.6


def test_the_choice_is_made_on_whole_images_and_not_on_more_than_it_needs():
    labels = made_up(50, 3)
    some = _some_images(labels, 41, seed=1)
    chosen = set(labels.keys[some])
    assert len(some) == 42
    assert sorted(np.flatnonzero(np.isin(labels.keys, list(chosen)))) == sorted(some)
    assert len(chosen) < len(set(labels.keys))
