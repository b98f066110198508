"""Work on many images at once, in order, with little in memory: `map_images`.

Knows threads and processes, nothing about images. A feature takes hundreds of short steps of Python, which
threads of one process take in turns; so long runs over files go to worker processes (worker_pool.py), several
images at a time: to hand over one costs as much as a tenth of its work.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.images.worker_pool import FailedThere, PoolSession, WorkerError, available

T = TypeVar("T")
R = TypeVar("R")

MANY = 128
"""After so many images, processes are started: they take a few tenths of a second each to come up."""

BATCH = 16
"""Images that a process is given at once, at most."""

BATCH_SECONDS = 0.05
"""Work that a process is given at once, and how long a batch may wait to be full."""

BATCH_BYTES = 2**20
"""Bytes of images that aren't in files, from which on a batch is full."""


def map_images(
    function: Callable[[T], R],
    images: Iterable[T],
    workers: int | None = None,
    *,
    limits: Limits | None = None,
    instead: Callable[[T, M3ScoreError], R] | None = None,
) -> Iterator[R]:
    """`function` of each image, in order, worked out ahead.

    Args:
        function: what to do with one image. What it raises is raised when its turn comes, and ends the rest;
            in a process, what is no M3ScoreError becomes a FailedThere with its words. Processes are used
            after MANY images, for functions that another process can import, and for images that are not
            decoded yet (paths, bytes); everything else is done in threads.
        images: any number of them, also without end: only a few more are taken than results are wanted.
        workers: how many at once; by default as many as this process may use processors. 1: just `map`,
            unless there are limits.
        limits: for images that nobody has vouched for: processes from the first one on, with so much time and
            memory for each. (The function itself looks after pixels and bytes.)
        instead: what to give for an image whose process died or took too long, and the error; without it,
            that is raised.

    Raises:
        M3ScoreError: workers is not a positive number, or a worker process died.
    """
    if workers is None:
        workers = available_processors()
    if workers < 1:
        raise M3ScoreError(f"workers must be 1 or more, not {workers}.")
    if workers == 1 and limits is None:
        return map(function, images)
    return _mapped(function, images, workers, limits, instead)


def available_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _mapped(
    function: Callable[[T], R],
    images: Iterable[T],
    workers: int,
    limits: Limits | None,
    instead: Callable[[T, M3ScoreError], R] | None,
) -> Iterator[R]:
    crew = PoolSession(limits)
    pace = _Pace()
    waiting: deque[Future[list[R | _Raised]]] = deque()

    def here(batch: list[T]) -> list[R | _Raised]:
        return one_by_one(function, batch)

    def elsewhere(batch: list[T]) -> list[R | _Raised]:
        begun = time.monotonic()
        done = together(batch)
        pace.took(time.monotonic() - begun, len(batch))
        return done

    def together(batch: list[T]) -> list[R | _Raised]:
        if len(batch) > 1 and all(sendable(image) for image in batch):
            with suppress(M3ScoreError, FailedThere):  # by one of them: alone it shows which
                done: list[R | _Raised] = crew.call(_each, function.__module__, function.__qualname__, batch)
                return done
        return one_by_one(alone, batch)

    def one_by_one(work: Callable[[T], R], batch: list[T]) -> list[R | _Raised]:
        done: list[R | _Raised] = []
        for image in batch:
            try:
                done.append(work(image))
            except BaseException as error:  # for the caller, when its turn comes
                return [*done, _Raised(error)]
        return done

    def alone(image: T) -> R:
        if not sendable(image):
            return function(image)
        try:
            result: R = crew.call(function, image)
            return result
        except WorkerError as error:
            if instead is None:
                raise WorkerError(f"{error}.", subject=str(image)[:200]) from None
            return instead(image, error)

    def sendable(image: T) -> bool:
        return _sendable(image, any_size=limits is not None)

    able = _importable(function)
    source, taken = iter(images), 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="m3score")
    try:
        while True:
            there = able and (limits is not None or taken >= MANY)
            batch = _batch(source, pace.images if there else 1)
            if not batch:
                break
            taken += len(batch)
            waiting.append(pool.submit(elsewhere if there else here, batch))
            while waiting and (len(waiting) >= 4 * workers or waiting[0].done()):
                yield from _results(waiting.popleft().result())
        while waiting:
            yield from _results(waiting.popleft().result())
    finally:  # also when the caller stops early
        crew.close()
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Raised:
    """In the place of a result."""

    error: BaseException


def _results(done: list[R | _Raised]) -> Iterator[R]:
    for result in done:
        if isinstance(result, _Raised):
            raise result.error
        yield result


class _Pace:
    """How many images make a batch: few where each takes long, lest their times add up to one's limit."""

    def __init__(self) -> None:
        self.images = 1

    def took(self, seconds: float, images: int) -> None:
        self.images = max(1, min(BATCH, int(BATCH_SECONDS * images / max(seconds, 1e-9))))


def _batch(source: Iterator[T], most: int) -> list[T]:
    """The next images: at most so many, fewer where they come slowly or are large, none at the end."""
    batch: list[T] = []
    until, room = time.monotonic() + BATCH_SECONDS, BATCH_BYTES
    while len(batch) < most and room > 0 and (not batch or time.monotonic() < until):
        for image in source:
            batch.append(image)
            room -= _bytes_in(image)
            break
        else:
            break
    return batch


def _bytes_in(image: Any) -> int:
    if isinstance(image, tuple):
        return sum(map(_bytes_in, image))
    return len(image) if isinstance(image, bytes) else 0


def _each(module: str, name: str, images: list[Any]) -> list[Any]:
    """In a worker process: a function of each image."""
    function = getattr(import_module(module), name)
    return [function(image) for image in images]


def _importable(function: Callable[..., Any]) -> bool:
    """Whether a process of its own can import the function, and there can be such a process."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "__main__")
    if not available() or module == "__main__":
        return False
    return getattr(sys.modules.get(module), name, None) is function


def _sendable(image: Any, *, any_size: bool) -> bool:
    """Whether it can be sent, and should be: no decoded pixels, or sending costs more than the work."""
    if isinstance(image, tuple):
        return all(_sendable(part, any_size=any_size) for part in image)
    if isinstance(image, str | os.PathLike | int | float | None):
        return True
    return isinstance(image, bytes) and (any_size or len(image) < 2**20)
