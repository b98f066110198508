"""Predictors as values: what they predict and promise, and parts that do not fit together."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3score.common.errors import M3ScoreError
from m3score.routing.decision import Wish
from m3score.routing.features.image import IMAGE_FEATURES
from m3score.routing.features.question import QUESTION_FEATURES
from m3score.routing.predictor import Predictor, clip_predictions
from m3score.routing.promises.certify import regrets_at
from m3score.routing.record import CalibrationRecord
from m3score.routing.regression.demands import Demands
from tests.support.predictors import LADDER, demands, made_up, small_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return small_predictor()


def test_predictions_lie_on_the_ladder_and_see_the_question(predictor: Predictor) -> None:
    fresh = made_up(500, seed=3)
    alone = predictor.predict(fresh.images)
    asked = predictor.predict(fresh.images, fresh.questions)
    assert alone.dtype == np.float32 and alone.shape == (500,)
    assert alone.min() >= 0 and alone.max() <= np.float32(np.log(576))
    need = np.where(fresh.sufficient.any(axis=1), fresh.sufficient.argmax(axis=1), len(LADDER))
    assert np.corrcoef(asked, need)[0, 1] > np.corrcoef(alone, need)[0, 1] > 0.6
    assert np.array_equal(predictor.predict(fresh.images[7]), alone[7:8])  # one row is one image
    complexity = predictor.complexity(alone)
    assert complexity.min() >= 0 and complexity.max() <= 1
    assert predictor.complexity(np.log(LADDER))[[0, -1]].tolist() == [0, 1]


def test_margins_are_certified_per_level_without_fitting(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it would now fail
    record = predictor.calibration
    tokens = []
    for with_question in (False, True):
        for max_drop in (0.01, 0.02, 0.05, 0.2):
            found = predictor.certificate(max_drop, 0.9, with_question=with_question)
            assert found.certified and found.images == 600 and found.p_value <= 0.1
            regrets = regrets_at(
                record.predictions(with_question), record.sufficient, found.margin, predictor.ladder
            )
            assert found.regret == regrets.mean() <= max_drop
            tokens.append(found.mean_tokens or 0.0)
    assert tokens[:4] == sorted(tokens[:4], reverse=True) and tokens[4:] == sorted(tokens[4:], reverse=True)
    assert tokens[5] < tokens[1]  # at max_drop=0.02 the question saves tokens
    assert predictor.certificate(0.02) is predictor.certificate(0.02)
    strict, lax = (predictor.certificate(0.02, confidence).margin for confidence in (0.99, 0.6))
    assert strict > lax


def test_certified_routing_keeps_its_promise_over_random_splits() -> None:
    """As in test_certify.py, but through the predictor: 200 splits into calibration and test images."""
    plain = small_predictor(calibration=10_000)
    record = plain.calibration
    random, broken = np.random.default_rng(5), 0
    for _ in range(200):
        order = random.permutation(10_000)
        known, test = order[:500], order[500:]
        half = CalibrationRecord(record.image_only[known], None, record.sufficient[known])
        split = replace(plain, calibration=half, with_question=None)
        predictions, sufficient = record.image_only[test], record.sufficient[test]
        routed = split.route(predictions, max_drop=0.05, confidence=0.9)
        position = np.searchsorted(LADDER, routed)
        kept = sufficient[np.arange(len(test)), position]
        broken += (sufficient[:, -1] & ~kept).mean() > 0.05
    assert 0 < broken / 200 <= 0.1 + 2.5 * np.sqrt(0.1 * 0.9 / 200)


def test_nothing_certified_is_the_finest_scale_with_a_note() -> None:
    poor = small_predictor(calibration=100)
    found = poor.certificate(0.02, 0.95)
    assert not found.certified and found.mean_tokens == 576
    assert "at least 149 calibration images, and there are 100" in found.note
    assert poor.route(np.zeros(3)).tolist() == [576] * 3
    assert poor.route(np.zeros(3), max_drop=None).tolist() == [1] * 3
    assert poor.route(np.zeros(3), max_drop=0.2).max() < 576


def test_useless_predictions_certify_the_finest_scale_only() -> None:
    plain = small_predictor()
    hard = np.zeros((600, 5), dtype=bool)
    hard[:, -1] = True
    record = replace(plain.calibration, sufficient=hard, image_only=np.zeros(600, dtype=np.float32))
    found = replace(plain, calibration=record).certificate()
    assert found.certified and found.mean_tokens == 576 and "Only always taking the finest" in found.note


def test_image_only_predictor_says_so() -> None:
    alone = small_predictor(with_question=False)
    fresh = made_up(3)
    for call in (
        lambda: alone.predict(fresh.images, fresh.questions),
        lambda: alone.certificate(with_question=True),
        lambda: alone.route(np.zeros(3), with_question=True),
    ):
        with pytest.raises(M3ScoreError, match="fitted on images alone: leave the question out"):
            call()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ladder": (1, 9, 36, 144)}, "each of the 4 scales"),
        ({"ladder": (576, 144, 36, 9, 1)}, "is no ladder"),
        ({"ladder": (1, 9, 9, 144, 576)}, "is no ladder"),
        ({"ladder": (0, 9, 36, 144, 576)}, "is no ladder"),
        ({"ladder": ()}, "is no ladder"),
        ({"ladder": (True, 9, 36, 144, 576)}, "is no ladder"),
        ({"feature_version": 99}, "feature version 99, but this m3score computes"),
        ({"feature_set": "sounds"}, "unknown feature set 'sounds'; allowed: pixels, vision"),
        ({"image_features": IMAGE_FEATURES[::-1]}, "image features are not those"),
        ({"question_features": QUESTION_FEATURES[:-1]}, "question features are not those"),
        ({"feature_set": "vision", "image_features": ("one",)}, "features, but 1 are named"),
        ({"with_question": None}, "with_question needs its calibration"),
    ],
)
def test_parts_that_do_not_fit_together(predictor: Predictor, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(M3ScoreError, match=message):
        replace(predictor, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_only": np.zeros(5, dtype=np.float32)}, "one float32 prediction for every row"),
        ({"image_only": np.zeros(600)}, "one float32 prediction for every row"),
        ({"image_only": np.full(600, np.nan, dtype=np.float32)}, "between 0 and ln"),
        ({"with_question": np.full(600, 7, dtype=np.float32)}, "between 0 and ln"),
        ({"sufficient": np.zeros((600, 5), dtype=np.uint8)}, "true or false"),
        ({"sufficient": np.zeros(600, dtype=bool)}, "true or false"),
    ],
)
def test_calibration_that_does_not_fit(predictor: Predictor, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(M3ScoreError, match=message):
        replace(predictor, calibration=replace(predictor.calibration, **changes))


@pytest.mark.parametrize("shape", [(3, 2), (0,), (2, len(IMAGE_FEATURES) + 1)])
def test_features_of_another_shape(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(M3ScoreError, match="features must have shape"):
        predictor.predict(np.zeros(shape))
    with pytest.raises(M3ScoreError, match="need as many questions"):
        predictor.predict(np.zeros((3, len(IMAGE_FEATURES))), np.zeros((2, len(QUESTION_FEATURES))))


def test_vision_predictor_has_features_of_its_own(predictor: Predictor, tmp_path: Path) -> None:
    names = tuple(f"tower_{i}" for i in range(len(IMAGE_FEATURES)))
    vision = replace(predictor, feature_set="vision", image_features=names)
    vision.save(tmp_path / "v.predictor")
    assert Predictor.load(tmp_path / "v.predictor").image_features == names


def test_clipping_keeps_to_the_ladder() -> None:
    clipped = clip_predictions([-3.0, 1.0, 99.0], LADDER)
    assert clipped.dtype == np.float32 and clipped.tolist() == [0.0, 1.0, np.float32(np.log(576))]


def test_decide_says_of_many_rows_what_each_says_alone(predictor: Predictor) -> None:
    fresh = made_up(40, seed=6)
    for asked in (None, fresh.questions):
        wish = Wish(max_drop=0.05, spread=True)
        found = predictor.decide(fresh.images, asked, wish)
        predicted = predictor.predict(fresh.images, asked)
        routed = predictor.route(predicted, max_drop=0.05, with_question=asked is not None)
        np.testing.assert_array_equal(found.tokens, routed)
        np.testing.assert_array_equal(found.complexity, predictor.complexity(predicted))
        np.testing.assert_array_equal(found.spread, predictor.spread(fresh.images, asked))
        assert found.certified.all() and found.certificate == predictor.certificate(
            0.05, with_question=asked is not None
        )
        one = predictor.decide(fresh.images[3], None if asked is None else asked[3], wish)
        assert one.tokens[0] == found.tokens[3] and one.complexity is not None
        assert found.complexity is not None and one.complexity[0] == found.complexity[3]


def test_without_a_question_complexity_is_the_vision_score(predictor: Predictor) -> None:
    rows = made_up(6).images
    looking = replace(
        predictor, vision=demands(lambda images: 2 + images[:, 3], lambda images: 2 + images[:, 4])
    )
    found = looking.decide(rows, wish=Wish(spread=True))
    predicted = clip_predictions(looking.vision.predict(rows), LADDER)  # type: ignore[union-attr]
    assert found.complexity is not None and found.spread is not None
    np.testing.assert_array_equal(found.complexity, predicted.astype(float) / np.log(576))
    np.testing.assert_array_equal(found.spread, looking.vision.spread(rows))  # type: ignore[union-attr]
    plain = predictor.decide(rows, wish=Wish(spread=True))  # a file without: what answers need
    np.testing.assert_array_equal(plain.complexity, predictor.complexity(predictor.predict(rows)))
    assert not np.array_equal(found.complexity, plain.complexity)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.tokens, plain.tokens)  # routing is of answers, as ever
    asked = made_up(6).questions
    np.testing.assert_array_equal(
        looking.decide(rows, asked).complexity, predictor.decide(rows, asked).complexity
    )


def test_the_regressor_of_the_vision_score_must_fit_and_is_kept(predictor: Predictor, tmp_path: Path) -> None:
    looking = replace(predictor, vision=demands(lambda images: images[:, 0], lambda images: images[:, 1]))
    looking.save(tmp_path / "a.predictor")
    again = Predictor.load(tmp_path / "a.predictor")
    rows = made_up(50, seed=4).images
    np.testing.assert_array_equal(again.predict_vision(rows), looking.predict_vision(rows))
    np.testing.assert_array_equal(again.spread_vision(rows), looking.spread_vision(rows))
    predictor.save(tmp_path / "b.predictor")
    assert Predictor.load(tmp_path / "b.predictor").vision is None
    with pytest.raises(M3ScoreError, match="vision takes 158 features, but 75 are named"):
        replace(predictor, vision=Demands(predictor.with_question, predictor.with_question))  # type: ignore[arg-type]


def test_promises_per_question_need_all_questions(predictor: Predictor) -> None:
    found = predictor.certificate(0.2, per="question")
    assert not found.certified and "calibrate anew for one per question" in found.note
    assert predictor.route(np.zeros(3), max_drop=0.2, per="question").tolist() == [576] * 3
    whole = small_predictor(questions=4)
    for with_question in (False, True):
        found = whole.certificate(0.2, with_question=with_question, per="question")
        asked = whole.calibration.questions
        assert asked is not None and found.certified and found.images == 600
        regrets = regrets_at(asked.predictions(with_question), asked.sufficient, found.margin, LADDER)
        assert found.regret == regrets.mean() < 0.2 and "per question" in found.note
    with pytest.raises(M3ScoreError, match="unknown promise 'picture'; allowed: image, question"):
        whole.certificate(per="picture")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most": 1}, "more than 1 questions"),
        ({"image": np.zeros(1, np.int32)}, "must name their images"),
        ({"image": np.repeat(np.arange(1, 601, dtype=np.int32), 2)}, "must name their images"),
        ({"image_only": np.zeros(3, np.float32)}, "one float32 prediction for every row"),
        ({"with_question": None}, "with_question needs its calibration"),
    ],
)
def test_questions_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    whole = small_predictor(questions=2)
    assert whole.calibration.questions is not None
    broken = replace(whole.calibration.questions, **changes)
    with pytest.raises(M3ScoreError, match=message):
        replace(whole, calibration=replace(whole.calibration, questions=broken))
