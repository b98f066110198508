"""A fitted predictor as a value: regressors, the calibration that certifies their margins, and whom they
route.

Knows feature vectors, no images (predict.py) and no files (codec.py). A predictor has one or two
forms, image alone and image with question, and both were calibrated on the same questions.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.routing import codec
from m3score.routing.decision import DEFAULT, Decision, Wish
from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES
from m3score.routing.features.question import QUESTION_FEATURES
from m3score.routing.promises import certify
from m3score.routing.promises.certify import Certificate
from m3score.routing.promises.familiar import Familiarity
from m3score.routing.record import (
    NO_QUESTIONS,
    CalibrationRecord,
    QuestionRecord,
    check_questions,
    check_record,
)
from m3score.routing.regression.demands import Demands
from m3score.routing.regression.ensemble import Ensemble
from m3score.routing.regression.gains import Gains, over_coarsest
from m3score.routing.regression.prices import SufficiencyCurve, levels, price_for
from m3score.routing.target import Target, TokenRequest, m3_request
from m3score.scoring.rules import check_choice
from m3score.tables.schema import printable

FEATURE_SETS = ("pixels", "vision")
"""What image features are made of: the picture (image.py), or the model's own vision tower."""

_ONE_PER_IMAGE = (
    "Nothing certified, so always the finest scale: this predictor's calibration holds one question of each "
    "image, which allows promises per image only; calibrate anew for one per question."
)
_NO_PRICES = "this predictor holds no calibration, so it knows no prices of tokens."


@dataclass(frozen=True, eq=False)
class Predictor:
    """From features to ln(tokens) to a scale, for one model. Checks itself when it is made (M3ScoreError)."""

    model: str
    """Name of the target model: the one that it routes."""
    fingerprint: str
    """And by the hash of its weights; see fingerprint.py."""
    ladder: tuple[int, ...]
    """Tokens per grid, coarsest first."""
    feature_set: str
    """One of FEATURE_SETS."""
    image_features: tuple[str, ...]
    question_features: tuple[str, ...]
    """Names of the features; those of the question may be () where there is no second form."""
    image_only: Ensemble
    with_question: Ensemble | None
    """Takes the image's features, then the question's."""
    calibration: CalibrationRecord
    image_only_gains: Gains | None = None
    """The gain of more tokens, for routing by price; None: the calibration's sufficiency is used."""
    with_question_gains: Gains | None = None
    vision: Demands | None = None
    """From the image's features to ln(effective tokens) of the scorer `vision`: what an image is predicted to
    score where nothing is asked. None in older files, and for models without a vision tower."""
    familiar: Familiarity | None = None
    """Notices pictures unlike those of the calibration; None in older files, which take all for alike."""
    data: dict[str, Any] = field(default_factory=dict)
    """What it was fitted and calibrated on; JSON-ready."""
    card: str = ""
    """Markdown for people."""
    feature_version: int = FEATURE_VERSION
    _certificates: dict[tuple[float, float, bool, str], Certificate] = field(
        default_factory=dict, init=False, repr=False
    )
    _curves: dict[bool, SufficiencyCurve] = field(default_factory=dict, init=False, repr=False)
    _prices: dict[tuple[float, bool], float] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_ladder(self.ladder)
        self._check_features()
        forms: list[tuple[str, Ensemble | Demands, int]] = [
            ("image_only", self.image_only, len(self.image_features))
        ]
        if self.with_question is not None:
            both = len(self.image_features) + len(self.question_features)
            forms.append(("with_question", self.with_question, both))
        if self.vision is not None:
            forms.append(("vision", self.vision, len(self.image_features)))
        for name, ensemble, wanted in forms:
            if ensemble.n_features != wanted:
                raise M3ScoreError(f"{name} takes {ensemble.n_features} features, but {wanted} are named.")
        self._check_calibration()
        self._check_gains()
        if self.target is not None and self.target.family is not None:
            self.target.family.ladder(self.ladder)  # complains by itself

    def _check_features(self) -> None:
        check_choice("feature set", self.feature_set[:60], FEATURE_SETS)
        if self.feature_version != FEATURE_VERSION:
            raise M3ScoreError(
                f"fitted on feature version {self.feature_version}, but this m3score computes version "
                f"{FEATURE_VERSION}: calibrate anew with `m3score calibrate`."
            )
        if self.feature_set == "pixels" and tuple(self.image_features) != IMAGE_FEATURES:
            raise M3ScoreError("its image features are not those of this m3score: calibrate anew.")
        if self.with_question is not None and tuple(self.question_features) != QUESTION_FEATURES:
            raise M3ScoreError("its question features are not those of this m3score: calibrate anew.")

    def _check_calibration(self) -> None:
        record = self.calibration
        check_record(record, self.ladder, self.with_question is not None)
        if record.questions is not None:
            check_questions(record.questions, self.ladder, self.with_question is not None)
        if self.familiar is not None and self.familiar.n_features != len(self.image_features):
            raise M3ScoreError(
                f"what is familiar has {self.familiar.n_features} features, but {len(self.image_features)} "
                "are named."
            )

    def _check_gains(self) -> None:
        steps, record = len(self.ladder) - 1, self.calibration
        for name in ("image_only", "with_question"):
            ensemble, gains = getattr(self, name), getattr(self, f"{name}_gains")
            kept = getattr(record, f"gains_{name}")
            if gains is None and kept is None:
                continue
            if ensemble is None or gains is None or kept is None:
                raise M3ScoreError(f"{name} and its gains need each other and the gains of the calibration.")
            if len(gains.steps) != steps or gains.n_features != ensemble.n_features:
                raise M3ScoreError(
                    f"the gains of {name} must have {steps} steps from {ensemble.n_features} features, not "
                    f"{len(gains.steps)} from {gains.n_features}."
                )
            if kept.dtype != np.float32 or kept.shape != (len(record.sufficient), steps):
                raise M3ScoreError(
                    f"the calibration needs float32 gains of {steps} steps for every row of sufficient."
                )
            if not np.all(np.abs(kept) <= 1):  # false for NaN as well
                raise M3ScoreError("the calibration's gains must lie between -1 and 1.")

    @cached_property
    def target(self) -> Target | None:
        """How the target model is told a budget; None for an M3 model, which takes it by number.

        M3ScoreError where what the file says of it can't be understood.
        """
        stored = self.data.get("target")
        return None if stored is None else Target.from_dict(stored)

    def request(self, tokens: int, size: tuple[int, int]) -> TokenRequest:
        """What to send of a picture of (width, height) pixels at a scale; see Target.request."""
        return m3_request(tokens) if self.target is None else self.target.request(size, tokens, self.ladder)

    def predict(self, X_image: Any, X_question: Any = None) -> np.ndarray:
        """float32 (n,): ln(tokens per grid), within the ladder.

        Args:
            X_image: (n, image features), or one row (image features,).
            X_question: (n, question features); given, the form with question predicts.

        Raises:
            M3ScoreError: rows of another length, values that are not finite, or no form with question.
        """
        ensemble, rows = self._form(X_image, X_question)
        return clip_predictions(ensemble.predict(rows), self.ladder)

    def spread(self, X_image: Any, X_question: Any = None) -> np.ndarray:
        """float64 (n,) at least 0, in ln(tokens): how unsure `predict` is of rows that it took."""
        ensemble, rows = self._form(X_image, X_question)
        return ensemble.spread(rows)

    def _form(self, X_image: Any, X_question: Any) -> tuple[Ensemble, np.ndarray]:
        """Who predicts, and the rows that it takes."""
        rows = np.atleast_2d(X_image)
        if X_question is None:
            return self.image_only, rows
        asked = np.atleast_2d(X_question)
        if len(asked) != len(rows):
            raise M3ScoreError(f"{len(rows)} images need as many questions, not {len(asked)}.")
        if self.with_question is None:
            raise M3ScoreError(NO_QUESTIONS)
        return self.with_question, np.hstack([rows, asked])

    def predict_vision(self, X_image: Any) -> np.ndarray:
        """float32 (n,): ln(effective tokens) that the scorer `vision` gives, within the ladder: what an image
        scores where nothing is asked.

        A predictor without a regressor of that score says what `predict` says of the image alone. Arguments
        and errors are those of `predict`.
        """
        rows = np.atleast_2d(X_image)
        return clip_predictions(self._vision().predict(rows), self.ladder)

    def spread_vision(self, X_image: Any) -> np.ndarray:
        """float64 (n,) at least 0, in ln(tokens): how unsure `predict_vision` is of rows that it took."""
        return self._vision().spread(np.atleast_2d(X_image))

    def _vision(self) -> Ensemble | Demands:
        return self.image_only if self.vision is None else self.vision

    def complexity(self, predictions: Any) -> np.ndarray:
        """float64 (n,) in [0, 1]: ln(tokens) / ln(finest)."""
        return np.clip(np.asarray(predictions, dtype=np.float64) / math.log(self.ladder[-1]), 0.0, 1.0)

    def decide(self, X_image: Any, X_question: Any = None, wish: Wish = DEFAULT) -> Decision:
        """Scales, complexity and what is certified of them, for n rows at once.

        Pictures unlike those of the calibration get the finest scale, where a promise is to be kept.

        Args:
            X_image, X_question: as in `predict`.
            wish: what is to be kept: a promise, a budget, or nothing; and what else is wanted.

        Raises:
            M3ScoreError: as `predict`, `certificate` and `route_within`.
        """
        return Decision.of(self, np.atleast_2d(X_image), X_question, wish)

    def certificate(
        self,
        max_drop: float = 0.02,
        confidence: float = 0.95,
        *,
        with_question: bool = False,
        per: str = "image",
    ) -> Certificate:
        """What margin the calibration certifies: nothing is fitted anew, and each answer is kept.

        Args:
            max_drop: the share, in (0, 1), that routing may get wrong and the finest scale not.
            confidence: of that promise, in (0, 1).
            with_question: of the form that sees the question.
            per: "image": of one question about each image; "question": of all questions. See certify.py.
        """
        key = (max_drop, confidence, with_question, check_choice("promise", per, certify.PROMISES))
        if key not in self._certificates:
            self._certificates[key] = self._certify(*key)
        return self._certificates[key]

    def _certify(self, max_drop: float, confidence: float, with_question: bool, per: str) -> Certificate:
        record: CalibrationRecord | QuestionRecord = self.calibration
        if per == "question":
            if self.calibration.questions is None:
                return certify.nothing(max_drop, confidence, self.ladder, per, _ONE_PER_IMAGE)
            record = self.calibration.questions
        predictions, sufficient = record.predictions(with_question), record.sufficient

        def regrets(margin: float) -> np.ndarray:
            return certify.regrets_at(predictions, sufficient, margin, self.ladder)

        grid = certify.margins(self.ladder)
        if isinstance(record, QuestionRecord):
            certificate = certify.certify_questions(
                grid, regrets, record.image, record.most, max_drop, confidence
            )
        else:
            certificate = certify.certify(grid, regrets, max_drop, confidence)
        if not len(predictions):
            return certificate
        mean = float(certify.route(predictions, certificate.margin, self.ladder).mean())
        note = certificate.note
        if certificate.certified and mean == self.ladder[-1]:
            note += " Only always taking the finest scale keeps it."
        return replace(certificate, mean_tokens=mean, note=note)

    def route(
        self,
        predictions: Any,
        *,
        max_drop: float | None = 0.02,
        confidence: float = 0.95,
        with_question: bool = False,
        per: str = "image",
    ) -> np.ndarray:
        """int (n,): tokens per grid for predictions of `predict`, of pictures like the calibration's: whether
        they are, `decide` looks.

        Args:
            predictions: (n,) ln(tokens).
            max_drop, confidence, per: as in `certificate`; where nothing is certified, always the finest
                scale. max_drop=None promises nothing: predictions are rounded up to a scale as they are.
            with_question: whether the predictions are of the form that sees the question.
        """
        margin = 0.0
        if max_drop is not None:
            margin = self.certificate(max_drop, confidence, with_question=with_question, per=per).margin
        return certify.route(predictions, margin, self.ladder)

    def route_within(self, mean_tokens: float, X_image: Any, X_question: Any = None) -> np.ndarray:
        """int (n,): tokens per grid where so many are spent, on the average of images like those of the
        calibration, where they help most (gains.py, prices.py). Promises nothing.

        Args:
            mean_tokens: the average; less is spent where more buys nothing.
            X_image, X_question: as in `predict`.

        Raises:
            M3ScoreError: also for an average outside of the ladder, or a predictor without calibration.
        """
        price = self.price(mean_tokens, with_question=X_question is not None)
        return np.asarray(self.ladder)[levels(self.utility(X_image, X_question), price, self.ladder)]

    def utility(self, X_image: Any, X_question: Any = None) -> np.ndarray:
        """float64 (n, scales): the chance that each scale suffices, or its lead over that of the coarsest.

        Arguments and errors are those of `predict`; a predictor without gains needs a calibration as well.
        """
        asked = X_question is not None
        gains = self.with_question_gains if asked else self.image_only_gains
        ensemble, rows = self._form(X_image, X_question)
        if gains is not None:
            return over_coarsest(gains.predict(rows))
        if not len(self.calibration.sufficient):
            raise M3ScoreError(_NO_PRICES)
        return self._by_prediction(asked).at(clip_predictions(ensemble.predict(rows), self.ladder))

    def price(self, mean_tokens: float, *, with_question: bool = False) -> float:
        """The price of tokens (prices.py) that spends so many on the calibration; kept once worked out."""
        if not self.ladder[0] <= mean_tokens <= self.ladder[-1]:
            raise M3ScoreError(
                f"mean_tokens must lie between {self.ladder[0]} and {self.ladder[-1]}, not {mean_tokens}."
            )
        key = (float(mean_tokens), with_question)
        if key not in self._prices:
            predictions = self.calibration.predictions(with_question)
            if not len(predictions):
                raise M3ScoreError(_NO_PRICES)
            gains = self.calibration.gains(with_question)
            if gains is not None:
                utility = over_coarsest(gains)
            else:
                utility = self._by_prediction(with_question).at(predictions)
            self._prices[key] = price_for(mean_tokens, utility, self.ladder)
        return self._prices[key]

    def _by_prediction(self, with_question: bool) -> SufficiencyCurve:
        """What stands in for gains that were not learnt; of a calibration that is not empty."""
        if with_question not in self._curves:
            record = self.calibration
            self._curves[with_question] = SufficiencyCurve.of(
                record.predictions(with_question), record.sufficient
            )
        return self._curves[with_question]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file (safetensors; suffix .predictor). M3ScoreError where it cannot be written."""
        codec.save({each.name: getattr(self, each.name) for each in fields(self) if each.init}, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Predictor:
        """Read a file; never executes anything in it. M3ScoreError, in one sentence, if it cannot."""
        contents = codec.load(path)
        try:
            return Predictor(**contents)
        except M3ScoreError as error:
            raise M3ScoreError(str(error), subject=printable(str(path))) from None


def clip_predictions(values: Any, ladder: Sequence[int]) -> np.ndarray:
    """float32 predictions within [0, ln(finest)]: what calibration and routing both see."""
    top = np.float32(math.log(ladder[-1]))
    return np.clip(np.asarray(values, dtype=np.float32), np.float32(0), top)


def check_ladder(ladder: Any) -> None:
    """M3ScoreError unless it is a tuple of ascending numbers of tokens, more than one token at the finest."""
    whole = isinstance(ladder, tuple) and ladder and all(type(t) is int and 0 < t < 1 << 20 for t in ladder)
    if not whole or list(ladder) != sorted(set(ladder)) or ladder[-1] < 2:
        shown = repr(ladder)[:60]
        raise M3ScoreError(f"{shown} is no ladder: ascending tokens per grid such as (1, 9, 36, 144, 576).")
