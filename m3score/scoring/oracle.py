"""From what a model says at every scale to how many visual tokens an image needs.

Works on traces (traces.py): the formulas are in rules.py, the judging of answers is in metrics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from m3score.common.errors import M3ScoreError
from m3score.data.metrics import find_metric, grade
from m3score.data.questions import Answers, Question, default_questions
from m3score.data.references import plain_text
from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.models.base import LOGITS, LadderAnswerer
from m3score.scoring.rules import (
    RULES,
    check_choice,
    complexity_of,
    effective_tokens_of,
    is_monotone,
    required_tokens,
)
from m3score.scoring.traces import (
    TraceRow,
    incomplete,
    rows_of,
    single_model,
    trace,
)
from m3score.tables.formats import unguard_cell
from m3score.tables.schema import SCORES, conform

if TYPE_CHECKING:
    import pandas as pd

    from m3score.models.vision.complexity import VisionScore

SUFFICIENCY = ("auto", "correct", "consistent")
"""What makes a scale sufficient: "correct" = a right answer (needs a ground truth), "consistent" = the finest
scale's answer, "auto" = a right answer where a ground truth is known and the finest scale's where not."""
_JUDGES = {frozenset({"correct"}): "right answers", frozenset({"consistent"}): "agreement"}


@dataclass(frozen=True)
class QuestionComplexity:
    """How much of its image one question needs. Sequences have one entry per scale, coarsest first."""

    question: str
    complexity: float
    effective_tokens: float
    required_tokens: int | None
    solved: bool
    monotone: bool
    judged_by: str
    """"correct" or "consistent": what made a scale sufficient."""
    sufficient: tuple[bool, ...]
    agreement: tuple[float, ...]
    metric_scores: tuple[float, ...] | None
    """The metric's score at each scale; None without a ground truth."""
    answers: tuple[str, ...]
    cut: bool = False
    """Whether an answer was cut at max_new_tokens, at any scale: more might have been said."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Complexity:
    """How complex an image is: the mean over its questions.

    `complexity` is the mean over the questions and `effective_tokens` = t_finest ** complexity. The image is
    `solved` where all its questions are; `required_tokens` is then the most that any of them needs, the safe
    reading (under "stays" every question is sufficient there), and None otherwise. `monotone` where every
    question is. Tokens are per grid; `agreement` is the mean over the questions at each scale of `ladder`,
    coarsest first.
    """

    complexity: float
    effective_tokens: float
    required_tokens: int | None
    solved: bool
    monotone: bool
    ladder: tuple[int, ...]
    agreement: tuple[float, ...]
    questions: tuple[QuestionComplexity, ...]
    rule: str
    sufficiency: str
    model: str
    width: int
    height: int
    visual_tokens: int | None = None
    """How many visual tokens the image has at `required_tokens`, exactly; None where it is not solved."""
    agreement_from: str = LOGITS
    """What agreement was worked out from."""

    @property
    def judged_by(self) -> str:
        """What made a scale sufficient: "right answers", "agreement" with the finest scale, or for an image
        whose questions differ in that "mixed"."""
        return _JUDGES.get(frozenset(question.judged_by for question in self.questions), "mixed")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, those of each question included."""
        lists = {"ladder": list(self.ladder), "agreement": list(self.agreement)}
        return {**self.__dict__, **lists, "questions": [question.to_dict() for question in self.questions]}

    def to_row(self) -> dict[str, Any]:
        """A row of the score table but for rank, path and error; `agreement_T` for each T of the ladder."""
        row: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "complexity",
                "effective_tokens",
                "required_tokens",
                "judged_by",
                "solved",
                "monotone",
            )
        }
        row |= {f"agreement_{tokens}": v for tokens, v in zip(self.ladder, self.agreement, strict=True)}
        cut = sum(question.cut for question in self.questions)
        counts = {"questions": len(self.questions), "cut_questions": cut}
        facts = {"visual_tokens": self.visual_tokens, "model": self.model, "ladder": ladder_text(self.ladder)}
        facts["agreement_from"] = self.agreement_from
        return row | counts | {"width": self.width, "height": self.height} | facts


def ladder_text(ladder: Iterable[int]) -> str:
    """A ladder as the column `ladder` and the option --rungs have it: "64,256,1024"."""
    return ",".join(map(str, ladder))


def score_trace(
    rows: Iterable[TraceRow], *, rule: str = "stays", sufficiency: str = "auto", metric: str | None = None
) -> dict[str, Complexity]:
    """The complexity of every image in a trace, by image, in the order in which the images appear.

    Args:
        rows: trace rows in any order; of two rows for one image, question and scale the later counts.
        rule: a name in rules.RULES.
        sufficiency: one of SUFFICIENCY.
        metric: judge the answers anew with this metric where a ground truth is known.

    Raises:
        M3ScoreError: unknown rule, sufficiency or metric; a question that lacks a scale of the trace's
            ladder; rows of several models; "correct" asked for without a ground truth.
    """
    _check_names(rule, sufficiency, metric)
    kept = list(rows)
    ladder = tuple(sorted({row.tokens for row in kept}))
    single_model(kept)
    for name, gap in incomplete(kept).items():
        raise M3ScoreError(f"{gap}.", subject=name)
    images: dict[str, dict[int, dict[int, TraceRow]]] = {}
    for row in kept:
        scales = images.setdefault(row.image, {}).setdefault(row.question_id, {})
        scales[row.tokens] = _judged_anew(row, metric)
    return {
        name: _score_image([[image[i][t] for t in ladder] for i in sorted(image)], ladder, rule, sufficiency)
        for name, image in images.items()
    }


def _check_names(rule: str, sufficiency: str, metric: str | None) -> None:
    check_choice("rule", rule, RULES)
    check_choice("sufficiency", sufficiency, SUFFICIENCY)
    if metric is not None:
        find_metric(metric)


def _score_image(
    questions: Sequence[Sequence[TraceRow]], ladder: tuple[int, ...], rule: str, sufficiency: str
) -> Complexity:
    scored = [_score_question(rows, ladder, rule, sufficiency) for rows in questions]
    solved = all(question.solved for question in scored)
    complexity = sum(question.complexity for question in scored) / len(scored)
    agreements = zip(*(question.agreement for question in scored), strict=True)
    first = questions[0][0]
    required = max(question.required_tokens or 0 for question in scored) if solved else None
    return Complexity(
        complexity=complexity,
        effective_tokens=effective_tokens_of(complexity, ladder),
        required_tokens=required,
        solved=solved,
        monotone=all(question.monotone for question in scored),
        ladder=ladder,
        agreement=tuple(sum(at_scale) / len(scored) for at_scale in agreements),
        questions=tuple(scored),
        rule=rule,
        sufficiency=sufficiency,
        model=first.model,
        width=first.width,
        height=first.height,
        visual_tokens=None if required is None else questions[0][ladder.index(required)].visual_tokens,
        agreement_from=first.agreement_from,
    )


def _judged_anew(row: TraceRow, metric: str | None) -> TraceRow:
    if metric is None or not row.references:
        return row
    verdict = grade(metric, row.answer, row.references, row.options)
    return replace(row, metric=metric, metric_score=verdict.score, correct=verdict.correct)


def _score_question(
    rows: Sequence[TraceRow], ladder: tuple[int, ...], rule: str, sufficiency: str
) -> QuestionComplexity:
    known = all(row.correct is not None for row in rows)
    if sufficiency == "correct" and not known:
        raise M3ScoreError(
            f"no ground truth for {rows[0].question!r}, so sufficiency cannot be 'correct'; "
            "give answers, or use 'auto' or 'consistent'.",
            subject=rows[0].image,
        )
    by_truth = known and sufficiency != "consistent"
    sufficient = tuple(bool(row.correct) if by_truth else row.consistent for row in rows)
    agreement = tuple(row.agreement for row in rows)
    complexity = complexity_of(
        [float(value) for value in (sufficient if by_truth else agreement)], ladder, rule
    )
    required = required_tokens(sufficient, ladder, rule)
    scores = tuple(row.metric_score for row in rows if row.metric_score is not None)
    return QuestionComplexity(
        question=rows[0].question,
        complexity=complexity,
        effective_tokens=effective_tokens_of(complexity, ladder),
        required_tokens=required,
        solved=required is not None,
        monotone=is_monotone(sufficient),
        judged_by="correct" if by_truth else "consistent",
        sufficient=sufficient,
        agreement=agreement,
        metric_scores=scores if len(scores) == len(rows) else None,
        answers=tuple(row.answer for row in rows),
        cut=any(row.cut for row in rows),
    )


# ---- one call -----------------------------------------------------------------------------------------

Asked = str | Question | Sequence[str | Question]
"""The questions about one image: one, or several."""


@overload
def score(img: ImageSource, *, model: str | Path | LadderAnswerer) -> VisionScore: ...


@overload
def score(img: list[Any] | tuple[Any, ...], *, model: str | Path | LadderAnswerer) -> list[VisionScore]: ...


@overload
def score(
    img: ImageSource,
    *,
    model: str | Path | LadderAnswerer,
    questions: Asked,
    answers: Answers | Sequence[Answers] = None,
    metric: str | None = None,
    rule: str = "stays",
    sufficiency: str = "auto",
    max_new_tokens: int = 32,
    coarse_answers: bool = True,
) -> Complexity: ...


@overload
def score(
    img: list[Any] | tuple[Any, ...],
    *,
    model: str | Path | LadderAnswerer,
    questions: str | Question | Sequence[Asked],
    answers: Any = None,
    metric: str | None = None,
    rule: str = "stays",
    sufficiency: str = "auto",
    max_new_tokens: int = 32,
    coarse_answers: bool = True,
) -> list[Complexity]: ...


def score(
    img: Any,
    *,
    model: str | Path | LadderAnswerer,
    questions: Any = None,
    answers: Any = None,
    metric: str | None = None,
    rule: str = "stays",
    sufficiency: str = "auto",
    max_new_tokens: int = 32,
    coarse_answers: bool = True,
) -> Complexity | VisionScore | list[Complexity] | list[VisionScore]:
    """How complex an image is to `model`: one image in, one result out; a list in, a list out.

    Without a question the model's vision tower tells how many distinct visual tokens the image has, or how
    many it takes to read it: a VisionScore, see M3Model.vision_score. With questions the model answers them
    at every scale: a Complexity. (A model without a vision tower is asked to describe the image.)

    Args:
        img: a PIL image, a path, bytes, or a uint8 array (H, W, 3); or a list of them.
        model: a loaded model, or what load_model takes (then loaded anew for every call).
        questions: one question or a sequence of them; for a list of images one such entry per image, or a
            single question for all.
        answers: the references, in the shape of `questions`: for one question a text or a sequence of texts,
            for a sequence of questions one such entry (or None) per question; for a list of images one entry
            per image.
        metric: a name in grading.METRICS; by default grading.default_metric() chooses.
        rule: "stays" or "first", see rules.RULES.
        sufficiency: "auto", "correct" or "consistent", see SUFFICIENCY.
        max_new_tokens: the most tokens that an answer may have.
        coarse_answers: False leaves out coarser scales' answers that differ from the finest scale's (they
            are then ""), and judges by consistency alone: cheaper; see trace.

    Raises:
        M3ScoreError: an image that cannot be read, or arguments that do not fit together.
    """
    _check_names(rule, sufficiency, metric)
    many = isinstance(img, list | tuple)
    if questions is None and answers is None:
        model = _loaded(model) if isinstance(model, str | Path) else model
        if (look := getattr(model, "vision_score", None)) is not None:
            seen: VisionScore | list[VisionScore] = look(img)
            return seen
    images = [open_image(one) for one in (img if many else [img])]
    if not many:
        questions, answers = [questions], [answers]
    per_image, references = _per_image(questions, answers, images)
    answerer = _loaded(model) if isinstance(model, str | Path) else model
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "coarse_answers": coarse_answers}
    rows = trace(answerer, images, per_image, references, metric, **how)
    scored = list(score_trace(rows, rule=rule, sufficiency=sufficiency).values())
    return scored if many else scored[0]


def _loaded(model: str | Path) -> LadderAnswerer:
    from m3score.models.loading import load_model  # the one way from here to torch

    return load_model(model)


def _per_image(
    questions: Any, answers: Any, images: Sequence[Any]
) -> tuple[list[list[str | Question]], list[list[Answers]]]:
    if questions is None or isinstance(questions, str | Question):
        questions = [questions] * len(images)
    if answers is None:
        answers = [None] * len(images)
    if isinstance(answers, str) or not len(questions) == len(answers) == len(images):
        raise M3ScoreError("a list of images needs one entry of questions, and of answers, for every image.")
    grouped = [_question_list(*entry) for entry in zip(questions, answers, strict=True)]
    return [asked for asked, _ in grouped], [references for _, references in grouped]


def _question_list(asked: Any, answers: Any) -> tuple[list[str | Question], list[Answers]]:
    if isinstance(asked, str | Question):
        return [asked], [answers]
    group = list(default_questions() if asked is None else asked)
    if answers is None:
        return group, [None] * len(group)
    if isinstance(answers, str):
        raise M3ScoreError("several questions need a sequence of answers: one entry (or None) per question.")
    return group, list(answers)


def rescore(
    traces: pd.DataFrame, rule: str = "stays", sufficiency: str = "auto", metric: str | None = None
) -> pd.DataFrame:
    """Score a trace table again under other rules, without a model.

    Args:
        traces: a trace table (tables.read_traces; see traces.rows_of for what else is understood). Rows with
            an `error` are images that could not be traced.
        rule, sufficiency, metric: as in score_trace.

    Returns:
        A score table (`rank` left empty), one row per image in order of first appearance. An image that
        cannot be scored, such as one with an incomplete trace, has `error` filled in.

    Raises:
        M3ScoreError: a missing column, a value of the wrong kind, rows of several models, or an unknown rule,
            sufficiency or metric.
    """
    _check_names(rule, sufficiency, metric)
    rows, errors = rows_of(traces)
    single_model(rows)
    gaps = incomplete(rows)
    images: dict[str, list[TraceRow]] = {}
    for row in rows:
        images.setdefault(row.image, []).append(row)
    table: dict[str, dict[str, Any]] = {name: {"error": error} for name, error in (errors | gaps).items()}
    for name, traced in images.items():
        if name not in gaps:
            table[name] = _rescored(traced, rule, sufficiency, metric)
    written = (plain_text(name) or "" for name in traces["image"])
    order = dict.fromkeys(name if name in table else unguard_cell(name) for name in written)
    return conform([{"path": name, **table[name]} for name in order if name in table], SCORES)


def _rescored(rows: list[TraceRow], rule: str, sufficiency: str, metric: str | None) -> dict[str, Any]:
    try:
        (complexity,) = score_trace(rows, rule=rule, sufficiency=sufficiency, metric=metric).values()
    except M3ScoreError as error:
        return {"error": error.reason}
    return complexity.to_row()
