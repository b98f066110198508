"""Work on many images at once, in order, with little in memory: `map_images`.

Knows threads and processes, nothing about images. A feature takes hundreds of short steps of Python, which
threads of one process take in turns; so long runs over files go to worker processes (processes.py).
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from m3score.errors import M3ScoreError
from m3score.limits import Limits
from m3score.processes import Crew, WorkerError, available

T = TypeVar("T")
R = TypeVar("R")

MANY = 128
"""After so many images, processes are started: they take a few tenths of a second each to come up."""


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
    waiting: deque[Future[R]] = deque()
    crew = Crew(limits)
    first = 0 if limits else MANY
    work = function

    def elsewhere(image: T) -> R:
        if not _sendable(image, any_size=limits is not None):
            return function(image)
        try:
            return crew.call(function, image)
        except WorkerError as error:
            if instead is None:
                raise WorkerError(f"{str(image)[:200]}: {error}.") from None
            return instead(image, error)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="m3score")
    try:
        for count, image in enumerate(images):
            if count == first and _importable(function):
                work = elsewhere
            waiting.append(pool.submit(work, image))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the caller stops early
        crew.close()
        pool.shutdown(cancel_futures=True)


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
