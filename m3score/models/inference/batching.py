"""Batches that shrink when the device's memory runs out.

Knows no models; runs any function over batches.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from m3score.common.errors import M3ScoreError

logger = logging.getLogger(__name__)

_ASSUMED_FREE = 2**32
"""Free bytes to assume if the system doesn't say."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, including what torch has reserved but does not use."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system has it
        return _ASSUMED_FREE


class MemoryGuard:
    """Runs work in batches; makes them smaller once the device's memory has run out, and warns once."""

    def __init__(self) -> None:
        self._largest: int | None = None

    def map(
        self, run: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item], batch_size: int
    ) -> list[Result]:
        """`run` over all items, at most `batch_size` at once, in order.

        Raises M3ScoreError if memory runs out for a single item.
        """
        results: list[Result] = []
        while len(results) < len(items):
            size = max(1, min(batch_size, self._largest or batch_size))
            batch = items[len(results) : len(results) + size]
            done = _unless_out_of_memory(run, batch)
            if done is None:
                self._shrink(len(batch))
            else:
                results.extend(done)
        return results

    def _shrink(self, size: int) -> None:
        if size == 1:
            raise M3ScoreError(
                "The device's memory doesn't suffice for even one image: use fewer visual tokens, "
                "quantize='4bit' or '8bit', or another device."
            )
        if self._largest is None:
            logger.warning("Out of device memory with batches of %d; going on with smaller ones.", size)
        self._largest = size // 2


def _unless_out_of_memory(
    run: Callable[[Sequence[Item]], list[Result]], batch: Sequence[Item]
) -> list[Result] | None:
    try:
        return run(batch)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; not every backend raises it
        if not _is_out_of_memory(error):
            raise
    # The exception is gone here, and with it the failed call's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "not enough memory" in text
