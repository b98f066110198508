"""Many images -> a table, most complex first.

Streams: images are opened a few ahead of the model (loader.py), and results come out as they are made.
Knows no model in particular (see base.py).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.discover import FoundImage, PathLike, Source, find_images
from m3score.data.loader import Opened, QuestionBook, Questions, batches, in_halves, open_item, opened_ahead
from m3score.images.sandbox import Decoder
from m3score.models.base import LadderAnswerer
from m3score.models.m3.config import M3Settings
from m3score.scoring.oracle import SUFFICIENCY, Complexity, score_trace
from m3score.scoring.rules import RULES, choose
from m3score.scoring.traces import TraceRow, trace
from m3score.tables.formats import format_for
from m3score.tables.io import write_traces
from m3score.tables.schema import SCORES, conform

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

BLOCK_BATCHES = 4
"""No batch reaches over a multiple of so many times its size, in inputs: a run that goes on at such a place
puts the same images together as one that was never stopped, and gets the same numbers."""


@dataclass(frozen=True)
class RankedImage:
    """One input's result: its complexity and trace, or the reason why there is none."""

    path: str
    complexity: Complexity | None
    trace: tuple[TraceRow, ...]
    error: str | None
    width: int | None
    height: int | None
    transient: bool = False
    """Whether the error may be gone when the same is tried again."""

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
    coarse_answers: bool = True,
    limits: Limits | None = None,
    frames: int | None = None,
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
        workers: processes that decode images, at most; by default one per CPU, at most 8.
        coarse_answers: False for agreement and consistency only, which is cheaper; see traces.trace.
        limits: what decoding one picture may cost; one that costs more, or kills its process, is an error of
            its own.
        frames: give each of so many frames of a video a grid of visual tokens of its own; by default six
            frames make one picture. Pictures are as ever.

    Yields:
        One RankedImage per input. Close the generator to stop early.

    Raises:
        M3ScoreError: at once, for an argument that can't be used. An image's failure is its result.
    """
    _check(rule, sufficiency, batch_size)
    size = images_at_once(model, batch_size)
    book = questions or QuestionBook()
    threads = workers or min(8, os.cpu_count() or 1)
    # A model that preprocesses images lets the workers do it; tiles are smaller to send than large pictures.
    prepare, settings = getattr(model, "tiles", None), getattr(model, "settings", None)
    if not (prepare and isinstance(settings, M3Settings)):
        settings = None
    check_frames(frames, model)

    def stream() -> Generator[RankedImage, None, None]:
        with (
            ThreadPoolExecutor(threads, thread_name_prefix="m3score-open") as pool,
            Decoder(limits, settings, frames) as decode,
        ):
            try:
                open_one = partial(open_item, book=book, prepare=prepare, decode=decode)
                ahead = opened_ahead(found, open_one, pool, size + threads)
                yield from rank_opened(
                    ahead, model, size, max_new_tokens, rule, sufficiency, coarse_answers=coarse_answers
                )
            finally:
                decode.close()
                pool.shutdown(wait=False, cancel_futures=True)

    return stream()


def rank_opened(
    opened: Iterable[Opened],
    model: LadderAnswerer,
    batch_size: int,
    max_new_tokens: int = 32,
    rule: str = "stays",
    sufficiency: str = "auto",
    *,
    coarse_answers: bool = True,
) -> Iterator[RankedImage]:
    """One RankedImage per opened input, in order; the arguments are those of rank_stream."""
    inputs = iter(opened)
    while first := list(islice(inputs, 1)):
        block = chain(first, islice(inputs, BLOCK_BATCHES * batch_size - 1))
        for batch in batches(block, batch_size):
            images = [item for item in batch if item.image]
            rows = iter(in_halves(partial(_trace, model, max_new_tokens, coarse_answers), images))
            for item in batch:
                yield _result(item, next(rows) if item.image else (), rule, sufficiency)


def images_at_once(model: LadderAnswerer, batch_size: int | Literal["auto"] = "auto") -> int:
    """The batch size; "auto" is 32 on a GPU and 8 elsewhere."""
    return (32 if _is_on_gpu(model) else 8) if batch_size == "auto" else batch_size


def rank(
    paths: Source | Iterable[Source],
    *,
    model: str | LadderAnswerer = "m3-tiny",
    questions: Questions = None,
    rule: str = "stays",
    sufficiency: str = "auto",
    batch_size: int | Literal["auto"] = "auto",
    max_new_tokens: int = 32,
    traces: PathLike | None = None,
    limit: int | None = None,
    limits: Limits | None = None,
    frames: int | None = None,
    progress: Callable[[RankedImage], None] | None = None,
) -> pd.DataFrame:
    """Rank images by how many visual tokens the model needs, most complex first.

    Args:
        paths: folders, files, glob patterns, tar shards, parquet files, URLs, "-" for a list on stdin, or a
            DataSet (m3score.data.sources.hf_datasets); see find_images.
        model: a loaded model, or what load_model takes: a name, a hub id, a folder.
        questions: what to ask; see Questions and QuestionBook. Default: the probe panel.
        rule, sufficiency, batch_size, max_new_tokens, limits, frames: as in rank_stream.
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
    _check(rule, sufficiency, batch_size)
    if traces is not None:
        format_for(traces)  # complain now, not after the model ran
    book = QuestionBook(questions)
    found = find_images(paths, max_bytes=(limits or Limits()).max_embedded_bytes)
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
        limits=limits,
        frames=frames,
    )
    rows: list[dict[str, Any]] = []
    trace_rows: list[dict[str, Any]] = []
    for result in stream:
        rows.append(result.to_row())
        if traces is not None:
            trace_rows.extend(result.trace_rows())
        if progress:
            progress(result)
    if unused := book.unused():
        logger.warning(
            "questions for %d images fitted none of the inputs, such as %s", len(unused), unused[0]
        )
    if traces is not None:
        write_traces(trace_rows, traces)
    return score_table(rows, answerer.ladder)


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


# ---- asking the model ---------------------------------------------------------------------------------


def _trace(
    model: LadderAnswerer, max_new_tokens: int, coarse_answers: bool, batch: Sequence[Opened]
) -> list[tuple[TraceRow, ...]]:
    """Each image's trace."""
    rows = trace(
        model,
        [item.image for item in batch],
        [item.questions for item in batch],
        ids=[item.path for item in batch],
        max_new_tokens=max_new_tokens,
        coarse_answers=coarse_answers,
    )
    lengths = [len(item.questions) * len(model.ladder) for item in batch]
    remaining = iter(rows)
    return [tuple(islice(remaining, length)) for length in lengths]


def _result(
    item: Opened, rows: tuple[TraceRow, ...] | M3ScoreError, rule: str, sufficiency: str
) -> RankedImage:
    width, height = item.image.size if item.image else (None, None)
    if item.error is not None:
        return RankedImage(item.path, None, (), item.error, width, height, item.transient)
    if isinstance(rows, M3ScoreError):
        return RankedImage(item.path, None, (), rows.reason, width, height, rows.transient)
    try:
        scored = score_trace(rows, rule=rule, sufficiency=sufficiency)
    except M3ScoreError as problem:
        return RankedImage(item.path, None, rows, problem.reason, width, height)
    (complexity,) = scored.values()
    return RankedImage(item.path, complexity, rows, None, width, height)


def _check(rule: str, sufficiency: str, batch_size: int | Literal["auto"]) -> None:
    choose("rule", rule, RULES)
    choose("sufficiency", sufficiency, SUFFICIENCY)
    if batch_size != "auto" and batch_size < 1:
        raise M3ScoreError(f"batch_size must be at least 1, or 'auto', not {batch_size}.")


def check_frames(frames: int | None, model: LadderAnswerer, tokens: int | None = None) -> None:
    """M3ScoreError where a grid of `tokens` (by default the finest scale's) per frame can't be had."""
    if frames is None:
        return
    if frames < 1:
        raise M3ScoreError(f"frames must be at least 1, not {frames}.")
    if not hasattr(model, "tiles"):
        raise M3ScoreError(f"{model.name} takes whole pictures only: leave frames out.")
    settings = getattr(model, "settings", None)
    if settings is None:
        return
    each = tokens or max(model.ladder)
    room = (settings.max_length - len(model.prompt_ids(""))) // each  # type: ignore[attr-defined]
    if frames > room:
        raise M3ScoreError(
            f"--frames {frames} makes {frames * each:,} visual tokens at scale {each}, more than the "
            f"{settings.max_length:,} tokens that {model.name} takes: give at most --frames {room}, or leave "
            "it out for six frames as one picture."
        )


def _is_on_gpu(model: LadderAnswerer) -> bool:
    return str(getattr(model, "device", "")).startswith("cuda")


def _loaded(model: str | LadderAnswerer) -> LadderAnswerer:
    if not isinstance(model, str | os.PathLike):
        return model
    import m3score

    return m3score.load_model(model)
