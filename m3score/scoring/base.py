"""What gives a picture a complexity: the protocol `Scorer`, and what its implementations have in common.

A scorer takes inputs and gives one result each, in order; an input that can't be scored is a result with its
error. The model that is asked, predictors, measures of pixels and what others install are all scorers:
registry.py finds them by name, and a run (m3score.runs) carries them out. Importing this imports no torch.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from m3score.common.errors import M3ScoreError, image_failure
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.data.loader import Opened, QuestionBook, batches, in_halves, open_item, opened_ahead

if TYPE_CHECKING:
    from m3score.images.sandbox import Preparation

BLOCK_BATCHES = 4
"""No batch reaches over a multiple of so many times its size, in inputs: a run that goes on at such a place
puts the same images together as one that was never stopped, and gets the same numbers."""

OPENERS = 8
"""Processes that open images for a model, at most, unless `workers` says how many."""


class Result(Protocol):
    """What became of one input."""

    @property
    def transient(self) -> bool:
        """Whether its error may be gone when the same is tried again."""

    def to_row(self) -> dict[str, Any]:
        """A row of the score table without its rank: path, complexity, error, and the scorer's columns."""

    def trace_rows(self) -> Sequence[Mapping[str, Any]]:
        """Rows of the trace table, of a scorer that is `traced`."""


@dataclass(frozen=True)
class Scored:
    """A Result that is its row."""

    row: dict[str, Any]
    traces: Sequence[Mapping[str, Any]] = ()
    transient: bool = False

    @classmethod
    def failed(cls, path: str, error: M3ScoreError, **columns: Any) -> Scored:
        """The result of an input that could not be scored."""
        return cls({"path": path, **columns, "error": error.reason}, transient=error.transient)

    def to_row(self) -> dict[str, Any]:
        """See Result."""
        return self.row

    def trace_rows(self) -> Sequence[Mapping[str, Any]]:
        """See Result."""
        return self.traces


@dataclass(frozen=True)
class ScorerOptions:
    """Options of a scorer: the base of each scorer's own frozen dataclass, which checks its values.

    Options have to survive being sent to another machine, where `--engine ray` makes the scorer anew.
    """

    def seen(self, item: ImageItem) -> None:
        """Take note of an input that this process does not score itself: it was done before, or is done on
        another machine."""

    def check_portable(self) -> None:
        """M3ScoreError where the options hold what can't be sent to another machine."""

    def unused(self) -> Sequence[str]:
        """Images that the options say something about and that were not among the inputs."""
        return ()


@runtime_checkable
class Scorer(Protocol):
    """Scores pictures. Made of its Options; whatever it loads, it loads then."""

    Options: ClassVar[Any]
    """A ScorerOptions class."""
    traced: ClassVar[bool]
    """Whether its results have trace rows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of its rows, beside those that every score table has."""

    @property
    def ladder(self) -> tuple[int, ...]:
        """Its scales in tokens per grid, coarsest first; empty where it has none."""

    @property
    def block(self) -> int:
        """Inputs that a run which goes on does again together, because they are computed together; 1 where
        each is computed by itself."""

    @property
    def label(self) -> str:
        """What did the work, for messages: "with m3-tiny on cpu", "by jpeg"."""

    def identity(self) -> Mapping[str, Any]:
        """What its numbers depend on: a run goes on only where that is the same."""

    def stream(
        self, items: Iterable[ImageItem], *, limits: Limits, workers: int | None = None
    ) -> Generator[Result, None, None]:
        """One result per input, in order, as they are made. Close the generator to stop early.

        Args:
            items: inputs; taken only a few ahead.
            limits: what one picture may cost; one that costs more is an error of its own.
            workers: processes that open, or work on, images; by default as many as make sense.
        """


# ---- scorers that are handed opened pictures ------------------------------------------------------------


class BatchScorer(ABC):
    """A scorer that is handed opened pictures, several at once; a new one has `identity` and `score`."""

    Options: ClassVar[type[ScorerOptions]] = ScorerOptions
    traced: ClassVar[bool] = False
    columns: tuple[str, ...] = ()
    ladder: tuple[int, ...] = ()
    BATCH: ClassVar[int] = 8

    def __init__(self, options: ScorerOptions) -> None:
        self.options = options
        self.batch_size: int = getattr(options, "batch_size", None) or self.BATCH

    @property
    def block(self) -> int:
        """See Scorer."""
        return BLOCK_BATCHES * self.batch_size

    @property
    def label(self) -> str:
        """See Scorer."""
        return f"by {type(self).__name__.removesuffix('Scorer').lower()}"

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """See Scorer."""

    @abstractmethod
    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Columns of each picture (RGB, upright): complexity and those of its own, or an error."""

    def stream(
        self, items: Iterable[ImageItem], *, limits: Limits, workers: int | None = None
    ) -> Generator[Result, None, None]:
        """See Scorer. Pictures are opened in worker processes, a few ahead of the model."""
        yield from score_batches(
            open_batches(items, self.batch_size, limits=limits, workers=workers), self.score
        )


def score_batches(
    batches: Iterable[Sequence[Opened]], score: Callable[[Sequence[Any]], list[dict[str, Any]]]
) -> Generator[Scored, None, None]:
    """One result per opened input, in order; `score` gives the columns of each picture that it is handed."""
    for batch in batches:
        scored = iter(in_halves(score, [item.image for item in batch if item.image]))
        for item in batch:
            if item.image is None:
                row = {"path": item.path, "error": item.error}
                yield Scored(row, transient=item.transient)
                continue
            width, height = item.image.size
            found, known = next(scored), {"width": width, "height": height}
            if isinstance(found, M3ScoreError):
                yield Scored.failed(item.path, found, **known)
            else:
                yield Scored({"path": item.path, **known, **found})


def open_batches(
    items: Iterable[ImageItem],
    batch_size: int,
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    book: QuestionBook | None = None,
    prepare: Callable[[Any], Any] | None = None,
    preparation: Preparation | None = None,
    frames: int | None = None,
) -> Iterator[list[Opened]]:
    """Inputs opened in worker processes, a few ahead, in batches.

    Args:
        items: inputs.
        batch_size: images in a batch; inputs that can't be opened travel along without counting.
        limits: what opening one picture may cost.
        workers: processes that open images; by default one per CPU, at most OPENERS.
        book: what images are asked; by default nothing of interest.
        prepare: makes of an image what the model is to be handed in its place.
        preparation: what the worker processes make of an opened picture, such as a model's preprocessing.
        frames: of a video, so many pictures in place of one.
    """
    from m3score.images.sandbox import Decoder

    threads = workers or min(OPENERS, os.cpu_count() or 1)
    asked = book or QuestionBook("unasked")
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="m3score-open") as pool,
        Decoder(limits, preparation, frames) as decode,
    ):
        try:
            open_one = partial(open_item, book=asked, prepare=prepare, decode=decode)
            ahead = opened_ahead(items, open_one, pool, batch_size + threads)
            yield from batches_within_blocks(ahead, batch_size)
        finally:
            decode.close()
            pool.shutdown(wait=False, cancel_futures=True)


def batches_within_blocks(opened: Iterable[Opened], batch_size: int) -> Iterator[list[Opened]]:
    """Batches of which none reaches over the end of a block; see BLOCK_BATCHES."""
    inputs = iter(opened)
    while first := list(islice(inputs, 1)):
        yield from batches(chain(first, islice(inputs, BLOCK_BATCHES * batch_size - 1)), batch_size)


# ---- scorers that measure one picture at a time ---------------------------------------------------------


class PictureScorer(ABC):
    """A scorer that measures each picture by itself, in worker processes; a new one has `measure`."""

    Options: ClassVar[type[ScorerOptions]] = ScorerOptions
    traced: ClassVar[bool] = False
    columns: tuple[str, ...] = ()
    ladder: tuple[int, ...] = ()
    block = 1
    VERSION: ClassVar[int] = 1
    """Raised when a number changes."""

    def __init__(self, options: ScorerOptions) -> None:
        self.options = options

    @property
    def label(self) -> str:
        """See Scorer."""
        return f"by {type(self).__name__.removesuffix('Scorer').lower()}"

    def identity(self) -> Mapping[str, Any]:
        """The measure's version and its options."""
        return {"version": self.VERSION, **asdict(self.options)}

    @abstractmethod
    def measure(self, source: str | bytes, *, max_pixels: int, max_bytes: int) -> dict[str, Any]:
        """Columns of one picture, given as its path or bytes: complexity, width, height and those of its own.

        Runs in a worker process, where the scorer is made anew of its options (if these are numbers and
        texts); M3ScoreError where the picture can't be opened.
        """

    def stream(
        self, items: Iterable[ImageItem], *, limits: Limits, workers: int | None = None
    ) -> Generator[Result, None, None]:
        """See Scorer."""
        from m3score.images.parallel import map_images

        where = f"{type(self).__module__}:{type(self).__qualname__}"
        told = tuple(asdict(self.options).items())
        # A class of a notebook or a function is not to be had in another process: threads of this one, then.
        elsewhere = type(self).__module__ != "__main__" and "<locals>" not in where
        work: Callable[[_Job], _Measured] = _measured_there if elsewhere else partial(_measured, self)
        jobs = (
            (where, told, item.shown, None if item.error else item.source, item.error,
             limits.max_pixels, limits.max_bytes)
            for item in items
        )  # fmt: skip
        for row, transient in map_images(work, jobs, workers, limits=limits, instead=_lost):
            yield Scored(row, transient=transient)


_Job = tuple[str, tuple[tuple[str, Any], ...], str, Any, "str | None", int, int]
_Measured = tuple[dict[str, Any], bool]


def _measured_there(job: _Job) -> _Measured:
    """In a worker process."""
    return _measured(_made(job[0], tuple(map(tuple, job[1]))), job)


@lru_cache(maxsize=4)
def _made(where: str, told: tuple[tuple[str, Any], ...]) -> PictureScorer:
    kind: type[PictureScorer] = load_object(where)
    return kind(kind.Options(**dict(told)))


def _measured(scorer: PictureScorer, job: _Job) -> _Measured:
    """A row, and whether its error is transient."""
    _, _, path, source, known, max_pixels, max_bytes = job
    if known is not None:
        return {"path": path, "error": known}, False
    try:
        found = scorer.measure(source, max_pixels=max_pixels, max_bytes=max_bytes)
    except Exception as error:
        return _lost(job, image_failure(error, "can't be used"))
    return {"path": path, **found, "error": None}, False


def _lost(job: _Job, error: M3ScoreError) -> _Measured:
    return {"path": job[2], "error": error.reason}, error.transient


def load_object(where: str) -> Any:
    """What "package.module:name" names."""
    from importlib import import_module

    module, _, name = where.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found
