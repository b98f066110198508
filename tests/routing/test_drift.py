"""Drift: silent on more of the same, loud when pictures or the model's needs change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from m3score.common.errors import M3ScoreError
from m3score.routing.predictor import Predictor
from m3score.routing.promises.certify import regrets_at
from m3score.routing.promises.drift import Drift, check_drift
from tests.support.predictors import LADDER, MadeUp, made_up, small_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return small_predictor(calibration=800)


def checked(predictor: Predictor, fresh: MadeUp, **levels: float) -> Drift:
    predictions = predictor.predict(fresh.images, fresh.questions)
    return check_drift(predictor, predictions, fresh.sufficient, with_question=True, **levels)


def test_more_of_the_same_rarely_alarms(predictor: Predictor) -> None:
    """1 - confidence bounds the false alarms given a calibration that is itself a draw."""
    alarms = 0
    for seed in range(80):
        calibration = made_up(300, seed=1000 + seed)
        predictions = predictor.predict(calibration.images)
        record = type(predictor.calibration)(predictions, None, calibration.sufficient)
        again = _with(predictor, record)
        fresh = made_up(200, seed=5000 + seed)
        found = check_drift(again, again.predict(fresh.images), fresh.sufficient, confidence=0.9)
        assert found.drifted == (found.p_value <= 0.1)
        alarms += found.drifted
    assert alarms / 80 <= 0.1 + 2.5 * np.sqrt(0.09 / 80)


def _with(predictor: Predictor, record: object) -> Predictor:
    return replace(predictor, calibration=record, with_question=None)  # type: ignore[arg-type]


def test_other_pictures_are_drift_though_they_need_what_is_predicted(predictor: Predictor) -> None:
    fresh = made_up(2000, seed=7)
    harder = fresh.images[:, 0] > 0.5
    found = checked(
        predictor, MadeUp(fresh.images[harder], fresh.questions[harder], fresh.sufficient[harder])
    )
    assert found.drifted and found.prediction_p_value < 1e-6
    assert found.p_value == pytest.approx(2 * min(found.prediction_p_value, found.residual_p_value))
    assert found.note.startswith("Drift (p = ") and found.note.endswith("Calibrate anew on such images.")


def test_same_pictures_that_need_more_are_drift(predictor: Predictor) -> None:
    fresh = made_up(600, seed=8)
    worse = MadeUp(fresh.images, fresh.questions, np.roll(fresh.sufficient, 1, axis=1))
    worse.sufficient[:, 0] = False
    found = checked(predictor, worse)
    assert found.drifted and found.residual_p_value < 1e-6 < 0.05 < found.prediction_p_value
    assert found.regret > 0.02 and found.regret_p_value < 0.01 and "the promise is broken" in found.note


def test_unsolved_questions_count_as_needing_more_than_all(predictor: Predictor) -> None:
    """They are censored, but their number is evidence: turning solved ones into unsolved is seen."""
    fresh = made_up(600, seed=9)
    lost = fresh.sufficient.copy()
    lost[::3] = False
    found = checked(predictor, MadeUp(fresh.images, fresh.questions, lost))
    assert found.residual_p_value < 1e-3 and found.regret_p_value > 0.05  # nothing to regret: all is lost


def test_result_holds_what_it_was_made_of(predictor: Predictor) -> None:
    fresh = made_up(400, seed=10)
    found = checked(predictor, fresh, max_drop=0.05, confidence=0.9)
    predictions = predictor.predict(fresh.images, fresh.questions)
    certificate = predictor.certificate(0.05, 0.9, with_question=True)
    regrets = regrets_at(predictions, fresh.sufficient, certificate.margin, LADDER)
    assert (found.regret, found.margin, found.images) == (regrets.mean(), certificate.margin, 400)
    assert not found.drifted and found.note.startswith("No sign of drift (p = ")
    assert found.to_dict()["confidence"] == 0.9 and set(found.to_dict()) == set(Drift.__annotations__)


def test_arrays_that_do_not_fit_are_refused(predictor: Predictor) -> None:
    enough = np.ones((3, 5), dtype=bool)
    for predictions, sufficient in (
        (np.zeros(2), enough),
        (np.zeros(3), enough[:, :4]),
        (np.zeros(3), enough.astype(int)),
        (np.zeros((3, 1)), enough),
        (np.zeros(0), enough[:0]),
    ):
        with pytest.raises(M3ScoreError, match="drift needs at least one image"):
            check_drift(predictor, predictions, sufficient)
    with pytest.raises(M3ScoreError, match="no calibration images to compare with"):
        check_drift(small_predictor(calibration=0), np.zeros(3), enough)
