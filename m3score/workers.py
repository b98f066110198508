"""Work on many images at once, in order, with little in memory: `map_images`.

Knows threads and processes, nothing about images. A feature takes hundreds of short steps of Python, which
threads of one process take in turns; so long runs over files go to worker processes. These are started as
programs of their own, not forked (fork and threads don't mix), and never import the caller's script: no
`if __name__ == "__main__"` is needed. Pipes between the processes carry pickles; nothing else does.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar, cast

from m3score.errors import M3ScoreError

T = TypeVar("T")
R = TypeVar("R")

MANY = 128
"""After so many images, processes are started: they take a few tenths of a second each to come up."""

_SERVE = "from m3score.workers import _serve; _serve()"


def map_images(function: Callable[[T], R], images: Iterable[T], workers: int | None = None) -> Iterator[R]:
    """`function` of each image, in order, worked out ahead.

    Args:
        function: what to do with one image. What it raises is raised when its turn comes, and ends the rest.
            Processes are used after MANY images, for functions that another process can import, and for
            images that are not decoded yet (paths, bytes); everything else is done in threads.
        images: any number of them, also without end: only a few more are taken than results are wanted.
        workers: how many at once; by default as many as this process may use processors. 1: just `map`.

    Raises:
        M3ScoreError: workers is not a positive number, or a worker process died.
    """
    if workers is None:
        workers = available_processors()
    if workers < 1:
        raise M3ScoreError(f"workers must be 1 or more, not {workers}.")
    return map(function, images) if workers == 1 else _mapped(function, images, workers)


def available_processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _mapped(function: Callable[[T], R], images: Iterable[T], workers: int) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    crew: _Crew | None = None
    work = function
    pool = ThreadPoolExecutor(workers, thread_name_prefix="m3score")
    try:
        for count, image in enumerate(images):
            if count == MANY and _importable(function):
                crew = _Crew(function)
                work = crew.work
            waiting.append(pool.submit(work, image))
            if len(waiting) >= 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the caller stops early
        pool.shutdown(cancel_futures=True)
        if crew:
            crew.dismiss()


def _importable(function: Callable[..., Any]) -> bool:
    """Whether a process of its own can import the function, and there can be such a process."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "__main__")
    if not sys.executable or getattr(sys, "frozen", False) or module == "__main__":
        return False
    return getattr(sys.modules.get(module), name, None) is function


def _light(image: Any) -> bool:
    """Whether to send it is cheaper than to work on it: no decoded pixels."""
    if isinstance(image, tuple):
        return all(_light(part) for part in image)
    if isinstance(image, str | os.PathLike | None):
        return True
    return isinstance(image, bytes) and len(image) < 2**20


class _Crew:
    """Worker processes, one for each thread that asks."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._mine = threading.local()
        self._all: list[subprocess.Popen[bytes]] = []

    def work(self, image: Any) -> Any:
        """function(image), in this thread's process, or here if the image is better not sent."""
        if not _light(image):
            return self._function(image)
        process = getattr(self._mine, "process", None) or self._start()
        try:
            _send(process, image)
            fine, result = pickle.load(cast(IO[bytes], process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError):
            raise M3ScoreError(f"a worker process died at {str(image)[:200]}.") from None
        if not fine:
            raise result
        return result

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        )
        self._all.append(process)
        self._mine.process = process
        _send(process, (self._function.__module__, self._function.__qualname__))
        return process

    def dismiss(self) -> None:
        """End all processes; those that are in the middle of something are not waited for."""
        for process in self._all:
            process.terminate()
        for process in self._all:
            process.communicate()


def _environment() -> dict[str, str]:
    """Ours, with modules looked for where this process looks for them."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    pipe = cast(IO[bytes], process.stdin)
    pickle.dump(value, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _serve() -> None:
    """A worker process: the function's name comes first, then images; ends with its input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function may print must not end up among the answers
    module, name = pickle.load(orders)
    function = getattr(importlib.import_module(module), name)
    while True:
        try:
            image = pickle.load(orders)
        except EOFError:
            return
        try:
            answer = (True, function(image))
        except Exception as error:
            answer = (False, error)
        try:
            text = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
            pickle.loads(text)  # some exceptions can be written but not read
        except Exception as error:
            text = pickle.dumps((False, M3ScoreError(f"a worker's answer can't be sent: {error}")))
        answers.write(text)
        answers.flush()
