"""Images on their way to the model: each opened with its questions, a few ahead of the model, in batches.

Knows threads and memory, no models. However many inputs there are, only a few images are in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from m3score.common.errors import M3ScoreError, image_failure, model_failure
from m3score.common.profiling import stage
from m3score.data.item import ImageItem
from m3score.data.questions import Question, as_question, check_question, default_questions
from m3score.images.decode import open_image

Questions = str | Question | Sequence[str | Question] | Mapping[str, Sequence[str | Question]] | None
"""What to ask: None (to describe the image), one question, several for every image, or a mapping from images
to theirs."""

MAX_PIXELS_HELD = 200_000_000
"""Decoded pixels (3 bytes each) that may wait for the model, and that may go to it in one batch. A single
image may have more than that; then it goes alone."""

MAX_BYTES_HELD = 2**26
"""Encoded bytes, of images that are no files of their own, that may wait to be decoded."""


class QuestionBook:
    """Which questions belong to which image.

    A mapping's key fits an image if it is the image's path or the end of it: "photos/cat.jpg" and "cat.jpg"
    both fit /data/photos/cat.jpg, and the longer one wins. Images that no key fits are asked `fallback`;
    without one they have no questions, which is an error of theirs.
    """

    def __init__(self, questions: Questions = None, fallback: Sequence[str | Question] = ()) -> None:
        if isinstance(questions, Mapping):
            self._by_image = {_parts(key): _as_questions(asked) for key, asked in questions.items()}
            self._names = {_parts(key): key for key in questions}
            self._fallback = _as_questions(fallback)
        else:
            self._by_image, self._names = {}, {}
            self._fallback = default_questions() if questions is None else _as_questions(questions)
            if not self._fallback:
                raise M3ScoreError("no question given: leave questions out to have the image described.")
        for question in self._fallback:
            check_question(question)
        self._unused = set(self._by_image)

    def of(self, path: str, own: tuple[Question, ...] = ()) -> tuple[Question, ...]:
        """The questions of the image at `path`; M3ScoreError if there are none.

        `own` are those that came with the image: asked where no key fits, before any fallback.
        """
        parts = _parts(os.path.abspath(path))
        for start in range(len(parts)) if self._by_image else ():
            if asked := self._by_image.get(parts[start:]):
                self._unused.discard(parts[start:])
                return asked
        if own or self._fallback:
            return own or self._fallback
        raise M3ScoreError("no question for this image among those given")

    def unused(self) -> list[str]:
        """Keys that fitted no image so far, in order."""
        return [name for parts, name in self._names.items() if parts in self._unused]


@dataclass(frozen=True)
class Opened:
    """One input: its image, upright and RGB, with its questions; or the reason why there is none."""

    path: str
    image: Any
    """A PIL image, or what a model makes of one before it runs; either knows its `size` in pixels."""
    questions: tuple[Question, ...] = ()
    error: str | None = None
    transient: bool = False
    """Whether the error may be gone when the same is tried again."""

    @property
    def pixels(self) -> int:
        """Width times height; 0 without an image."""
        return self.image.size[0] * self.image.size[1] if self.image else 0


def open_item(
    item: ImageItem,
    book: QuestionBook,
    prepare: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> Opened:
    """Decode one input and find its questions; what stands in the way is the result's error.

    `prepare` makes of an image what the model is to be handed in its place. `decode` opens a path or bytes;
    by default open_image does, in this process.
    """
    if item.error:
        return Opened(item.shown, None, error=item.error)
    try:
        questions = book.of(item.name, item.questions)
        with stage("open"):
            image = (decode or open_image)(item.source)
        return Opened(item.shown, prepare(image) if prepare else image, questions)
    except Exception as error:
        problem = image_failure(error, "can't be opened")
        return Opened(item.shown, None, error=problem.reason, transient=problem.transient)


class _HasContent(Protocol):
    @property
    def content(self) -> bytes | None: ...


_Input = TypeVar("_Input", bound=_HasContent)
_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def opened_ahead(
    items: Iterable[_Input],
    open_one: Callable[[_Input], Opened],
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[Opened]:
    """The items opened, in order; up to `ahead` are being opened or wait, and no more than fill
    MAX_PIXELS_HELD or MAX_BYTES_HELD, beyond the first."""
    source = iter(items)
    waiting: deque[tuple[Future[Opened], int]] = deque()
    more = True
    while more or waiting:
        while more and len(waiting) < ahead and _room(waiting):
            item = next(source, None)
            more = item is not None
            if item is not None:
                waiting.append((pool.submit(open_one, item), len(item.content or b"")))
                del item
        if waiting:
            with stage("waiting"):
                item_opened = waiting.popleft()[0].result()
            yield item_opened


def _room(waiting: Iterable[tuple[Future[Opened], int]]) -> bool:
    """Whether what waits leaves room for more: decoded pixels, and bytes that are still to be decoded."""
    pixels = sum(future.result().pixels for future, _ in waiting if future.done())
    encoded = sum(size for future, size in waiting if not future.done())
    return pixels < MAX_PIXELS_HELD and encoded < MAX_BYTES_HELD


def batches(opened: Iterable[Opened], batch_size: int) -> Iterator[list[Opened]]:
    """Groups in order with at most `batch_size` images and, beyond the first, MAX_PIXELS_HELD pixels.

    Inputs that failed travel along without counting, but not for long: they are results to be shown.
    """
    batch: list[Opened] = []
    for item in opened:
        images = sum(one.image is not None for one in batch)
        pixels = sum(one.pixels for one in batch)
        if (
            images == batch_size
            or len(batch) >= 4 * batch_size
            or (images and pixels + item.pixels > MAX_PIXELS_HELD)
        ):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def in_halves(
    work: Callable[[Sequence[_Given]], Sequence[_Made]], batch: Sequence[_Given]
) -> list[_Made | M3ScoreError]:
    """What `work` makes of a batch; one that fails is tried again in halves, down to the input at fault.

    Whatever a model raises, the other images must not pay for it: one bad image, or too little memory for all
    at once, costs a result with the error in its place.
    """
    if not batch:
        return []
    try:
        return [*work(batch)]
    except Exception as error:
        half = len(batch) // 2
        if half:
            return in_halves(work, batch[:half]) + in_halves(work, batch[half:])
        return [model_failure(error)]


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in os.path.normpath(path).split(os.sep) if part not in ("", "."))


def _as_questions(asked: str | Question | Sequence[str | Question]) -> tuple[Question, ...]:
    several = [asked] if isinstance(asked, str | Question) else asked
    return tuple(as_question(question) for question in several)
