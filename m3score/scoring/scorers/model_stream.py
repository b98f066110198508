"""Ask a model about a stream of images: their complexity and traces, one image after the other.

Images are opened a few ahead of the model (scoring/base.py), and results come out as they are made. Knows no
model in particular, only the protocol LadderAnswerer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

from m3score.common.errors import M3ScoreError, StopRunError
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.data.loader import Opened, QuestionBook, in_halves
from m3score.models.base import LadderAnswerer
from m3score.scoring.base import batches_within_blocks, open_batches
from m3score.scoring.oracle import SUFFICIENCY, Complexity, score_trace
from m3score.scoring.rules import RULES, check_choice
from m3score.scoring.traces import TraceRow, trace


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
    found: Iterable[ImageItem],
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
        questions: by default every image is to be described.
        workers: processes that decode images, at most; by default one per CPU, at most 8.
        limits: what decoding one picture may cost; one that costs more, or kills its process, is an error of
            its own.

    The others are those of ModelOptions. A batch that fails is tried again in halves, so that one bad image
    (or too little memory) does not cost the others.

    Yields:
        One RankedImage per input. Close the generator to stop early.

    Raises:
        M3ScoreError: at once, for an argument that can't be used. An image's failure is its result.
    """
    check_rules(rule, sufficiency)
    check_batch_size(batch_size)
    check_frames(frames, model)
    size = images_at_once(model, batch_size)
    # A model that preprocesses images lets the workers do it; tiles are smaller to send than large pictures.
    prepare, preparation = getattr(model, "tiles", None), getattr(model, "preparation", None)
    opened = open_batches(
        found,
        size,
        limits=limits,
        workers=workers,
        book=questions or QuestionBook(),
        prepare=prepare,
        preparation=preparation,
        frames=frames,
    )

    def stream() -> Generator[RankedImage, None, None]:
        for batch in opened:
            yield from _ranked(batch, model, max_new_tokens, rule, sufficiency, coarse_answers)

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
    for batch in batches_within_blocks(opened, batch_size):
        yield from _ranked(batch, model, max_new_tokens, rule, sufficiency, coarse_answers)


def images_at_once(model: LadderAnswerer, batch_size: int | Literal["auto"] = "auto") -> int:
    """The batch size; "auto" is what the model itself says, else 32 on a GPU and 8 elsewhere."""
    if batch_size != "auto":
        return batch_size
    on_gpu = str(getattr(model, "device", "")).startswith("cuda")
    return int(getattr(model, "images_at_once", 32 if on_gpu else 8))


def check_frames(frames: int | None, model: LadderAnswerer, tokens: int | None = None) -> None:
    """M3ScoreError where a grid of `tokens` (by default the finest scale's) per frame can't be had."""
    if frames is None:
        return
    if frames < 1:
        raise M3ScoreError(f"frames must be at least 1, not {frames}.")
    if not hasattr(model, "tiles"):
        raise M3ScoreError(f"{model.name} takes whole pictures only: leave frames out.")
    config = getattr(model, "config", None)
    if config is None:
        return
    each = tokens or max(model.ladder)
    room = (config.max_length - len(model.prompt_ids(""))) // each  # type: ignore[attr-defined]
    if frames > room:
        raise M3ScoreError(
            f"--frames {frames} makes {frames * each:,} visual tokens at scale {each}, more than the "
            f"{config.max_length:,} tokens that {model.name} takes: give at most --frames {room}, or leave "
            "it out for six frames as one picture."
        )


def _ranked(
    batch: Sequence[Opened],
    model: LadderAnswerer,
    max_new_tokens: int,
    rule: str,
    sufficiency: str,
    coarse_answers: bool,
) -> Iterator[RankedImage]:
    images = [item for item in batch if item.image]
    rows = iter(in_halves(partial(_trace, model, max_new_tokens, coarse_answers), images))
    for item in batch:
        yield _result(item, next(rows) if item.image else (), rule, sufficiency)


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
    if isinstance(rows, StopRunError):
        raise rows  # what came before it is kept
    if isinstance(rows, M3ScoreError):
        return RankedImage(item.path, None, (), rows.reason, width, height, rows.transient)
    try:
        scored = score_trace(rows, rule=rule, sufficiency=sufficiency)
    except M3ScoreError as problem:
        return RankedImage(item.path, None, rows, problem.reason, width, height)
    (complexity,) = scored.values()
    return RankedImage(item.path, complexity, rows, None, width, height)


# ---- arguments ------------------------------------------------------------------------------------------


def check_rules(rule: str, sufficiency: str) -> None:
    """M3ScoreError for a rule or sufficiency that there is not."""
    check_choice("rule", rule, RULES)
    check_choice("sufficiency", sufficiency, SUFFICIENCY)


def check_batch_size(batch_size: int | Literal["auto"]) -> None:
    """M3ScoreError for what is no number of images."""
    if batch_size != "auto" and batch_size < 1:
        raise M3ScoreError(f"batch_size must be at least 1, or 'auto', not {batch_size}.")
