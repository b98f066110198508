"""Many scored images in one summary, with the convention for the unsolved always named."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.scoring.oracle import Complexity

UNSOLVED = ("one", "answerable", "finest")
"""How a mean of required tokens counts a question that no scale solves: "one" = as a single token, as the M3
authors do (it deflates the mean); "answerable" = not at all; "finest" = as the finest scale."""


@dataclass(frozen=True)
class Summary:
    """Required tokens and accuracy over all questions of many images: one with two questions counts twice.

    Dictionaries keyed by tokens follow the ladder, coarsest first. Means of nothing are None.
    """

    images: int
    questions: int
    judged_by_truth: int
    """Questions for which "sufficient" means a right answer; for the others, the finest scale's answer."""
    ladder: tuple[int, ...]
    rule: str
    cut: int
    """Questions with an answer that was cut at max_new_tokens: they are judged as far as they go."""
    solved: int
    """Questions that some scale solves under the rule."""
    mean_complexity: float | None
    """Over images."""
    mean_tokens: dict[str, float | None]
    """Mean required tokens per grid under each convention in UNSOLVED."""
    accuracy: dict[int, float]
    """Share of the questions for which a scale is sufficient."""
    metric: dict[int, float] | None
    """Mean metric score of the questions with a ground truth, at each scale; None if there are none."""
    oracle_accuracy: float | None
    """Share of the questions for which any scale is sufficient (the paper's oracle), whatever the rule."""
    non_monotone: float | None
    """Share of the questions for which some scale is sufficient and a finer one is not."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "ladder": list(self.ladder)}


def summarise(results: Iterable[Complexity]) -> Summary:
    """Sum up scored images; they have to share one ladder and one rule, else M3ScoreError."""
    scored = list(results)
    ladders = {result.ladder for result in scored}
    rules = {result.rule for result in scored}
    if len(ladders) > 1 or len(rules) > 1:
        raise M3ScoreError(
            f"a summary needs one ladder and one rule, not {sorted(ladders)} and {sorted(rules)}."
        )
    ladder = next(iter(ladders), ())
    questions = [question for result in scored for question in result.questions]
    return Summary(
        images=len(scored),
        questions=len(questions),
        judged_by_truth=sum(question.judged_by == "correct" for question in questions),
        ladder=ladder,
        rule=next(iter(rules), "stays"),
        cut=sum(question.cut for question in questions),
        solved=sum(question.solved for question in questions),
        mean_complexity=_mean([result.complexity for result in scored]),
        mean_tokens={
            name: mean_tokens([q.required_tokens for q in questions], ladder, name) for name in UNSOLVED
        },
        accuracy=_per_scale(ladder, [question.sufficient for question in questions]) or {},
        metric=_per_scale(ladder, [q.metric_scores for q in questions if q.metric_scores is not None]),
        oracle_accuracy=_mean([any(question.sufficient) for question in questions]),
        non_monotone=_mean([not question.monotone for question in questions]),
    )


def mean_tokens(required: Sequence[int | None], ladder: Sequence[int], unsolved: str) -> float | None:
    """Mean of required tokens (None = unsolved) under a convention in UNSOLVED; None for an empty mean."""
    if unsolved not in UNSOLVED:
        raise M3ScoreError(
            f"unknown convention {unsolved!r} for the unsolved; allowed: {', '.join(UNSOLVED)}."
        )
    if unsolved == "answerable":
        return _mean([tokens for tokens in required if tokens is not None])
    stand_in = 1 if unsolved == "one" else max(ladder, default=1)
    return _mean([stand_in if tokens is None else tokens for tokens in required])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _per_scale(ladder: Sequence[int], rows: Sequence[Sequence[float]]) -> dict[int, float] | None:
    if not rows:
        return None
    return {
        tokens: sum(column) / len(rows)
        for tokens, column in zip(ladder, zip(*rows, strict=True), strict=True)
    }
