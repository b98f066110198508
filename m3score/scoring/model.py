"""The scorer `model`: ask a model its questions at every scale of its ladder.

Streams: images are opened a few ahead of the model (base.py), and results come out as they are made. Knows no
model in particular, only the protocol LadderAnswerer.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import FoundImage
from m3score.data.loader import Opened, QuestionBook, Questions, in_halves
from m3score.data.questions import Question, read_questions
from m3score.models.base import LadderAnswerer
from m3score.models.m3.config import M3Settings
from m3score.scoring.base import BLOCK_BATCHES, ScorerOptions, batches_within_blocks, open_batches
from m3score.scoring.oracle import SUFFICIENCY, Complexity, score_trace
from m3score.scoring.rules import RULES, choose
from m3score.scoring.traces import TraceRow, trace
from m3score.tables.io import read_whole

QUESTION_FILES = (".csv", ".jsonl", ".ndjson")
"""A text that ends so, and has no space in it, is the name of a file of questions, not a question."""


# ---- options --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelOptions(ScorerOptions):
    """What the scorer `model` may be told."""

    model: Any = "m3-tiny"
    """What load_model takes (a bundled model, a hub id, a folder), or a loaded model."""
    questions: Questions | str | os.PathLike[str] | QuestionBook = None
    """What to ask: one question or several for every image, a mapping from images to theirs, or a file of
    those (.csv, .jsonl; see read_questions). Default: the probe panel."""
    question: str | Question | Sequence[str | Question] | None = None
    """Asked of every image that `questions` says nothing about."""
    rule: str = "stays"
    """A name in rules.RULES."""
    sufficiency: str = "auto"
    """One of oracle.SUFFICIENCY."""
    coarse_answers: bool = True
    """False for agreement and consistency only, which is cheaper; see traces.trace."""
    max_new_tokens: int = 32
    """The most tokens that an answer may have."""
    batch_size: int | Literal["auto"] = "auto"
    """Images that the model is given at once; "auto" is 32 on a GPU and 8 elsewhere."""
    frames: int | None = None
    """Give each of so many frames of a video a grid of visual tokens of its own; by default six frames make
    one picture."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_rules(self.rule, self.sufficiency)
        check_batch_size(self.batch_size)
        _ = self.book  # complains now of questions that can't be used

    @cached_property
    def book(self) -> QuestionBook:
        """What each image is asked."""
        if isinstance(self.questions, QuestionBook):
            return self.questions
        asked: Any = self.questions
        if (file := _questions_file(asked)) is not None:
            asked = read_questions(file)
        if isinstance(asked, Mapping):
            return QuestionBook(asked, fallback=_several(self.question))
        return QuestionBook(self.question if asked is None else asked)

    @property
    def asks(self) -> bool:
        """Whether anything but the probe panel was asked for."""
        return bool(self.questions is not None or self.question)

    def seen(self, item: FoundImage) -> None:
        """See ScorerOptions: its questions are used, if not here."""
        with suppress(M3ScoreError):
            self.book.of(item.name, item.questions)

    def check_portable(self) -> None:
        """See ScorerOptions."""
        if not isinstance(self.model, str | os.PathLike):
            raise M3ScoreError("--engine ray loads the model on every machine: give its name, not a model.")

    def unused(self) -> Sequence[str]:
        """See ScorerOptions."""
        return self.book.unused()

    def loading(self) -> dict[str, Any]:
        """Arguments of load_model beside the name."""
        names = ("device", "dtype", "quantize", "revision")
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """What rows depend on, beside the model: by the option of the command that says it."""
        question = None if self.question is None else [_text(one) for one in _several(self.question)]
        return {
            "--quantize": self.quantize,
            "--question": question,
            "--questions": _digest(self.questions),
            "--rule": self.rule,
            "--max-new-tokens": self.max_new_tokens,
            "--answers": self.coarse_answers,
            "--frames": self.frames,
            **({} if self.sufficiency == "auto" else {"--sufficiency": self.sufficiency}),
        }


def _several(asked: Any) -> Sequence[Any]:
    if asked is None:
        return ()
    return [asked] if isinstance(asked, str | Question) else asked


def _text(asked: str | Question) -> Any:
    return asked if isinstance(asked, str) else asked.to_dict()


def _questions_file(asked: Any) -> Path | None:
    if isinstance(asked, os.PathLike):
        return Path(asked)
    if isinstance(asked, str) and asked.lower().endswith(QUESTION_FILES) and not any(map(str.isspace, asked)):
        return Path(asked)
    return None


def _digest(questions: Any) -> str | None:
    """A hash of what --questions stands for."""
    if questions is None:
        return None
    file = _questions_file(questions)
    content = read_whole(file) if file is not None else repr(questions).encode(errors="surrogatepass")
    return sha256(content).hexdigest()


def check_rules(rule: str, sufficiency: str) -> None:
    """M3ScoreError for a rule or sufficiency that there is not."""
    choose("rule", rule, RULES)
    choose("sufficiency", sufficiency, SUFFICIENCY)


def check_batch_size(batch_size: int | Literal["auto"]) -> None:
    """M3ScoreError for what is no number of images."""
    if batch_size != "auto" and batch_size < 1:
        raise M3ScoreError(f"batch_size must be at least 1, or 'auto', not {batch_size}.")


# ---- the scorer -----------------------------------------------------------------------------------------


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


class ModelScorer:
    """Asks a model at every scale."""

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    traced: ClassVar[bool] = True

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.model: Any = _loaded(options)
        check_frames(options.frames, self.model)
        self.name = str(options.model if isinstance(options.model, str) else self.model.name)
        self.ladder: tuple[int, ...] = tuple(self.model.ladder)
        self.columns = tuple(f"agreement_{tokens}" for tokens in self.ladder)
        self.block = BLOCK_BATCHES * images_at_once(self.model, options.batch_size)
        self.label = f"with {self.name} on {getattr(self.model, 'device', 'cpu')}"

    def identity(self) -> Mapping[str, Any]:
        """The model's weights and all that it is told."""
        return {
            "--model": identity_of(self.name, self.options.revision),
            "--device": str(getattr(self.model, "device", "cpu")).partition(":")[0],
            "--dtype": str(getattr(self.model, "dtype", self.options.dtype)),
            **self.options.identity(),
        }

    def stream(
        self, items: Iterable[FoundImage], *, limits: Limits, workers: int | None = None
    ) -> Generator[RankedImage, None, None]:
        """See Scorer."""
        told = self.options
        return rank_stream(
            items,
            self.model,
            told.book,
            rule=told.rule,
            sufficiency=told.sufficiency,
            batch_size=told.batch_size,
            max_new_tokens=told.max_new_tokens,
            workers=workers,
            coarse_answers=told.coarse_answers,
            limits=limits,
            frames=told.frames,
        )


def _loaded(options: ModelOptions) -> LadderAnswerer:
    if not isinstance(options.model, str | os.PathLike):
        return options.model
    import m3score

    return m3score.load_model(options.model, **options.loading())


def identity_of(model: str, revision: str | None = None) -> str:
    """What a model's answers depend on: its weights, whatever it is called."""
    from m3score.models import hub
    from m3score.models.fingerprint import fingerprint

    try:
        return fingerprint(hub.locate(model, revision))
    except M3ScoreError:  # loaded by other means
        return model


# ---- asking the model -----------------------------------------------------------------------------------


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
    prepare, settings = getattr(model, "tiles", None), getattr(model, "settings", None)
    if not (prepare and isinstance(settings, M3Settings)):
        settings = None
    opened = open_batches(
        found,
        size,
        limits=limits,
        workers=workers,
        book=questions or QuestionBook(),
        prepare=prepare,
        settings=settings,
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
    """The batch size; "auto" is 32 on a GPU and 8 elsewhere."""
    on_gpu = str(getattr(model, "device", "")).startswith("cuda")
    return (32 if on_gpu else 8) if batch_size == "auto" else batch_size


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
    if isinstance(rows, M3ScoreError):
        return RankedImage(item.path, None, (), rows.reason, width, height, rows.transient)
    try:
        scored = score_trace(rows, rule=rule, sufficiency=sufficiency)
    except M3ScoreError as problem:
        return RankedImage(item.path, None, rows, problem.reason, width, height)
    (complexity,) = scored.values()
    return RankedImage(item.path, complexity, rows, None, width, height)
