"""Traces: what a model says to every question about every image at every scale.

Sees models through the LadderAnswerer protocol only. A trace is the source of truth: required tokens and
complexity (oracle.py) are functions of it, so rules can be changed without running the model again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.data.metrics import default_metric, grade
from m3score.data.normal_form import consistent
from m3score.data.questions import Answers, Question, as_question, check_question
from m3score.data.references import plain_text
from m3score.models.base import LOGITS, LadderAnswerer, ScaleAnswer
from m3score.tables.formats import unguard_cell
from m3score.tables.schema import TRACES, absent, cast

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TraceRow:
    """What the model said to one question about one image at one scale: a row of the trace table."""

    image: str
    question_id: int
    """Position of the question among the image's questions."""
    question: str
    tokens: int
    visual_tokens: int
    answer: str
    agreement: float
    consistent: bool
    metric: str | None
    """None, as metric_score and correct, without a ground truth."""
    metric_score: float | None
    correct: bool | None
    answer_logprob: float
    cut: bool
    """Whether the answer reached the most tokens it may have without coming to an end: it is judged, and is
    consistent, as far as it goes."""
    references: tuple[str, ...]
    options: tuple[str, ...]
    model: str
    width: int
    height: int
    agreement_from: str = LOGITS
    """What agreement was worked out from, see base.LOGITS."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**self.__dict__, "references": list(self.references), "options": list(self.options)}


def trace(
    answerer: LadderAnswerer,
    images: Sequence[Image.Image],
    questions: Sequence[Sequence[str | Question]],
    answers: Sequence[Sequence[Answers]] | None = None,
    metrics: str | None = None,
    *,
    ids: Sequence[str] | None = None,
    max_new_tokens: int = 32,
    coarse_answers: bool = True,
) -> list[TraceRow]:
    """Ask every image its questions at every scale.

    Args:
        answerer: the model.
        images: opened images.
        questions: each image's questions.
        answers: the references of each image's questions, in place of those in the Questions.
        metrics: a name in grading.METRICS for every question that has a ground truth.
        ids: what the rows call each image; by default its position.
        max_new_tokens: the most tokens that an answer may have.
        coarse_answers: False for agreement and consistency only, which is cheaper: where the answer of a
            scale isn't the finest scale's, token by token, its row has an empty `answer`, no log-probability
            and `consistent` false. Nothing is judged then by a ground truth.

    Returns:
        Rows by image, question and tokens, coarsest first.

    Raises:
        M3ScoreError: before the model runs, for lists of unequal length, an image without questions, or a
            ground truth that the metric cannot use.
    """
    names = [str(i) for i in range(len(images))] if ids is None else list(ids)
    if not len(images) == len(questions) == len(names):
        raise M3ScoreError(f"{len(images)} images, {len(questions)} lists of questions, {len(names)} ids.")
    asked = _asked(questions, answers, metrics)
    if not images:
        return []
    texts = [[question.question for question in group] for group in asked]
    options: dict[str, Any] = {} if coarse_answers else {"decode_coarse": False}
    said = answerer.answer_ladder(images, texts, max_new_tokens=max_new_tokens, **options)
    return [
        row
        for name, image, group, ladders in zip(names, images, asked, said, strict=True)
        for number, (question, scales) in enumerate(zip(group, ladders, strict=True))
        for row in _trace_rows(name, image.size, answerer, number, question, scales, coarse_answers)
    ]


def _asked(
    questions: Sequence[Sequence[str | Question]],
    answers: Sequence[Sequence[Answers]] | None,
    metric: str | None,
) -> list[list[Question]]:
    if answers is None:
        answers = [[None] * len(group) for group in questions]
    if [len(group) for group in answers] != [len(group) for group in questions]:
        raise M3ScoreError("answers need the shape of the questions: one entry (or None) for every question.")
    asked = [
        [as_question(question, given, metric) for question, given in zip(*groups, strict=True)]
        for groups in zip(questions, answers, strict=True)
    ]
    if not all(asked):
        raise M3ScoreError(
            "every image needs at least one question; leave questions out for the default ones."
        )
    for question in (question for group in asked for question in group):
        check_question(question)  # complain now, not after the model ran
    return asked


def _trace_rows(
    name: str,
    size: tuple[int, int],
    answerer: LadderAnswerer,
    number: int,
    asked: Question,
    scales: Sequence[ScaleAnswer],
    judge: bool,
) -> list[TraceRow]:
    known = asked.answers if judge else ()
    metric = (asked.metric or default_metric(known, asked.options)) if known else None
    finest = scales[-1].answer or ""
    rows = []
    for scale in scales:
        answer = scale.answer or ""
        verdict = grade(metric, answer, known, asked.options) if metric else None
        rows.append(
            TraceRow(
                image=name,
                question_id=number,
                question=asked.question,
                tokens=scale.tokens,
                visual_tokens=scale.visual_tokens,
                answer=answer,
                agreement=scale.agreement,
                consistent=scale.answer is not None and consistent(answer, finest),
                metric=metric,
                metric_score=verdict.score if verdict else None,
                correct=verdict.correct if verdict else None,
                answer_logprob=scale.logprob,
                cut=scale.cut,
                references=known,
                options=asked.options,
                model=answerer.name,
                width=size[0],
                height=size[1],
                agreement_from=str(getattr(answerer, "agreement_from", LOGITS)),
            )
        )
    return rows


def single_model(rows: Iterable[TraceRow]) -> None:
    """M3ScoreError if the rows are those of several models, whose answers do not compare, or if agreement
    was worked out from different things."""
    kept = list(rows)
    models = sorted({row.model for row in kept})
    if len(models) > 1:
        raise M3ScoreError(f"a trace holds the rows of one model, this one those of {', '.join(models)}.")
    sources = sorted({row.agreement_from for row in kept})
    if len(sources) > 1:
        raise M3ScoreError(f"agreements from {' and '.join(sources)} are different numbers: they don't mix.")


def incomplete(rows: Iterable[TraceRow]) -> dict[str, str]:
    """The images that lack a scale of the trace's ladder for one of their questions, and what they lack."""
    seen: dict[tuple[str, int], set[int]] = {}
    for row in rows:
        seen.setdefault((row.image, row.question_id), set()).add(row.tokens)
    ladder = sorted(set().union(*seen.values()))
    return {
        name: f"the trace lacks the rows of {', '.join(str(t) for t in ladder if t not in tokens)} tokens"
        for (name, _), tokens in seen.items()
        if len(tokens) < len(ladder)
    }


def rows_of(traces: pd.DataFrame) -> tuple[list[TraceRow], dict[str, str]]:
    """The rows of a trace table, and of the images that have none but an `error`, that error.

    Absent values may be None, NaN or pandas.NA. A frame that pandas read from a csv file itself, where lists
    are JSON and a leading "=" is guarded, is understood; better is tables.read_traces, which keeps answers
    such as "None" and "nan" apart from missing ones. The columns that scores do not need may be left out, and
    without `question_id` an image's questions are told apart by their texts.

    Raises:
        M3ScoreError: a missing column that scores need, or a value that is not of its column's kind.
    """
    needed = ("image", "question", "tokens", "answer", "agreement", "consistent")
    missing = [name for name in needed if name not in traces.columns]
    if missing:
        raise M3ScoreError(
            f"a trace table needs the columns {', '.join(needed)}; missing: {', '.join(missing)}."
        )
    rows: list[TraceRow] = []
    failed: dict[str, str] = {}
    numbers: dict[str, dict[str, int]] = {}
    for record in traces.to_dict("records"):
        values = {str(key): value for key, value in record.items() if not absent(value)}
        if any(isinstance(values.get(name), str) for name in ("references", "options")):
            values = _from_csv(values)
        image = plain_text(values.get("image", "")) or ""
        if "tokens" in values:
            known = numbers.setdefault(image, {})
            number = known.setdefault(str(values.get("question", "")), len(known))
            try:
                rows.append(_row_of({"question_id": number, **values}))
            except (ValueError, TypeError) as error:
                raise M3ScoreError(
                    f"a value in the trace is of the wrong kind ({error}).", subject=image
                ) from None
        else:
            failed[image] = str(values.get("error", "no answers in the trace"))
    return rows, failed


def _from_csv(values: dict[str, Any]) -> dict[str, Any]:
    """A row as the csv format has it, in the form of read_traces; M3ScoreError where it cannot be told."""
    image = unguard_cell(str(values.get("image", "")))
    known = {name: unguard_cell(value) if isinstance(value, str) else value for name, value in values.items()}
    for name in ("references", "options"):
        try:
            known[name] = json.loads(values.get(name, "[]"))
        except (ValueError, TypeError, RecursionError):
            known[name] = None
        if not isinstance(known[name], list):
            raise M3ScoreError(
                f"{image}: {name} need a list of texts, or one written as JSON, not {values[name]!r:.100}."
            )
    if known["references"] and "tokens" in known and "answer" not in known:
        raise M3ScoreError(
            f"{image}: an answer is missing; pandas takes texts such as 'None' for missing values, so read "
            "the file with m3score.tables.io.read_traces."
        )
    return known


def _row_of(values: dict[str, Any]) -> TraceRow:
    """A row of values that are there; ValueError for one that is not of its column's kind."""

    def held(name: str, otherwise: Any) -> Any:
        if name not in values:
            return otherwise
        kind = TRACES.kind(name)
        plain = plain_text(values[name]) if kind.startswith("text") else None
        return cast(values[name] if plain is None else plain, kind)

    return TraceRow(
        image=held("image", ""),
        question_id=held("question_id", 0),
        question=held("question", ""),
        tokens=held("tokens", 0),
        visual_tokens=held("visual_tokens", held("tokens", 0)),
        answer=held("answer", ""),
        agreement=held("agreement", math.nan),
        consistent=held("consistent", False),
        metric=held("metric", None),
        metric_score=held("metric_score", None),
        correct=held("correct", None),
        answer_logprob=held("answer_logprob", math.nan),
        cut=held("cut", False),
        references=tuple(held("references", ())),
        options=tuple(held("options", ())),
        model=held("model", ""),
        width=held("width", 0),
        height=held("height", 0),
        agreement_from=held("agreement_from", LOGITS),
    )
