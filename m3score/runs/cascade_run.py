"""The scorer `cascade`: the predictor scores everything, the model what the predictor is unsure of.

Two passes and one table. Each pass has its own journal, so that a killed run goes on in the pass in which it
was. Inputs are looked for twice. What is asked, and how both scores come onto one scale, is in cascade.py.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.data.item import ImageItem
from m3score.data.loader import QuestionBook
from m3score.routing.predictor import Predictor
from m3score.routing.registry import check_model, load_predictor
from m3score.routing.scorer import PredictorOptions, UnsureScorer
from m3score.runs.cascade import FEWEST, NOTHING, Budget, LinearMap, agreement, path_hash, plan
from m3score.runs.engine import Run
from m3score.runs.executors.base import Executor, ScorerFacts, ScorerHandle, ScorerJob
from m3score.runs.ranking import default_scorer
from m3score.runs.request import Inputs
from m3score.runs.resume.journal import keeps_journal
from m3score.runs.tally import Tally
from m3score.scoring.rules import effective_tokens_of
from m3score.scoring.scorers.model import ModelOptions, ModelScorer
from m3score.scoring.scorers.vision import VisionOptions, VisionScorer

COLUMNS = ("scorer", "predicted_tokens")
"""Of the table, beside those of a model's ranking."""

_FIRST_PASS = ("--predictor", "--question", "--questions", "--max-pixels", "--max-bytes")
"""What predictions depend on."""


@dataclass(frozen=True)
class CascadeOptions(ModelOptions):
    """Options of the scorer `cascade`: those of the model, and these."""

    budget: str | None = None
    """The share of the images that the model is asked about, such as "10%"."""
    max_model_images: int | None = None
    """The same as a number of images."""
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.allowed

    @cached_property
    def allowed(self) -> Budget:
        """What the two options of the budget say."""
        return Budget.of(self.budget, self.max_model_images)

    def identity(self) -> dict[str, Any]:
        """See ModelOptions."""
        return {**super().identity(), **self.cascade_identity()}

    def cascade_identity(self) -> dict[str, Any]:
        """What rows depend on, beside the model and what it is asked."""
        return {
            "--budget": self.allowed.share,
            "--max-model-images": self.allowed.most,
            "--predictor": PredictorOptions(self.predictor).identity()["--predictor"],
        }

    def without_questions(self) -> VisionOptions:
        """Of the scorer that takes the model's part where nothing is asked."""
        names = [field.name for field in fields(VisionOptions)]
        return VisionOptions(**{name: getattr(self, name) for name in names})


class CascadeRun(Run):
    """A run whose model sees only what a first pass over the inputs chose."""

    passes = 2

    def _prepare(self, executor: Executor) -> None:
        request, told = self.request, self.request.options
        if not isinstance(told, CascadeOptions):
            raise M3ScoreError("a cascade needs its own options: CascadeOptions.")
        self.told = told
        asked = {name: getattr(told, name) for name in ("model", "question", "questions", "endpoint")}
        self.asks = default_scorer(asked, request.inputs) == "model"
        if not self.asks:
            if request.target.traces is not None:
                raise M3ScoreError("nothing is asked, so there are no answers: leave --traces out.")
            self.request = replace(request, scorer=VisionScorer, options=told.without_questions())
        super()._prepare(executor)
        self.predictor = told.predictor if isinstance(told.predictor, Predictor) else load_predictor(
            told.predictor
        )  # fmt: skip
        check_model(self.predictor, self.handle.model or self.handle.facts)
        first = {name: self.depends_on.get(name) for name in _FIRST_PASS}
        self.first_depends_on = {"command": "predictions", **first}
        self.first_out = self._beside(request.target.out)
        self.predictions = self._journal(self.first_out, self.first_depends_on)
        job = ScorerJob(UnsureScorer, PredictorOptions(told.predictor), request.limits, request.workers)
        self.first_handle = self._open(executor, job)
        self.first = self._collector(self.predictions, self.first_handle.block)
        self.book: QuestionBook | None = told.book if told.asks else None
        self.allowed = told.allowed
        self.plan = NOTHING
        self.line: LinearMap | None = None
        self.by_model = 0
        self.seen_images = 0
        self.model_failed: list[str] = []
        self.agreement: tuple[float | None, int] = (None, 0)
        """Of predictor and model on images drawn at random, and how many these are."""

    def _depends_on(self, command: str, handle: ScorerHandle) -> dict[str, Any]:
        return super()._depends_on(command, handle) | self.told.cascade_identity()

    @staticmethod
    def _beside(out: Path | None) -> Path | None:
        """What the first pass calls its output: its journal lies beside that of the second."""
        if out is None or not keeps_journal(out):
            return None
        home = Path(os.path.realpath(out))  # beside what a link points at
        return home.with_name(f"{home.name[:180]}.predictions")

    @property
    def facts(self) -> ScorerFacts:
        """Of the model, with the cascade's columns."""
        facts = self.handle.facts
        return replace(facts, columns=(*facts.columns, *COLUMNS))

    # ---- the two passes

    def _work(self) -> None:
        request = self.request
        if self.predictions.rows:
            self.watcher.say(f"Predicted by an earlier run: {self.predictions.rows:,} rows.")
        predict = self._stream(self.first_handle, self.first_out, self.first_depends_on)
        self._through(
            self.first,
            self._found,
            lambda items: predict(map(self._asked, items)),
            "Predicting",
            request.inputs.count,
        )
        if self.interrupted:
            return
        self.predictions.sync()
        self._choose()
        if many := len(self.plan.chosen):
            verb, what = (
                ("Asking", "Asking the model about") if self.asks else ("Scoring", "Scoring by vision")
            )
            self.watcher.say(f"{what} {many:,} of {self.seen_images:,} images.")
            inputs = request.inputs
            again = Inputs(inputs.paths, inputs.limit, inputs.columns, inputs.max_bytes).begin()
            chosen = (item for item in again if item.path in self.plan)
            ask = self._stream(self.handle, request.target.out, self.depends_on)
            self._through(self.collector, chosen, ask, verb, lambda: many)

    def _asked(self, item: ImageItem) -> ImageItem:
        """An input as the predictor is to see it: with what the model will be asked."""
        if self.book is not None and not item.error:
            try:
                item = replace(item, questions=self.book.of(item.name, item.questions))
            except M3ScoreError as error:
                return replace(item, error=error.reason)
        return item if self.predictor.with_question is not None else replace(item, questions=())

    def _choose(self) -> None:
        hashes, complexity, spread = array("Q"), array("d"), array("d")
        for place in self.first.places():
            record = self.predictions.read(place)
            hashes.append(path_hash(record.key["path"]))
            complexity.append(_number(record.row["complexity"]))
            spread.append(_number(record.row["spread"]))
        self.seen_images = len(hashes)
        self.plan = plan(
            np.frombuffer(hashes, np.uint64),
            np.frombuffer(complexity),
            np.frombuffer(spread),
            self.allowed,
        )

    def iterate(self) -> Iterator[dict[str, Any]]:
        """See Run; rows are known when both passes are done."""
        self._work()
        if self.interrupted:
            raise KeyboardInterrupt
        yield from self.rows()

    # ---- one table

    @property
    def made(self) -> int:
        """In both passes."""
        return self.first.made + self.collector.made

    @property
    def resumed(self) -> int:
        """In both passes."""
        return self.first.skipped + self.collector.skipped

    def _left(self) -> int:
        """See Run. The first pass sees all inputs; which of them the second is to ask about may change."""
        return self.predictions.unasked()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every input once, in order: with the model's score where there is one."""
        answered = self._answered()
        scorer = "model" if self.asks else "vision"
        for place in self.first.places():
            record = self.predictions.read(place)
            theirs = answered.get(path_hash(record.key["path"]))
            if theirs is None:
                yield self._predicted(record.row)
            else:
                tokens = {"predicted_tokens": record.row["predicted_tokens"]}
                yield {**self.journal.row(theirs), "scorer": scorer, **tokens}

    def _predicted(self, row: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: row[name] for name in ("path", "predicted_tokens", "error")}
        if row["complexity"] is None:
            return kept
        complexity = (self.line or LinearMap()).at(row["complexity"])
        effective = effective_tokens_of(complexity, self.predictor.ladder)
        return {**kept, "complexity": complexity, "effective_tokens": effective, "scorer": "predictor"}

    def _answered(self) -> dict[int, int]:
        """Places of the model's rows, by path_hash. Sets the line between both scores on the way.

        An image on which the model failed, as it may not next time, keeps the predictor's score.
        """
        places: dict[int, int] = {}
        pairs: list[tuple[float, float, bool]] = []
        self.model_failed = []
        for place in self.collector.places():
            record = self.journal.read(place)
            complexity = record.row.get("complexity")
            if record.transient:
                self.model_failed.append(f"{record.row['path']}: {record.row['error']}")
                continue
            number = path_hash(record.key["path"])
            places[number] = place
            if complexity is not None:
                predicted, drawn = self.plan.prediction(number)
                pairs.append((predicted, complexity, drawn))
        ours, theirs, random = np.array(pairs).reshape(-1, 3).T
        self.by_model, self.line = len(pairs), LinearMap.through(ours, theirs)
        self.agreement = agreement(ours[random > 0], theirs[random > 0]), int(random.sum())
        return places

    def notes(self, tally: Tally) -> Sequence[str]:
        """Who scored how many, and how well they agree."""
        rho, drawn = self.agreement
        lines = [
            f"Scored by {self.handle.facts.name or 'the model'}: {self.by_model:,}; by the predictor: "
            f"{tally.scored - self.by_model:,}. Mean complexity "
            f"{tally.complexity_sum / max(1, tally.scored):.3f}."
        ]
        if self.line is None and self.by_model < tally.scored:
            lines.append(
                "The predictor's scores are as they are, not mapped onto the model's scale: that takes "
                f"{FEWEST} images of different complexity that both scored, and there are {self.by_model:,}. "
                "A larger --budget gives them."
            )
        if rho is not None:
            lines.append(
                f"On {drawn:,} images drawn at random they agree with a rank correlation of {rho:.2f}."
            )
        if self.model_failed:
            lines.append(
                f"The model failed on {len(self.model_failed):,} images, which keep the predictor's score: "
                f"{self.model_failed[0]}"
            )
        return lines

    def _forget(self) -> None:
        """Both journals; the one that vouches for the table last."""
        self.predictions.remove()
        super()._forget()


class Cascade(ModelScorer):
    """The scorer: what its model pass does, and the sort of run that it takes."""

    Options: ClassVar[type[ModelOptions]] = CascadeOptions
    Run: ClassVar[type[Run]] = CascadeRun


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
