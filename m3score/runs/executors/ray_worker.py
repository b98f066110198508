"""What runs on a machine of a Ray cluster, and how inputs get there: as a JSON header and bytes.

Knows scorers, and Ray's errors by their causes only.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.data.item import ImageItem
from m3score.data.questions import Question
from m3score.images import protocol
from m3score.runs.executors.base import ScorerFacts, ScorerJob

_OURS = f"{M3ScoreError.__module__}.{M3ScoreError.__qualname__}: "


class ClusterError(M3ScoreError):
    """A machine, a process or the network failed: not the job, as far as can be told."""


# ---- on the other machine -------------------------------------------------------------------------------


@dataclass(frozen=True)
class DriverEnv:
    """What the machines of a cluster have to have in common with the one that started the run."""

    version: str
    folder: str


def driver_env() -> DriverEnv:
    """That of this process."""
    from m3score._version import __version__

    return DriverEnv(__version__, os.getcwd())


def enter_driver_env(env: DriverEnv) -> None:
    """On another machine: the same program, in the same folder. M3ScoreError where that can't be had."""
    from m3score._version import __version__

    node = os.uname().nodename if hasattr(os, "uname") else "a machine of the cluster"
    if env.version != __version__:
        raise M3ScoreError(
            f"{node} has m3score {__version__}, this machine {env.version}: install the same one."
        )
    try:
        os.chdir(env.folder)
    except OSError:
        raise M3ScoreError(
            f"{node} has no folder {env.folder}: the machines of a cluster need the same folders, such as a "
            "network share."
        ) from None


class ScorerActor:
    """In an actor: a scorer that stays loaded, and the blocks of inputs that come by."""

    def __init__(self, job: ScorerJob, env: DriverEnv) -> None:
        enter_driver_env(env)
        self._job = job
        self._scorer = job.make()
        if job.identity is not None and dict(self._scorer.identity()) != dict(job.identity):
            raise M3ScoreError(
                f"{job.loads}: the machines of the cluster have different weights by that name."
            )

    def ready(self) -> None:
        """Answered as soon as the scorer is loaded."""

    def work(self, packed: bytes) -> list[str]:
        """One result, a JSON text, for each input of a block."""
        items, job = unpack_items(packed), self._job
        results = self._scorer.stream(items, limits=job.limits, workers=job.workers)
        return [
            json.dumps(
                {
                    "row": result.to_row(),
                    "traces": list(result.trace_rows()) if job.traces else [],
                    "transient": result.transient,
                },
                default=_plain,
            )
            for result in results
        ]


def facts_there(job: ScorerJob, env: DriverEnv) -> tuple[ScorerFacts, dict[str, Any]]:
    """What a scorer says of itself, and its identity, on a machine that is to run it."""
    enter_driver_env(env)
    scorer = job.make()
    return ScorerFacts.of(scorer), dict(scorer.identity())


def _plain(value: Any) -> Any:
    return value.item()  # a number of numpy


# ---- on the way -----------------------------------------------------------------------------------------


def pack_items(items: Sequence[ImageItem]) -> bytes:
    """Inputs as bytes."""
    fields = [
        (
            item.path,
            item.relative,
            item.error,
            item.content,
            [asdict(question) for question in item.questions],
            item.original,
        )
        for item in items
    ]
    pipe = io.BytesIO()
    protocol.send(pipe, protocol.pack(fields))
    return pipe.getvalue()


def unpack_items(data: bytes) -> list[ImageItem]:
    """The inputs that `pack_items` made bytes of."""
    return [
        ImageItem(path, relative, error, content, tuple(map(_question, asked)), original)
        for path, relative, error, content, asked, original in protocol.receive(io.BytesIO(data), len(data))
    ]


def _question(fields: Mapping[str, Any]) -> Question:
    several = {name: tuple(fields[name]) for name in ("answers", "options")}
    return Question(**{**fields, **several})


# ---- back on this machine -------------------------------------------------------------------------------


@contextmanager
def translate_ray_errors() -> Iterator[None]:
    """Turns what goes wrong on another machine into the sentence that the user reads.

    Raises:
        M3ScoreError: the scorer raised it.
        ClusterError: anything else.
    """
    try:
        yield
    except Exception as error:  # Ray has a kind for each of its parts
        raise _root(error) from None


def _root(error: BaseException) -> M3ScoreError:
    """What a worker raised, without Ray's account of how it came here."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if type(seen) is M3ScoreError:
            return seen
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):  # an actor that can't start is told of in text only
        if line.startswith(_OURS):
            return M3ScoreError(line.removeprefix(_OURS))
    reason = lines[-1][:300] if lines else "no reason given"
    return ClusterError(f"a part of the cluster failed ({type(error).__name__}: {reason})")
