"""Worker processes: what may crash, hang or eat memory does so there, and costs one result.

Knows processes, nothing about images. Workers are started as programs of their own, not forked (fork and
threads don't mix), and never import the caller's script: no `if __name__ == "__main__"` is needed. They take
one call at a time and are used again by whoever calls next; a few stay for later calls. A worker that dies,
or that takes too long and is killed, fails its call and is replaced.
"""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any, cast

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.images import protocol

logger = logging.getLogger(__name__)

KEPT = 2
"""Idle workers that stay when a crew is done; each has some 40 MB."""

START_UP = 0.3
"""Seconds of work, or as many as the last start took, for which another worker is worth its start: a handful
of images needs but one."""

_SERVE = "from m3score.images.worker import serve; serve()"

_one_large = threading.Lock()
"""Who holds it may let a worker decode a large picture: however many workers, there is one at a time."""


def available() -> bool:
    """Whether there can be worker processes."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class WorkerError(M3ScoreError):
    """A worker process died, or was killed because it took too long."""

    transient = True


class FailedThere(RuntimeError):
    """What a function raised in a worker process, unless it was an M3ScoreError: its kind and its words."""


class PoolSession:
    """Worker processes for one run; used from several threads, each call in a process of its own."""

    def __init__(self, limits: Limits | None = None) -> None:
        """
        Args:
            limits: of each call; without them only the memory is limited, by the defaults.
        """
        self._seconds = limits.seconds if limits else None
        self._memory = (limits or Limits()).memory
        self._busy: set[_Worker] = set()
        self._closed = False

    def __enter__(self) -> PoolSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments) in a worker process, which imports the function by its name.

        Raises:
            M3ScoreError: the function raised it, or (WorkerError) its process died or took too long.
            FailedThere: the function raised anything else.
            protocol.WireError: an argument or a result is of a type that can't be sent.
        """
        here = os.getcwd()  # it may have changed since the worker started
        order = protocol.pack(
            (function.__module__, function.__qualname__, arguments, here, self._seconds, self._memory)
        )
        worker = _pool.borrow()
        try:
            with _pool.changed:
                if self._closed:
                    raise WorkerError("the run is over")
                self._busy.add(worker)
            return worker.ask(order, self._seconds, self._memory)
        finally:
            with _pool.changed:
                self._busy.discard(worker)
                _pool.give_back(worker)

    def close(self) -> None:
        """Kill what is in the middle of something, and let all but a few of the others go."""
        with _pool.changed:
            self._closed = True
            for worker in self._busy:
                worker.kill()
        _pool.trim()


class _Worker:
    """One process."""

    def __init__(self) -> None:
        quiet = None if logger.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL  # C libraries talk a lot
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE],  # -P: what lies in the working folder is no module
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=quiet,
            env=_environment(),
        )
        self.deadline: float | None = None
        self.late = False
        self.killed = False
        self.started = time.monotonic()
        self.begun: float | None = None
        """When its work began; None while it comes up."""
        self.start_up: float | None = None

    def ask(self, order: tuple[bytes, list[Any]], seconds: float | None, memory: int) -> Any:
        orders, answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        room = False
        try:
            if self.start_up is None:  # not the picture's fault, however long it takes
                protocol.receive(answers, 0)
                self.begun = time.monotonic()
                self.start_up = self.begun - self.started
            self._wait(seconds)
            protocol.send(orders, order)
            kind, value = protocol.receive(answers, memory)
            if kind == "large":
                self._wait(None)
                room = _one_large.acquire()
                self._wait(seconds)
                protocol.send(orders, protocol.pack("go on"))
                kind, value = protocol.receive(answers, memory)
            if kind == "wrong":
                reason, subject, transient = value
        except (OSError, EOFError, ValueError, TypeError):  # it died, or doesn't speak as a worker does
            self.kill()
            raise WorkerError(self._death_message(seconds)) from None
        finally:
            self.deadline = None
            if room:
                _one_large.release()
        if kind == "fine":
            return value
        if kind == "wrong":
            subject = None if subject is None else str(subject)
            raise M3ScoreError(reason, subject=subject, transient=bool(transient))
        raise FailedThere(str(value))

    def _wait(self, seconds: float | None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds

    def _death_message(self, seconds: float | None) -> str:
        if self.late:
            return f"took longer than the limit of {seconds:g} seconds"
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"exit code {status}"
        return f"the process that worked on it died ({how})"

    @property
    def alive(self) -> bool:
        return not self.killed and self._process.poll() is None

    def kill(self) -> None:
        self.killed = True
        self._process.kill()

    def end(self) -> None:
        """Kill it, wait for it and close its pipes."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # bytes that it will never read
                cast(IO[bytes], pipe).close()
        self._process.wait()


class _Pool:
    """All workers of this process."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._worked = 0.0
        self._start_up = START_UP
        self._watch: threading.Thread | None = None

    def borrow(self) -> _Worker:
        """An idle worker; or another one, if there is none or those there are have worked a while."""
        with self.changed:
            while True:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.alive:
                        return self._taken(worker)
                    worker.end()
                now = time.monotonic()
                worked = self._worked + sum(now - (worker.begun or now) for worker in self._busy)
                if worked >= self._start_up * len(self._busy):
                    return self._taken(_Worker())
                self.changed.wait(0.02)

    def _taken(self, worker: _Worker) -> _Worker:
        worker.begun = None if worker.start_up is None else time.monotonic()
        self._busy.add(worker)
        if self._watch is None:
            self._watch = threading.Thread(target=self._watch_clock, name="m3score-clock", daemon=True)
            self._watch.start()
        return worker

    def give_back(self, worker: _Worker) -> None:
        with self.changed:
            self._busy.discard(worker)
            if worker.begun is not None and worker.start_up is not None:
                self._worked += time.monotonic() - worker.begun
                self._start_up = max(START_UP, worker.start_up)
            if worker.alive:
                self._idle.append(worker)
            else:
                worker.end()
            self.changed.notify()

    def trim(self, keep: int = KEPT) -> None:
        """End idle workers but for a few."""
        with self.changed:
            leaving, self._idle = self._idle[keep:], self._idle[:keep]
        for worker in leaving:
            worker.end()

    def forget(self) -> None:
        """In a forked process: the workers are the parent's."""
        self.__init__()  # type: ignore[misc]

    def _watch_clock(self) -> None:
        while True:
            time.sleep(0.05)
            now = time.monotonic()
            with self.changed:
                late = [worker for worker in self._busy if worker.deadline and worker.deadline < now]
                for worker in late:
                    worker.late = True
                    worker.kill()
                if not self._busy:
                    self._watch = None
                    return


def _environment() -> dict[str, str]:
    """Ours, with modules looked for where this process looks for them, and one thread of numpy's.

    glibc learns from large allocations to keep what was freed: a fixed threshold gives pictures' memory back.
    A little is kept all the same: to give back and fetch again for every picture costs a fifth of the time.
    """
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**22),
        "MALLOC_TRIM_THRESHOLD_": str(2**24),
    }


_pool = _Pool()
atexit.register(_pool.trim, 0)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)
