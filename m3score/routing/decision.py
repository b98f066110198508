"""What a predictor decides about pictures: scales, complexity, and what is certified of them.

Knows feature vectors, no images. One call for any number of rows: every regressor is walked once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from m3score.routing.promises.certify import Certificate
from m3score.routing.promises.familiar import LEVEL, Familiarity

NO_PROMISE = "no promise was asked for"
BUDGET = "a budget of tokens promises nothing"
UNCERTIFIED = "the calibration certifies nothing at this max_drop and confidence"


@dataclass(frozen=True)
class Wish:
    """What decisions are to keep, and what is wanted beside the scale."""

    max_drop: float | None = 0.02
    """The share that may be answered wrongly although the finest scale is right; None promises nothing."""
    confidence: float = 0.95
    per: str = "image"
    """What it is a share of; one of certify.PROMISES."""
    mean_tokens: float | None = None
    """A budget in place of the promise: max_drop is then not looked at."""
    complexity: bool = True
    spread: bool = False


DEFAULT = Wish()


class Decider(Protocol):
    """What decisions are made with: a Predictor, where these are explained."""

    @property
    def ladder(self) -> tuple[int, ...]:
        """Tokens per grid, coarsest first."""

    @property
    def familiar(self) -> Familiarity | None:
        """Notices pictures unlike those of the calibration."""

    def predict(self, X_image: Any, X_question: Any = None) -> np.ndarray:
        """ln(tokens)."""

    def spread(self, X_image: Any, X_question: Any = None) -> np.ndarray:
        """How unsure that is."""

    def predict_vision(self, X_image: Any) -> np.ndarray:
        """ln(effective tokens) where nothing is asked."""

    def spread_vision(self, X_image: Any) -> np.ndarray:
        """How unsure that is."""

    def complexity(self, predictions: Any) -> np.ndarray:
        """In [0, 1]."""

    def certificate(
        self, max_drop: float, confidence: float, *, with_question: bool, per: str
    ) -> Certificate:
        """The promise."""

    def route(
        self,
        predictions: Any,
        *,
        max_drop: float | None = 0.02,
        confidence: float = 0.95,
        with_question: bool = False,
        per: str = "image",
    ) -> np.ndarray:
        """Scales, with a margin."""

    def route_within(self, mean_tokens: float, X_image: Any, X_question: Any = None) -> np.ndarray:
        """Scales, within a budget."""


@dataclass(frozen=True, eq=False)
class Decision:
    """About n rows."""

    tokens: np.ndarray
    """int (n,): tokens per grid, scales of the ladder."""
    certified: np.ndarray
    """bool (n,): whether the promise holds for pictures such as this one."""
    certificate: Certificate | None
    """The promise; None where none was wished for."""
    reasons: tuple[str | None, ...]
    """Of each row, why it is not certified."""
    complexity: np.ndarray | None
    """float64 (n,) in [0, 1], without any margin: with a question of the tokens that its answer needs,
    without one of the scorer `vision` (Predictor.predict_vision)."""
    spread: np.ndarray | None
    """float64 (n,): how unsure the complexity is, in ln(tokens)."""

    @classmethod
    def of(cls, predictor: Decider, rows: np.ndarray, asked: Any, wish: Wish) -> Decision:
        """See Predictor.decide."""
        predicted = predictor.predict(rows, asked)
        certificate = None
        certified = np.zeros(len(rows), bool)
        reasons: list[str | None] = [NO_PROMISE] * len(rows)
        if wish.mean_tokens is not None:
            tokens = predictor.route_within(wish.mean_tokens, rows, asked)
            reasons = [BUDGET] * len(rows)
        elif wish.max_drop is None:
            tokens = predictor.route(predicted, max_drop=None)
        else:
            promise: dict[str, Any] = {"with_question": asked is not None, "per": wish.per}
            certificate = predictor.certificate(wish.max_drop, wish.confidence, **promise)
            tokens = predictor.route(predicted, max_drop=wish.max_drop, confidence=wish.confidence, **promise)
            certified[:] = certificate.certified
            reasons = [None if certificate.certified else UNCERTIFIED] * len(rows)
            if predictor.familiar is not None and certificate.certified:
                p_values = predictor.familiar.p_values(rows)
                certified = p_values > LEVEL
                tokens = np.where(certified, tokens, predictor.ladder[-1])
                reasons = [None if p > LEVEL else strange(p) for p in p_values.tolist()]
        return cls(
            tokens=tokens,
            certified=certified,
            certificate=certificate,
            reasons=tuple(reasons),
            complexity=_complexity(predictor, rows, asked, predicted) if wish.complexity else None,
            spread=_spread(predictor, rows, asked) if wish.spread else None,
        )


def strange(p_value: float) -> str:
    """Why a picture is not certified that is unlike the calibration's."""
    return f"unlike the pictures that the predictor was calibrated on (p = {p_value:.2g}, level {LEVEL:g})"


def _complexity(predictor: Decider, rows: np.ndarray, asked: Any, predicted: np.ndarray) -> np.ndarray:
    return predictor.complexity(predictor.predict_vision(rows) if asked is None else predicted)


def _spread(predictor: Decider, rows: np.ndarray, asked: Any) -> np.ndarray:
    return predictor.spread_vision(rows) if asked is None else predictor.spread(rows, asked)
