"""Where the time goes: seconds by stage, in the main thread and in workers.

Code says what it is at with `stage(name)`, which costs next to nothing while nobody measures. Knows no
models; work on a GPU is waited for at the end of each stage, but only while someone measures.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

MODEL_STAGES = ("vision tower", "prefill", "verify", "decode")
"""Stages that are spent in the model; all others are outside of it."""

_active: Profile | None = None
_here = threading.local()


class Profile:
    """Seconds by stage, those of stages within a stage not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """In the thread that measures."""
        self.workers: dict[str, float] = {}
        """In all others, beside it."""
        self.wall = 0.0
        self._thread = threading.get_ident()
        self._lock = threading.Lock()

    def add(self, name: str, seconds: float) -> None:
        """Count seconds of the calling thread."""
        counts = self.seconds if threading.get_ident() == self._thread else self.workers
        with self._lock:
            counts[name] = counts.get(name, 0.0) + seconds

    @property
    def outside(self) -> float:
        """Seconds of wall time in which the model didn't work."""
        return self.wall - sum(self.seconds.get(name, 0.0) for name in MODEL_STAGES)


@contextmanager
def profiled() -> Iterator[Profile]:
    """Measure the stages that run within."""
    global _active
    profile, start = Profile(), time.perf_counter()
    _active = profile
    try:
        yield profile
    finally:
        _active = None
        profile.wall = time.perf_counter() - start


@contextmanager
def stage(name: str) -> Iterator[None]:
    """What runs within is this stage, but for stages within that."""
    profile = _active
    if profile is None:
        yield
        return
    before = getattr(_here, "inner", 0.0)
    _here.inner = 0.0
    start = time.perf_counter()
    try:
        yield
        _wait_for_gpu()
    finally:
        spent = time.perf_counter() - start
        profile.add(name, spent - _here.inner)
        _here.inner = before + spent


def _wait_for_gpu() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
