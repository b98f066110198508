"""Small predictors for tests: fitted to made-up features, so that no picture is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m3score.calibration.predictor.regressor import ScaleRegressor
from m3score.routing.features.image import IMAGE_FEATURES
from m3score.routing.features.question import QUESTION_FEATURES
from m3score.routing.predictor import Predictor, clip_predictions
from m3score.routing.record import CalibrationRecord, QuestionRecord
from m3score.routing.regression.demands import Demands
from m3score.routing.regression.ensemble import Ensemble
from m3score.routing.regression.gains import Gains, shrunk, steps_of

LADDER = (1, 9, 36, 144, 576)


@dataclass(frozen=True)
class MadeUp:
    """Features and what sufficed: needs follow a feature of the image and one of the question."""

    images: np.ndarray
    questions: np.ndarray
    sufficient: np.ndarray

    @property
    def both(self) -> np.ndarray:
        """Image and question features side by side."""
        return np.hstack([self.images, self.questions])


def made_up(n: int, seed: int = 0, noise: float = 1.0) -> MadeUp:
    """n images with one question each; about one in ten is not solved."""
    random = np.random.default_rng(seed)
    images = random.normal(size=(n, len(IMAGE_FEATURES))).astype(np.float32)
    questions = random.normal(size=(n, len(QUESTION_FEATURES))).astype(np.float32)
    need = 3 + 1.5 * images[:, 0] + questions[:, 0] + noise * random.normal(size=n)
    return MadeUp(images, questions, np.log(LADDER) >= need[:, None])


def trained(target: Callable[[np.ndarray], np.ndarray], n: int = 400) -> Ensemble:
    """A regressor of a number that image features tell; `target` gets (n, features)."""
    images = made_up(n, seed=9).images
    return Ensemble.of(ScaleRegressor(max_iter=20).fit(images, target(images)))


def demands(
    distinct: Callable[[np.ndarray], np.ndarray], reading: Callable[[np.ndarray], np.ndarray]
) -> Demands:
    """Regressors of the two demands of the vision score."""
    return Demands(trained(distinct), trained(reading))


def small_predictor(
    *,
    calibration: int = 600,
    with_question: bool = True,
    gains: bool = False,
    questions: int = 0,
    **changes: Any,
) -> Predictor:
    """Fitted to 400 images, calibrated on others; `changes` are fields of Predictor.

    `questions`: how many about each calibration image are kept for promises per question.
    """
    fit, drawn = made_up(400, seed=1), made_up(calibration, seed=2)
    unsolved = ~fit.sufficient.any(axis=1)
    y = np.where(unsolved, math.log(LADDER[-1]), np.log(LADDER)[fit.sufficient.argmax(axis=1)])

    def fitted(X: np.ndarray) -> Ensemble:
        return Ensemble.of(ScaleRegressor(max_iter=20).fit(X, y, unsolved))

    image_only, both = fitted(fit.images), fitted(fit.both) if with_question else None

    def learnt(X: np.ndarray, held: np.ndarray) -> Gains:
        gained = steps_of(fit.sufficient).T
        steps = [Ensemble.of(ScaleRegressor(max_iter=10, max_leaf_nodes=7).fit(X, y)) for y in gained]
        return shrunk(steps, (X, fit.sufficient), (held, drawn.sufficient))

    more: dict[str, Any] = {}
    if gains:
        more["image_only_gains"] = learnt(fit.images, drawn.images)
        more["with_question_gains"] = learnt(fit.both, drawn.both) if with_question else None
    record = CalibrationRecord(
        image_only=clip_predictions(image_only.predict(drawn.images), LADDER),
        with_question=None if both is None else clip_predictions(both.predict(drawn.both), LADDER),
        sufficient=drawn.sufficient,
        gains_image_only=more["image_only_gains"].predict(drawn.images) if gains else None,
        gains_with_question=more["with_question_gains"].predict(drawn.both) if gains and both else None,
    )
    if questions:
        asked = made_up(calibration * questions, seed=3)
        held = QuestionRecord(
            image=np.repeat(np.arange(calibration, dtype=np.int32), questions),
            most=questions,
            image_only=clip_predictions(image_only.predict(asked.images), LADDER),
            with_question=None if both is None else clip_predictions(both.predict(asked.both), LADDER),
            sufficient=asked.sufficient,
        )
        record = replace(record, questions=held)
    settings: dict[str, Any] = {
        "model": "m3-tiny",
        "fingerprint": "0" * 64,
        "ladder": LADDER,
        "feature_set": "pixels",
        "image_features": IMAGE_FEATURES,
        "question_features": QUESTION_FEATURES if with_question else (),
        "image_only": image_only,
        "with_question": both,
        "calibration": record,
        "data": {"images": 1000, "seed": 1},
        "card": "# A predictor\n\nMade up, für Tests.\n",
    }
    return Predictor(**settings | more | changes)
