"""What a report needs of a trace table: answers about the shown pictures, and accuracy by tokens.

Makes one pass over the table. It keeps only the answers about shown pictures, two bytes per graded question,
and the questions whose rows are not complete yet. Runs no model.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from m3score.analysis.report.score_summary import Reservoir, Row
from m3score.common.errors import M3ScoreError
from m3score.routing.promises import frontier as curves

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3score.routing.predictor import Predictor

QUESTIONS = 12
"""Most questions that are shown of one picture."""
ROUTED = 400
"""Size of the uniform sample of questions that the router is evaluated on."""
ROUTER_POINTS = 60
TEXT = 300
"""Most characters of an answer that are kept."""


@dataclass
class Answers:
    """The part of a trace table that a report shows."""

    ladder: tuple[int, ...]
    images: dict[str, dict[Any, dict[int, Row]]] = field(default_factory=dict)
    """Trace rows of the shown pictures, by image, question and tokens."""
    patterns: array[int] = field(default_factory=lambda: array("H"))
    """Per question with a ground truth, one bit per scale: whether it is right (bit 0: coarsest)."""
    sample: list[tuple[str, str, int]] = field(default_factory=list)
    """A uniform sample of up to ROUTED (image, question, pattern)."""
    models: set[str] = field(default_factory=set)

    def sufficient(self) -> np.ndarray:
        """bool (questions, scales): which scales are right, coarsest first."""
        return _bits(self.patterns, len(self.ladder))


def _bits(patterns: Iterable[int], scales: int) -> np.ndarray:
    values = np.fromiter(patterns, dtype=np.int64)
    return (values[:, None] >> np.arange(scales)) & 1 == 1


def collect(rows: Iterable[Row], shown: Collection[str], ladder: Sequence[int], seed: int = 0) -> Answers:
    """Read a trace table once.

    Args:
        rows: its rows, without absent values.
        shown: the images whose answers are kept.
        ladder: the scales of the score table, coarsest first.
        seed: of the sample.

    Raises:
        M3ScoreError: the traces have a scale that the score table does not have.
    """
    answers, wanted = Answers(tuple(ladder)), set(shown)
    places = {tokens: place for place, tokens in enumerate(ladder)}
    full = (1 << len(ladder)) - 1
    pending: dict[tuple[str, Any], list[int]] = {}
    drawn = Reservoir(ROUTED, f"{seed}/routed")
    for row in rows:
        image, tokens = row.get("image", ""), row.get("tokens")
        if tokens is None:
            continue  # the image has no traces
        if tokens not in places:
            scales = ", ".join(map(str, ladder)) or "none"
            raise M3ScoreError(
                f"the traces have a scale of {tokens} tokens, but the scores those of {scales}: they are not "
                "of one run."
            )
        key = row.get("question_id", row.get("question", ""))
        if image in wanted:
            answers.images.setdefault(image, {}).setdefault(key, {})[tokens] = row
        if model := row.get("model"):
            answers.models.add(model)
        if "correct" not in row:
            continue
        state = pending.setdefault((image, key), [0, 0])
        state[0] |= 1 << places[tokens]
        state[1] |= bool(row["correct"]) << places[tokens]
        if state[0] == full:
            answers.patterns.append(state[1])
            drawn.add((image, row.get("question", ""), state[1]))
            del pending[image, key]
    answers.sample = drawn.items
    return answers


def question_tables(answers: Answers, image: str) -> list[dict[str, Any]]:
    """A picture's questions with the answers at every scale, finest first, as JSON-ready values."""
    tables = []
    for scales in list(answers.images.get(image, {}).values())[:QUESTIONS]:
        finest = max(scales)
        known = all("correct" in row for row in scales.values())
        tables.append(
            {
                "question": _short(scales[finest].get("question", "")),
                "references": [_short(text) for text in scales[finest].get("references", ())[:5]],
                "known": known,
                "scales": [
                    {
                        "tokens": tokens,
                        "visual": scales[tokens].get("visual_tokens", tokens),
                        "answer": _short(scales[tokens].get("answer", "")),
                        "agreement": _rounded(scales[tokens].get("agreement")),
                        "good": bool(scales[tokens].get("correct" if known else "consistent")),
                    }
                    for tokens in sorted(scales, reverse=True)
                ],
            }
        )
    return tables


def _short(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 3)


def frontier(answers: Answers) -> dict[str, Any] | None:
    """Accuracy against mean tokens, of every fixed scale and the oracle; None without a ground truth.

    The oracle is the M3 paper's (arXiv 2405.17430, section 4.2): the fewest tokens with a right answer. The
    rule is "first" whatever the scores' rule, since no router can do better. A question that no scale solves
    costs the coarsest scale.
    """
    if not answers.patterns:
        return None
    ladder, sufficient = answers.ladder, answers.sufficient()
    fixed = curves.fixed_scales(sufficient, ladder)
    ceiling = curves.ceiling(sufficient, ladder)
    return {
        "questions": len(sufficient),
        "fixed": [[t, float(a)] for t, a in zip(ladder, fixed.accuracy, strict=True)],
        "oracle": [float(ceiling.tokens[-1]), float(ceiling.accuracy[-1])],
        "router": None,
    }


def routed(
    answers: Answers,
    predictor: Predictor,
    find: Callable[[str], str],
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any] | None:
    """A router's curve over safety margins, on the sampled questions; None if no picture can be opened.

    Args:
        answers: from traces with a ground truth.
        predictor: one that uses pixel features and has this ladder.
        find: gives the file of an image by its name in the table.
        progress: called once per question.
    """
    from m3score.routing.features.image import image_features
    from m3score.routing.features.question import question_features

    predicted, patterns = [], []
    features: dict[str, np.ndarray | None] = {}
    for image, question, pattern in answers.sample:
        progress()
        if image not in features:
            try:
                features[image] = image_features(find(image))
            except M3ScoreError:
                features[image] = None
        seen = features[image]
        if seen is None:
            continue
        asked = question_features(question) if predictor.with_question and question.strip() else None
        predicted.append(float(predictor.predict(seen, asked)[0]))
        patterns.append(pattern)
    if not predicted:
        return None
    right = _bits(patterns, len(answers.ladder))
    curve = curves.routed(np.asarray(predicted), right, answers.ladder, ROUTER_POINTS)
    points = dict(zip(curve.tokens.tolist(), curve.accuracy.tolist(), strict=True))
    return {"questions": len(right), "points": [[t, points[t]] for t in sorted(points)]}
