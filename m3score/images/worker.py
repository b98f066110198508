"""What a worker process runs: calls come in on stdin, results go out on stdout; see worker_pool.py.

Memory, and time beyond the caller's own watch (who may be gone), are limited where the system can.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.images import protocol
from m3score.images.decode import asking_before_large

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_ANY_SIZE = 2**63
_GRACE = 10  # seconds that the caller has for killing this process before it ends by itself


def serve() -> None:
    """Answer calls until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    orders, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a function may print must not end up among the answers
    _one_thread_each()
    protocol.send(answers, protocol.pack("ready"))
    while True:
        try:
            module, name, arguments, folder, seconds, memory = protocol.receive(orders, _ANY_SIZE)
        except EOFError:
            return
        os.chdir(folder)  # without a look at the one before: that may have been deleted
        _limit_memory(memory)
        _limit_time(seconds)
        with asking_before_large(_taking_turns(orders, answers, seconds)):
            answer = _answer(module, name, arguments)
        _limit_time(None)
        try:
            message = protocol.pack(answer)
        except protocol.WireError as error:
            message = protocol.pack(("failed", f"WireError: {error}"))
        protocol.send(answers, message)


def _one_thread_each() -> None:
    """Decoders of AVIF start a thread per processor, each with memory of its own; so do processes already."""
    try:
        from PIL import AvifImagePlugin
    except ImportError:  # before Pillow 11.3
        return
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _answer(module: str, name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "fine", getattr(importlib.import_module(module), name)(*arguments)
    except M3ScoreError as error:
        return "wrong", (error.reason, error.subject, error.transient)
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:2000]


def _taking_turns(orders: IO[bytes], answers: IO[bytes], seconds: float | None) -> Callable[[int], None]:
    """Large pictures are decoded by one worker at a time, lest their memory adds up: once per call, wait."""
    waited = False

    def wait(pixels: int) -> None:
        nonlocal waited
        if not waited:
            waited = True
            _limit_time(None)
            protocol.send(answers, protocol.pack(("large", pixels)))
            protocol.receive(orders, _ANY_SIZE)
            _limit_time(seconds)

    return wait


def _limit_memory(size: int) -> None:
    Image.MAX_IMAGE_PIXELS = size // 8  # Pillow refuses twice as many, which would fill the memory
    if resource is None:
        return
    for name in ("RLIMIT_DATA", "RLIMIT_AS"):  # the first counts what is used, the second what is reserved
        if hasattr(resource, name):
            kind = getattr(resource, name)
            try:
                _, most = resource.getrlimit(kind)
                resource.setrlimit(kind, (size if most < 0 else min(size, most), most))
            except (OSError, ValueError):
                continue
            return


def _limit_time(seconds: float | None) -> None:
    """The alarm's default action ends the process, wherever it hangs."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0 if seconds is None else math.ceil(seconds) + _GRACE)
