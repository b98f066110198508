"""A picture on its way to a predictor: what a worker process is told, and the features that come back.

Knows features, no predictor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from m3score.common.errors import M3ScoreError, image_failure
from m3score.common.files import printable
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.images.video import is_video, open_frames
from m3score.routing.features.image import sized_features

Asked: TypeAlias = "tuple[str | None, ...]"
FeatureJob: TypeAlias = "tuple[str | None, Any, Asked, str | None, int, int, int | None]"
"""What goes to a worker: path, what is to be decoded, questions, error, pixels and bytes at most, frames."""
Size: TypeAlias = "tuple[int, int] | None"
FeatureResult: TypeAlias = "tuple[str | None, Asked, np.ndarray | tuple[str, bool], Size]"
"""What comes back: path, questions, image features (a row per frame), or what is wrong and whether that may
be gone next time; and the picture's (width, height), None for several frames or none."""
_END = object()


def with_questions(
    images: Iterable[Any], questions: str | Iterable[str | None] | None
) -> Iterator[tuple[Any, Asked]]:
    """Images with what is asked about each; what a source itself asks goes before one text for all."""
    if questions is None or isinstance(questions, str):
        text = _text(questions)
        yield from ((image, _own(image) or (text,)) for image in images)
        return
    asked = iter(questions)
    for image in images:
        question = next(asked, _END)
        if question is _END:
            raise M3ScoreError("there are more images than questions.")
        yield image, (_text(question),)
    if next(asked, _END) is not _END:
        raise M3ScoreError("there are more questions than images.")


def _own(image: Any) -> Asked:
    """What an image's source asks about it."""
    return tuple(one.question for one in image.questions) if isinstance(image, ImageItem) else ()


def _text(question: Any) -> str | None:
    """A question, or None for an empty one."""
    if question is not None and not isinstance(question, str):
        raise M3ScoreError(f"a question must be text, not {type(question).__name__}.")
    return question if question and question.strip() else None


def feature_job(image: Any, asked: Asked, limits: Limits, frames: int | None) -> FeatureJob:
    """The job of a worker: what it is to decode, with its limits."""
    allowed = limits.max_pixels, limits.max_bytes, frames
    if isinstance(image, ImageItem):
        return image.shown, None if image.error else image.source, asked, image.error, *allowed
    path = printable(image) if isinstance(image, str | os.PathLike) else None
    return path, image, asked, None, *allowed


def extract_features(job: FeatureJob) -> FeatureResult:
    """In a worker: an image's features, or those of each frame of a video."""
    path, source, asked, known, max_pixels, max_bytes, frames = job
    if known is not None:
        return path, asked, (known, False), None
    try:
        pictures: Sequence[Any] = [source]
        if frames is not None and is_video(source):
            pictures = open_frames(source, frames, max_pixels=max_pixels, max_bytes=max_bytes).pictures
        found = [sized_features(one, max_pixels=max_pixels, max_bytes=max_bytes) for one in pictures]
        return path, asked, np.stack([row for row, _ in found]), found[0][1] if len(found) == 1 else None
    except Exception as error:
        problem = image_failure(error, "can't be used")
        return path, asked, (str(problem) if path is None else problem.reason, problem.transient), None


def failed_features(job: FeatureJob, error: M3ScoreError) -> FeatureResult:
    """An image that its process did not survive."""
    return job[0], job[2], (error.reason, error.transient), None
