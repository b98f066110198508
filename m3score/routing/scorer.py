"""Predictors as scorers: `predictor` fills a score table, `Router` the table of m3score predict."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.routing.codec import SUFFIX
from m3score.routing.predict import Prediction, frames_to_look_at, predict_many
from m3score.routing.predictor import Predictor
from m3score.routing.promises.certify import PROMISES, check_levels
from m3score.routing.registry import load_predictor, predictor_digest
from m3score.routing.requests import asked
from m3score.scoring.base import Scored, ScorerOptions
from m3score.scoring.oracle import ladder_text
from m3score.scoring.rules import check_choice, effective_tokens_of

AS = ("scale", "request")
MAX_DROP, CONFIDENCE = 0.02, 0.95
"""What is promised unless something else is asked for."""


@dataclass(frozen=True)
class PredictorOptions(ScorerOptions):
    """Options of the scorer `predictor`."""

    predictor: str | os.PathLike[str] | Predictor = "m3-tiny"
    """A bundled predictor, a file that m3score calibrate wrote, or a loaded one."""
    question: str | Sequence[str] | None = None
    """What every image will be asked, where its source asks nothing: one question."""
    frames: int | None = None
    """Of a video that is to have a grid of tokens for each of so many frames; see predict_scale."""

    def __post_init__(self) -> None:
        if self.question is not None and not isinstance(self.question, str) and len(self.question) > 1:
            raise M3ScoreError("a predictor takes one --question.")

    @property
    def asked(self) -> str | None:
        """The question as a text."""
        if self.question is None or isinstance(self.question, str):
            return self.question
        return self.question[0] if self.question else None

    @cached_property
    def loaded(self) -> Predictor:
        """The predictor."""
        return self.predictor if isinstance(self.predictor, Predictor) else load_predictor(self.predictor)

    def identity(self) -> dict[str, Any]:
        """What rows depend on, by the option of the command that says it."""
        return {
            "--predictor": _digest(self.predictor),
            "--question": self.asked,
            "--frames": self.frames,
        }


def _digest(predictor: str | os.PathLike[str] | Predictor) -> str:
    """What predictions depend on: the hash of the file that the predictor is, or would be."""
    if not isinstance(predictor, Predictor):
        return predictor_digest(predictor)
    with TemporaryDirectory() as folder:
        file = os.path.join(folder, f"it{SUFFIX}")
        predictor.save(file)
        return predictor_digest(file)


class PredictorScorer:
    """Predicts complexity from cheap features; no model runs. With a question it predicts the tokens that the
    answer needs, without one the score of the scorer `vision`.

    What only a model can tell (required_tokens, solved, agreement) stays empty; predicted_tokens is the scale
    for answers, without a safety margin.
    """

    Options: ClassVar[type[PredictorOptions]] = PredictorOptions
    traced: ClassVar[bool] = False
    columns: tuple[str, ...] = ("predicted_tokens",)
    block = 1
    label = ""
    _routing: Mapping[str, Any] = {"max_drop": None}

    def __init__(self, options: PredictorOptions) -> None:
        self.options = options
        self.predictor = options.loaded
        self.ladder: tuple[int, ...] = self.predictor.ladder
        frames_to_look_at(self.predictor, options.frames)

    def identity(self) -> Mapping[str, Any]:
        """The predictor's file and what it is told."""
        return self.options.identity()

    def stream(
        self, items: Iterable[ImageItem], *, limits: Limits, workers: int | None = None
    ) -> Generator[Scored, None, None]:
        """See Scorer."""
        told = self.options
        for one in predict_many(
            items,
            told.asked,
            predictor=self.predictor,
            workers=workers,
            limits=limits,
            frames=told.frames,
            **self._routing,
        ):
            yield Scored(self._row(one), transient=one.transient)

    def _row(self, one: Prediction) -> dict[str, Any]:
        complexity = one.complexity
        effective = None if complexity is None else effective_tokens_of(complexity, self.ladder)
        return {
            "path": one.path,
            "complexity": complexity,
            "effective_tokens": effective,
            "predicted_tokens": one.tokens,
            "model": self.predictor.model,
            "ladder": ladder_text(self.ladder),
            "error": one.error,
        }


class UnsureScorer(PredictorScorer):
    """Predicts complexity, and how unsure that is: the first pass of a cascade."""

    _routing: Mapping[str, Any] = {"max_drop": None, "spread": True}

    def _row(self, one: Prediction) -> dict[str, Any]:
        row = {"path": one.path, "complexity": one.complexity, "predicted_tokens": one.tokens}
        return {**row, "error": one.error, "spread": one.spread}


@dataclass(frozen=True)
class RouterOptions(PredictorOptions):
    """Options of `m3score predict`; see predict_scale."""

    max_drop: float | None = None
    """Of the promise; by default MAX_DROP, unless there is a budget."""
    confidence: float | None = None
    """Of the promise; by default CONFIDENCE."""
    per: str | None = None
    """What the promise is of, one of certify.PROMISES; by default the first."""
    mean_tokens: float | None = None
    """A budget in place of a promise."""
    written_as: str = AS[0]
    """One of AS: the scale, or also what to send to the model for it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form of predictions", self.written_as, AS)
        check_choice("promise", self.routing["per"], PROMISES)
        if self.mean_tokens is None:
            check_levels(self.routing["max_drop"], self.routing["confidence"])
            return
        if self.max_drop is not None or self.confidence is not None or self.per is not None:
            raise M3ScoreError(
                "--mean-tokens is a budget in place of the promise of --max-drop, --confidence and --per: "
                "give one or the other."
            )
        self.loaded.price(self.mean_tokens, with_question=self.asked is not None)  # complains by itself

    @property
    def routing(self) -> dict[str, Any]:
        """Arguments of predict_many."""
        return {
            "max_drop": MAX_DROP if self.max_drop is None else self.max_drop,
            "confidence": CONFIDENCE if self.confidence is None else self.confidence,
            "per": PROMISES[0] if self.per is None else self.per,
            "mean_tokens": self.mean_tokens,
        }

    @property
    def nothing_certified(self) -> str | None:
        """Why there is no promise to keep; None where there is one, or none was asked for."""
        if self.mean_tokens is not None:
            return None
        promise = {name: self.routing[name] for name in ("max_drop", "confidence", "per")}
        found = self.loaded.certificate(**promise, with_question=self.asked is not None)
        return None if found.certified else found.note

    def identity(self) -> dict[str, Any]:
        """See PredictorOptions."""
        told = {f"--{name.replace('_', '-')}": value for name, value in self.routing.items()}
        return {**super().identity(), **told, "--as": self.written_as}


class Router(PredictorScorer):
    """Predicts the scale to use, with a safety margin or within a budget: rows of a prediction table."""

    Options: ClassVar[type[PredictorOptions]] = RouterOptions
    columns: tuple[str, ...] = ()

    def __init__(self, options: RouterOptions) -> None:
        super().__init__(options)
        self._routing = options.routing
        self._requests = options.written_as == "request"

    def _row(self, one: Prediction) -> dict[str, Any]:
        row = self._prediction(one)
        if not self._requests or one.error is not None:
            return row
        try:
            request = asked(self.predictor, one)
        except M3ScoreError as error:
            return {"path": one.path, "error": error.reason}
        return {**row, "visual_tokens": request.visual_tokens, "request": request.fields}

    def _prediction(self, one: Prediction) -> dict[str, Any]:
        return {
            "path": one.path,
            "predicted_tokens": one.tokens,
            "complexity": one.complexity,
            "certified": one.certified,
            "promise": one.promise,
            "reason": one.reason,
            "error": one.error,
        }
