"""Many images -> a table, most complex first.

Streams: worker threads decode a few images ahead of the model, results come out as they are made, and no more
images are in memory than that, however many there are. Knows no model (see answers.py) and writes no file.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from m3score.answers import LadderAnswerer
from m3score.columns import SCORES, conform
from m3score.errors import M3ScoreError
from m3score.finding import FoundImage, PathLike, find_images
from m3score.images import open_image
from m3score.oracle import SUFFICIENCY, Complexity, score_trace
from m3score.questions import Question
from m3score.rules import RULES, choose
from m3score.tables import write_traces
from m3score.traces import TraceRow, as_question, default_questions, trace

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Questions = str | Question | Sequence[str | Question] | Mapping[str, Sequence[str | Question]] | None
"""What to ask: None (the probe panel), one question, several for every image, or a mapping from images to
theirs."""

MAX_PIXELS_HELD = 200_000_000
"""Decoded pixels (3 bytes each) that may wait for the model, and that may go to it in one batch. A single
image may have more than that; then it goes alone."""


@dataclass(frozen=True)
class RankedImage:
    """One input's result: its complexity and trace, or the reason why there is none."""

    path: str
    complexity: Complexity | None
    trace: tuple[TraceRow, ...]
    error: str | None
    width: int | None
    height: int | None

    def to_row(self) -> dict[str, Any]:
        """A row of the score table, without its rank."""
        if self.complexity is None:
            return {"path": self.path, "width": self.width, "height": self.height, "error": self.error}
        return {"path": self.path, **self.complexity.to_row(), "error": None}

    def trace_rows(self) -> list[dict[str, Any]]:
        """Rows of the trace table: one with the error only, if the image was not traced."""
        if not self.trace:
            return [{"image": self.path, "error": self.error}]
        return [row.to_dict() for row in self.trace]


class QuestionBook:
    """Which questions belong to which image.

    A mapping's key fits an image if it is the image's path or the end of it: "photos/cat.jpg" and "cat.jpg"
    both fit /data/photos/cat.jpg, and the longer one wins. Images that no key fits are asked `fallback`;
    without one they have no questions, which is an error of theirs.
    """

    def __init__(self, questions: Questions = None, fallback: Sequence[str | Question] = ()) -> None:
        if isinstance(questions, Mapping):
            self._by_image = {_parts(key): _as_questions(asked) for key, asked in questions.items()}
            self._names = {_parts(key): key for key in questions}
            self._fallback = _as_questions(fallback)
        else:
            self._by_image, self._names = {}, {}
            self._fallback = default_questions() if questions is None else _as_questions(questions)
            if not self._fallback:
                raise M3ScoreError("no question given: leave questions out to ask the probe panel.")
        self._unused = set(self._by_image)

    def of(self, path: str) -> tuple[Question, ...]:
        """The questions of the image at `path`; M3ScoreError if there are none."""
        parts = _parts(os.path.abspath(path))
        for start in range(len(parts)) if self._by_image else ():
            if asked := self._by_image.get(parts[start:]):
                self._unused.discard(parts[start:])
                return asked
        if self._fallback:
            return self._fallback
        raise M3ScoreError("no question for this image among those given")

    def unused(self) -> list[str]:
        """Keys that fitted no image so far, in order."""
        return [name for parts, name in self._names.items() if parts in self._unused]


def rank_stream(
    found: Iterable[FoundImage],
    model: LadderAnswerer,
    questions: QuestionBook | None = None,
    *,
    rule: str = "stays",
    sufficiency: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    max_new_tokens: int = 32,
    workers: int | None = None,
) -> Generator[RankedImage, None, None]:
    """Score images one after the other, in the order in which they were found.

    Args:
        found: inputs, from find_images.
        model: anything that answers at every scale.
        questions: by default the probe panel for every image.
        rule: "stays" or "first"; see oracle.py.
        sufficiency: "auto", "correct" or "consistent"; see oracle.py.
        batch_size: images that the model is given at once; "auto" is 32 on a GPU and 8 elsewhere. A batch
            that fails is tried again in halves, so that one bad image (or too little memory) does not cost
            the others.
        max_new_tokens: the most tokens that an answer may have.
        workers: threads that decode images; by default one per CPU, at most 8.

    Yields:
        One RankedImage per input.
    """
    size = _batch_size(batch_size, model)
    choose("rule", rule, RULES)
    choose("sufficiency", sufficiency, SUFFICIENCY)
    book = questions or QuestionBook()
    threads = workers or min(8, os.cpu_count() or 1)

    def results(batch: Sequence[_Opened]) -> Iterator[RankedImage]:
        rows = iter(_trace(model, [item for item in batch if item.image], max_new_tokens))
        return (_result(item, next(rows) if item.image else (), rule, sufficiency) for item in batch)

    with ThreadPoolExecutor(threads, thread_name_prefix="m3score-open") as pool:
        try:
            for batch in _batches(_opened_ahead(found, book, pool, size + threads), size):
                yield from results(batch)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def rank(
    paths: PathLike | Iterable[PathLike],
    *,
    model: str | LadderAnswerer = "m3-tiny",
    questions: Questions = None,
    rule: str = "stays",
    sufficiency: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    max_new_tokens: int = 32,
    traces: PathLike | None = None,
    limit: int | None = None,
    progress: Callable[[RankedImage], None] | None = None,
) -> pd.DataFrame:
    """Rank images by how many visual tokens the model needs, most complex first.

    Args:
        paths: folders, files, glob patterns, or "-" for a list on stdin; see find_images.
        model: a loaded model, or what load_model takes: a name, a hub id, a folder.
        questions: what to ask; see Questions and QuestionBook. Default: the probe panel.
        rule, sufficiency, batch_size, max_new_tokens: as in rank_stream.
        traces: write the trace table here (.csv, .jsonl or .parquet).
        limit: at most so many inputs.
        progress: called with every result as it is made.

    Returns:
        The score table: one row per input with rank, path, complexity in [0, 1], effective_tokens and
        required_tokens (per grid), solved, monotone, agreement_T for each scale T, questions (how many),
        width and height (upright, in pixels) and error. Ties are in the order of their paths; inputs that
        failed come last, without a rank.

    Raises:
        M3ScoreError: nothing found, or an argument that can't be used. An image that can't be read is not an
            error, but a row with `error` filled in.
    """
    book = QuestionBook(questions)
    found = find_images(paths)
    first = next(found, None)
    if first is None:
        raise M3ScoreError("no images found in the paths given.")
    answerer = _loaded(model)
    stream = rank_stream(
        islice(chain([first], found), limit),
        answerer,
        book,
        rule=rule,
        sufficiency=sufficiency,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    results = []
    for result in stream:
        results.append(result if traces else replace(result, trace=()))
        if progress:
            progress(result)
    if unused := book.unused():
        logger.warning(
            "questions for %d images fitted none of the inputs, such as %s", len(unused), unused[0]
        )
    if traces:
        write_traces(chain.from_iterable(result.trace_rows() for result in results), traces)
    return score_table((result.to_row() for result in results), answerer.ladder)


def score_table(rows: Iterable[Mapping[Any, Any]], ladder: Sequence[int]) -> pd.DataFrame:
    """Rows of RankedImage.to_row (or rescored ones) as a ranked table: see rank."""
    import pandas as pd

    empty = {f"agreement_{tokens}": None for tokens in ladder}  # the columns, even if every input failed
    table = conform([{**empty, **row} for row in rows], SCORES)
    table = table.sort_values(["complexity", "path"], ascending=[False, True], na_position="last")
    table = table.reset_index(drop=True)
    ranks = pd.Series(range(1, len(table) + 1), dtype="Int64")
    table["rank"] = ranks.where(table["complexity"].notna())
    return table


# ---- opening ahead of the model -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
    path: str
    image: Image.Image | None
    questions: tuple[Question, ...] = ()
    error: str | None = None

    @property
    def pixels(self) -> int:
        return self.image.width * self.image.height if self.image else 0


def _open(item: FoundImage, book: QuestionBook) -> _Opened:
    if item.error:
        return _Opened(item.shown, None, error=item.error)
    try:
        questions = book.of(item.path)
        return _Opened(item.shown, open_image(item.path), questions)
    except M3ScoreError as error:
        return _Opened(item.shown, None, error=str(error).removeprefix(f"{item.shown}: "))


def _opened_ahead(
    found: Iterable[FoundImage], book: QuestionBook, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[_Opened]:
    """Opened images in order; up to `ahead` of them (and MAX_PIXELS_HELD) are being opened or wait."""
    items = iter(found)
    waiting: deque[Future[_Opened]] = deque()
    more = True
    while more or waiting:
        while more and len(waiting) < ahead and _pixels_held(waiting) < MAX_PIXELS_HELD:
            item = next(items, None)
            more = item is not None
            if item is not None:
                waiting.append(pool.submit(_open, item, book))
        if waiting:
            yield waiting.popleft().result()


def _pixels_held(waiting: Iterable[Future[_Opened]]) -> int:
    return sum(future.result().pixels for future in waiting if future.done())


def _batches(opened: Iterable[_Opened], batch_size: int) -> Iterator[list[_Opened]]:
    """Groups in order with at most `batch_size` images and, beyond the first, MAX_PIXELS_HELD pixels.

    Inputs that failed travel along without counting, but not for long: they are results to be shown.
    """
    batch: list[_Opened] = []
    for item in opened:
        images = sum(one.image is not None for one in batch)
        pixels = sum(one.pixels for one in batch)
        if (
            images == batch_size
            or len(batch) >= 4 * batch_size
            or (images and pixels + item.pixels > MAX_PIXELS_HELD)
        ):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


# ---- asking the model ---------------------------------------------------------------------------------


def _trace(
    model: LadderAnswerer, batch: Sequence[_Opened], max_new_tokens: int
) -> list[tuple[TraceRow, ...] | str]:
    """Each image's trace, or what went wrong. A batch that fails is tried again in halves."""
    if not batch:
        return []
    try:
        rows = trace(
            model,
            [item.image for item in batch if item.image],
            [item.questions for item in batch],
            ids=[item.path for item in batch],
            max_new_tokens=max_new_tokens,
        )
    except Exception as error:  # whatever a model raises, the other images must not pay for it
        if len(batch) > 1:
            half = len(batch) // 2
            return _trace(model, batch[:half], max_new_tokens) + _trace(model, batch[half:], max_new_tokens)
        logger.debug("the model failed on %s", batch[0].path, exc_info=True)
        return [_sentence(error)]
    lengths = [len(item.questions) * len(model.ladder) for item in batch]
    remaining = iter(rows)
    return [tuple(islice(remaining, length)) for length in lengths]


def _result(item: _Opened, rows: tuple[TraceRow, ...] | str, rule: str, sufficiency: str) -> RankedImage:
    width, height = item.image.size if item.image else (None, None)
    error = item.error or (rows if isinstance(rows, str) else None)
    if error or isinstance(rows, str):
        return RankedImage(item.path, None, (), error, width, height)
    try:
        scored = score_trace(rows, rule=rule, sufficiency=sufficiency)
    except M3ScoreError as problem:
        reason = str(problem).removeprefix(f"{item.path}: ")
        return RankedImage(item.path, None, rows, reason, width, height)
    (complexity,) = scored.values()
    return RankedImage(item.path, complexity, rows, None, width, height)


def _sentence(error: Exception) -> str:
    """An exception as one line; a user error as it is."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, M3ScoreError):
        return text
    return (
        f"the model failed ({type(error).__name__}: {text})"
        if text
        else f"the model failed ({type(error).__name__})"
    )


def _batch_size(wanted: int | Literal["auto"], model: LadderAnswerer) -> int:
    if wanted == "auto":
        return 32 if str(getattr(model, "device", "")).startswith("cuda") else 8
    if wanted < 1:
        raise M3ScoreError(f"batch_size must be at least 1, or 'auto', not {wanted}.")
    return wanted


def _loaded(model: str | LadderAnswerer) -> LadderAnswerer:
    if not isinstance(model, str | os.PathLike):
        return model
    import m3score

    return m3score.load_model(model)


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in os.path.normpath(path).split(os.sep) if part not in ("", "."))


def _as_questions(asked: str | Question | Sequence[str | Question]) -> tuple[Question, ...]:
    several = [asked] if isinstance(asked, str | Question) else asked
    return tuple(as_question(question) for question in several)
