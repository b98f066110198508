"""What else gives a picture a complexity, beside a model's ladder and its predictor: `m3score rank --scorer`.

A scorer takes inputs and gives rows of a score table, one each and in order; an input that can't be scored is
a row with its error. A new scorer is a class like those below and a line in SCORERS (and its name in
cli/options.py). Importing this imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

from m3score.common.errors import M3ScoreError, image_failure
from m3score.common.limits import Limits
from m3score.data.item import FoundImage


@dataclass(frozen=True)
class ScorerOptions:
    """What scorers may be told; each takes what it knows."""

    model: str = "m3-tiny"
    """Who describes pictures for CAT."""
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    batch_size: int | None = None
    cat_llm: str | None = None
    """Hub id or folder of the language model that rates descriptions."""
    cat_prompts: str | None = None
    """A file of prompts in place of assets/cat.toml."""
    alit_model: str | None = None
    """A folder with a tokenizer."""
    alit_threshold: float | None = None
    """In place of the tokenizer's own."""


class Scorer(Protocol):
    """Scores pictures."""

    @property
    def columns(self) -> tuple[str, ...]:
        """That its rows have beside those of every score table."""

    def identity(self) -> Mapping[str, Any]:
        """What its numbers depend on: a run goes on only where that is the same."""

    def rows(self, items: Iterable[FoundImage], limits: Limits) -> Iterator[dict[str, Any]]:
        """A row per input, in order. Where `transient` is true, its error is worth another try."""


# ---- measures of pixels ---------------------------------------------------------------------------------


class PixelScorer:
    """A measure of baselines.BASELINES."""

    columns: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def identity(self) -> Mapping[str, Any]:
        """The measure's version: raised when a number changes."""
        return {"version": 2}

    def rows(self, items: Iterable[FoundImage], limits: Limits) -> Iterator[dict[str, Any]]:
        """In worker processes."""
        from m3score.images.parallel import map_images

        return map_images(_measured, self._jobs(items, limits), limits=limits, instead=_lost)

    def _jobs(self, items: Iterable[FoundImage], limits: Limits) -> Iterator[_Job]:
        for item in items:
            source = None if item.error else item.source
            yield self.name, item.shown, source, item.error, limits.max_pixels, limits.max_bytes


_Job = tuple[str, str, Any, "str | None", int, int]


def _measured(job: _Job) -> dict[str, Any]:
    """In a worker."""
    from m3score.scoring.pixel import baseline

    name, path, source, known, max_pixels, max_bytes = job
    if known is not None:
        return {"path": path, "error": known}
    try:
        value, (width, height) = baseline(name, source, max_pixels=max_pixels, max_bytes=max_bytes)
    except Exception as error:
        return _failed(path, image_failure(error, "can't be used"))
    return {"path": path, "complexity": value, "width": width, "height": height, "error": None}


def _lost(job: _Job, error: M3ScoreError) -> dict[str, Any]:
    """A picture that its process did not survive."""
    return _failed(job[1], error)


def _failed(path: str, error: M3ScoreError) -> dict[str, Any]:
    return {"path": path, "error": error.reason, "transient": error.transient}


# ---- models ---------------------------------------------------------------------------------------------


class BatchScorer(ABC):
    """A scorer that is handed opened pictures, several at once."""

    columns: tuple[str, ...] = ()
    BATCH: ClassVar[int] = 8

    def __init__(self, batch_size: int | None = None) -> None:
        self.batch_size = batch_size or self.BATCH

    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """See Scorer."""

    @abstractmethod
    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Columns of each picture (RGB, upright): complexity and those of its own, or an error."""

    def rows(self, items: Iterable[FoundImage], limits: Limits) -> Iterator[dict[str, Any]]:
        """Pictures are opened in worker processes, a few ahead of the model."""
        from m3score.data.loader import QuestionBook, batches, in_halves, open_item, opened_ahead
        from m3score.images.sandbox import Decoder

        threads = 4
        book = QuestionBook("unasked")
        with (
            ThreadPoolExecutor(threads, thread_name_prefix="m3score-open") as pool,
            Decoder(limits) as decode,
        ):
            try:
                open_one = partial(open_item, book=book, decode=decode)
                ahead = opened_ahead(items, open_one, pool, self.batch_size + threads)
                for batch in batches(ahead, self.batch_size):
                    images = [item.image for item in batch if item.image]
                    scored = iter(in_halves(self.score, images))
                    for item in batch:
                        if item.image is None:
                            yield {"path": item.path, "error": item.error, "transient": item.transient}
                            continue
                        width, height = item.image.size
                        found = next(scored)
                        row = _failed(item.path, found) if isinstance(found, M3ScoreError) else found
                        yield {"path": item.path, "width": width, "height": height, **row}
            finally:
                decode.close()
                pool.shutdown(wait=False, cancel_futures=True)


class CatScorer(BatchScorer):
    """CAT: a language model rates a description of the picture. See cat.py."""

    columns = ("caption", "cat_score", "cat_compression")

    def __init__(self, options: ScorerOptions) -> None:
        super().__init__(options.batch_size)
        from m3score.scoring import cat

        if options.cat_llm is None:
            raise M3ScoreError("--scorer cat needs --cat-llm: a hub id or folder of a chat model.")
        self._cat = cat.load(
            options.model,
            options.cat_llm,
            cat.read_prompts(options.cat_prompts),
            device=options.device,
            dtype=options.dtype,
            revision=options.revision,
        )

    def identity(self) -> Mapping[str, Any]:
        """Both models and the prompts."""
        return self._cat.identity()

    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Described, then rated."""
        return [rating.to_row() for rating in self._cat.rate(images)]


class AlitScorer(BatchScorer):
    """Adaptive-length tokens: how many of them a picture takes. See alit.py."""

    columns = ("alit_tokens", "alit_error")
    BATCH = 32

    def __init__(self, options: ScorerOptions) -> None:
        super().__init__(options.batch_size)
        from m3score.models.loading import resolve_device
        from m3score.scoring import alit

        self._folder = alit.alit_folder(options.alit_model)
        self._model = alit.load_alit(options.alit_model, resolve_device(options.device))
        threshold = options.alit_threshold
        self._threshold = self._model.settings.threshold if threshold is None else threshold
        if not 0 < self._threshold <= 1:
            raise M3ScoreError(f"--alit-threshold must be above 0 and at most 1, not {self._threshold}.")

    def identity(self) -> Mapping[str, Any]:
        """The tokenizer's weights and the threshold."""
        from m3score.models.fingerprint import fingerprint

        return {"--alit-model": fingerprint(self._folder), "--alit-threshold": self._threshold}

    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """One pass for all rounds."""
        from m3score.scoring.alit import score_images

        found = [asdict(one) for one in score_images(self._model, images, self._threshold)]
        return [
            {
                "complexity": one["complexity"],
                "alit_tokens": one["tokens"],
                "alit_error": one["error"],
                "error": None,
            }
            for one in found
        ]


SCORERS: dict[str, Callable[[ScorerOptions], Scorer]] = {
    "jpeg": lambda options: PixelScorer("jpeg"),
    "edges": lambda options: PixelScorer("edges"),
    "entropy": lambda options: PixelScorer("entropy"),
    "cat": CatScorer,
    "alit": AlitScorer,
}
"""Makers of scorers by name."""
