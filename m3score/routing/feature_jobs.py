"""A picture on its way to a predictor: what a worker process is told, and the features that come back.

Knows features, no predictor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from m3score.common.errors import M3ScoreError, image_failure
from m3score.common.limits import Limits
from m3score.data.item import FoundImage
from m3score.images.decode import printable
from m3score.images.video import is_video, open_frames
from m3score.routing.features.image import image_features

Asked: TypeAlias = "tuple[str | None, ...]"
Item: TypeAlias = "tuple[str | None, Any, Asked, str | None, int, int, int | None]"
"""What goes to a worker: path, what is to be decoded, questions, error, pixels and bytes at most, frames."""
Looked: TypeAlias = "tuple[str | None, Asked, np.ndarray | tuple[str, bool]]"
"""What comes back: path, questions, image features (a row per frame), or what is wrong and whether that may
be gone next time."""
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
    return tuple(one.question for one in image.questions) if isinstance(image, FoundImage) else ()


def _text(question: Any) -> str | None:
    """A question, or None for an empty one."""
    if question is not None and not isinstance(question, str):
        raise M3ScoreError(f"a question must be text, not {type(question).__name__}.")
    return question if question and question.strip() else None


def order_of(image: Any, asked: Asked, limits: Limits, frames: int | None) -> Item:
    """What a worker is told about an image."""
    how = limits.max_pixels, limits.max_bytes, frames
    if isinstance(image, FoundImage):
        return image.shown, None if image.error else image.source, asked, image.error, *how
    path = printable(image) if isinstance(image, str | os.PathLike) else None
    return path, image, asked, None, *how


def look(item: Item) -> Looked:
    """In a worker: an image's features, or those of each frame of a video."""
    path, source, asked, known, max_pixels, max_bytes, frames = item
    if known is not None:
        return path, asked, (known, False)
    try:
        pictures: Sequence[Any] = [source]
        if frames is not None and is_video(source):
            pictures = open_frames(source, frames, max_pixels=max_pixels, max_bytes=max_bytes).pictures
        rows = [image_features(one, max_pixels=max_pixels, max_bytes=max_bytes) for one in pictures]
        return path, asked, np.stack(rows)
    except Exception as error:
        problem = image_failure(error, "can't be used")
        return path, asked, (str(problem) if path is None else problem.reason, problem.transient)


def lost(item: Item, error: M3ScoreError) -> Looked:
    """An image that its process did not survive."""
    return item[0], item[2], (error.reason, error.transient)
