"""Accuracy per task and scale, counted on answers that are known."""

from __future__ import annotations

from itertools import islice

import pytest

from m3score.answers import ScaleAnswer
from m3score.calibration.evaluate import evaluate_drawn, held_out

LADDER = (1, 9, 36, 144, 576)


class Knowing:
    """Knows every answer from `enough` tokens on, and says nonsense below."""

    name = "knowing"
    ladder = LADDER

    def __init__(self, seed: int, questions: int, enough: int) -> None:
        self.enough = enough
        self.truth = {
            (drawing.image.tobytes(), asked.question): asked
            for drawing, asked in islice(held_out(seed), questions)
        }

    def needed(self, asked) -> int:
        return self.enough

    def answer_ladder(self, images, questions, *, max_new_tokens=32):
        return [
            [self._at_all_scales(self.truth[image.tobytes(), question]) for question in own]
            for image, own in zip(images, questions, strict=True)
        ]

    def _at_all_scales(self, asked) -> tuple[ScaleAnswer, ...]:
        return tuple(
            ScaleAnswer(t, t, asked.answer if t >= self.needed(asked) else "zzz", 1.0, 0.0) for t in LADDER
        )


class NeedsMoreForSmallLetters(Knowing):
    def needed(self, asked) -> int:
        height = asked.detail.get("height", 200)
        return 576 if height < 15 else 144 if height < 30 else 36 if height < 60 else 9


def test_accuracy_is_counted_per_task_and_scale():
    result = evaluate_drawn(Knowing(5, 120, enough=36), 120, seed=5, at_once=50)
    table = result.by_task()
    assert list(table.columns) == ["questions", 576, 144, 36, 9, 1]
    assert table.loc["all", "questions"] == 120
    assert table["questions"].drop("all").sum() == 120
    assert (table[36] == 100).all() and (table[9] == 0).all()
    assert "| all | 120 | 100.0 | 100.0 | 100.0 | 0.0 | 0.0 |" in result.to_markdown()


def test_facts_of_the_card():
    facts = evaluate_drawn(NeedsMoreForSmallLetters(6, 400, enough=1), 400, seed=6).facts()
    assert facts["overall accuracy at the finest scale, %"] == 100
    assert facts["signs read, letters of 40 px and more, %"] == 100
    assert facts["Spearman of letter height and required tokens, signs read"] < -0.9
    assert facts["largest rise of overall accuracy as tokens drop, points"] == 0


def test_progress_is_told():
    told: list[int] = []
    evaluate_drawn(Knowing(5, 30, enough=1), 30, seed=5, at_once=20, progress=told.append)
    assert told == [20, 10]


@pytest.mark.parametrize("seed", [1, 2])
def test_held_out_questions_are_deterministic(seed):
    one = [asked for _, asked in islice(held_out(seed), 20)]
    assert one == [asked for _, asked in islice(held_out(seed), 20)]
