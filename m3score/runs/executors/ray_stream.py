"""Blocks of inputs to the actors of a Ray cluster and back as they are finished, whatever dies on the way.

Plain actors: each holds a scorer and works off one block after the other. An actor that fails, with its
machine or alone, is replaced, and its blocks are given to others.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m3score.runs.executors.ray_worker import (
    ClusterError,
    ScorerActor,
    driver_env,
    pack_items,
    translate_ray_errors,
)

if TYPE_CHECKING:
    from m3score.data.item import ImageItem
    from m3score.runs.executors.base import ScorerJob

BLOCKS_AHEAD = 2
"""Blocks that an actor has: one in work, and the next."""

ATTEMPTS = 5
"""How often in a row the cluster may fail before the run gives up."""

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Actor:
    handle: Any
    loading: Any
    """Reference to the answer that its scorer is loaded; None once it came."""
    blocks: dict[Any, str] = field(default_factory=dict)
    """Names of the blocks that it has, by the references to their results."""


class RayStream:
    """Blocks in, finished blocks out; actors are started with the first block.

    Args:
        job: what they make their scorer of.
        workers: actors.
        num_gpus: of each; 0 for none.
    """

    def __init__(self, job: ScorerJob, workers: int, num_gpus: float) -> None:
        self._job, self._num_gpus = job, num_gpus
        self.workers = workers
        self.missing: dict[str, bytes] = {}
        """Blocks that went in and did not come out yet."""
        self._waiting: deque[str] = deque()
        """Of these, those that no actor has."""
        self._actors: list[_Actor] = []
        self._failures = 0

    def put(self, name: str, items: Sequence[ImageItem]) -> None:
        """A block of inputs, to be done by any actor."""
        if not self._actors:
            self._start()
        self.missing[name] = pack_items(items)
        self._waiting.append(name)
        self._give_out()

    def get(self) -> tuple[str, list[str]]:
        """Whichever block is finished next: its name and results.

        Raises:
            M3ScoreError: the scorer can't be made, or the cluster failed again and again.
        """
        import ray

        while True:
            pending = [one.loading for one in self._actors if one.loading is not None]
            pending += [result for one in self._actors for result in one.blocks]
            with translate_ray_errors():
                (done, *_), _ = ray.wait(pending, num_returns=1)
            actor = next(one for one in self._actors if done is one.loading or done in one.blocks)
            try:
                with translate_ray_errors():
                    results = ray.get(done)
            except ClusterError as error:
                self._failures += 1
                if self._failures > ATTEMPTS:
                    raise
                logger.warning("%s: its blocks are given out again.", error)
                self._replace(actor)
                continue
            self._failures = 0
            name = actor.blocks.pop(done, None)
            if name is None:
                actor.loading = None
            self._give_out()
            if name is not None:
                del self.missing[name]
                return name, results

    def close(self) -> None:
        """End the actors."""
        while self._actors:
            self._end(self._actors.pop())

    def _start(self) -> None:
        self._actors += [self._new() for _ in range(self.workers)]

    def _new(self) -> _Actor:
        import ray

        kind = ray.remote(ScorerActor).options(num_cpus=1, num_gpus=self._num_gpus or None, max_restarts=0)
        with translate_ray_errors():
            handle: Any = kind.remote(self._job, driver_env())
            return _Actor(handle, handle.ready.remote())

    def _replace(self, actor: _Actor) -> None:
        self._waiting.extendleft(reversed(actor.blocks.values()))
        self._actors.remove(actor)
        self._end(actor)
        self._actors.append(self._new())
        self._give_out()

    @staticmethod
    def _end(actor: _Actor) -> None:
        import ray

        with suppress(Exception):  # it may have gone by itself, or the cluster
            ray.kill(actor.handle)

    def _give_out(self) -> None:
        """Every actor whose scorer is loaded gets what it can take, the least busy ones first."""
        for ahead in range(BLOCKS_AHEAD):
            for actor in self._actors:
                if self._waiting and actor.loading is None and len(actor.blocks) <= ahead:
                    name = self._waiting.popleft()
                    with translate_ray_errors():
                        actor.blocks[actor.handle.work.remote(self.missing[name])] = name
