"""What a predictor's calibration leaves behind: predictions, and what sufficed, of questions never fitted to.

Knows numbers only. Certificates, prices and drift are worked out from it whenever they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3score.common.errors import M3ScoreError

NO_QUESTIONS = "the predictor was fitted on images alone: leave the question out."


@dataclass(frozen=True, eq=False)
class QuestionRecord:
    """All questions of the calibration images."""

    image: np.ndarray
    """int32 (m,), ascending from 0 without gaps: which image a question is about."""
    most: int
    """Questions about one image at most; promises per question are for traffic that has no more."""
    image_only: np.ndarray
    """float32 (m,): as in CalibrationRecord."""
    with_question: np.ndarray | None
    sufficient: np.ndarray
    """bool (m, scales)"""

    def predictions(self, with_question: bool) -> np.ndarray:
        """float32 (m,) of one form; M3ScoreError if there is none."""
        return _of_form(self.image_only, self.with_question, with_question)


@dataclass(frozen=True, eq=False)
class CalibrationRecord:
    """What certifies margins: predictions for questions that the fit never saw, and what sufficed for them.

    One question per image, drawn by a seed before its answers were looked at, so that rows are independent.
    """

    image_only: np.ndarray
    """float32 (n,): ln(tokens) from the image alone, as Predictor.predict gives it."""
    with_question: np.ndarray | None
    """float32 (n,): ln(tokens) from image and question."""
    sufficient: np.ndarray
    """bool (n, scales): whether each scale suffices, coarsest first."""
    gains_image_only: np.ndarray | None = None
    """float32 (n, steps): what a price is set by, as Predictor.image_only_gains gives it; None without."""
    gains_with_question: np.ndarray | None = None
    questions: QuestionRecord | None = None
    """All questions of the same images, for promises per question; None in older files."""

    def gains(self, with_question: bool) -> np.ndarray | None:
        """float32 (n, steps) of one form, where it has any."""
        return self.gains_with_question if with_question else self.gains_image_only

    def predictions(self, with_question: bool) -> np.ndarray:
        """float32 (n,) of one form; M3ScoreError if there is none."""
        return _of_form(self.image_only, self.with_question, with_question)


def _of_form(image_only: np.ndarray, both: np.ndarray | None, with_question: bool) -> np.ndarray:
    chosen = both if with_question else image_only
    if chosen is None:
        raise M3ScoreError(NO_QUESTIONS)
    return chosen


def check_record(
    record: CalibrationRecord | QuestionRecord, ladder: Sequence[int], with_question: bool
) -> None:
    """M3ScoreError for arrays of another type or shape, or predictions off the ladder."""
    top, sufficient = math.log(ladder[-1]), record.sufficient
    if sufficient.dtype != bool or sufficient.ndim != 2 or sufficient.shape[1] != len(ladder):
        raise M3ScoreError(
            f"the calibration's sufficient must be true or false at each of the {len(ladder)} scales of the "
            f"ladder {ladder}."
        )
    if (record.with_question is None) == with_question:
        raise M3ScoreError("with_question needs its calibration, and the calibration its with_question.")
    for values in (record.image_only, record.with_question):
        if values is None:
            continue
        if values.dtype != np.float32 or values.shape != (len(sufficient),):
            raise M3ScoreError(
                "the calibration needs one float32 prediction for every row of sufficient, "
                f"{len(sufficient)} in all."
            )
        if not np.all((values >= 0) & (values <= np.float32(top))):  # false for NaN as well
            raise M3ScoreError("the calibration's predictions must lie between 0 and ln(finest).")


def check_questions(record: QuestionRecord, ladder: Sequence[int], with_question: bool) -> None:
    """The same of all questions, and of what they are about."""
    check_record(record, ladder, with_question)
    image = record.image
    whole = image.dtype == np.int32 and image.shape == (len(record.sufficient),) and len(image) > 0
    if not whole or image[0] != 0 or not np.isin(np.diff(image), (0, 1)).all():
        raise M3ScoreError("the calibration's questions must name their images, 0, 1, 2 and so on, in order.")
    if np.bincount(image).max() > record.most:
        raise M3ScoreError(f"the calibration has images with more than {record.most} questions.")
