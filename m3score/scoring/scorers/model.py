"""The scorer `model`: ask a model its questions at every scale of its ladder; see model_stream.py."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.item import ImageItem
from m3score.data.loader import QuestionBook, Questions
from m3score.data.questions import Question, read_questions
from m3score.models.budgets.base import parse_rungs
from m3score.models.fingerprint import calibration_identity
from m3score.scoring.base import BLOCK_BATCHES, ScorerOptions
from m3score.scoring.scorers.model_stream import (
    RankedImage,
    check_batch_size,
    check_frames,
    check_rules,
    images_at_once,
    rank_stream,
)
from m3score.scoring.scorers.served import Bill, ServedOptions
from m3score.tables.io import read_whole

QUESTION_FILES = (".csv", ".jsonl", ".ndjson")
"""A text that ends so, and has no space in it, is the name of a file of questions, not a question."""


# ---- options --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedOptions(ScorerOptions):
    """Options of a scorer that loads a model: which, and how."""

    model: Any = "m3-tiny"
    """What load_model takes (a bundled model, a hub id, a folder), or a loaded model."""
    batch_size: int | Literal["auto"] = "auto"
    """Images that the model is given at once; "auto" is 32 on a GPU and 8 elsewhere."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    revision: str | None = None
    rungs: str | Sequence[int] | None = None
    """The ladder of budgets, such as "64,256,1024", of a model that is no M3 model."""

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        parse_rungs(self.rungs)

    def check_portable(self) -> None:
        """See ScorerOptions."""
        if not isinstance(self.model, str | os.PathLike):
            raise M3ScoreError("--engine ray loads the model on every machine: give its name, not a model.")

    def load(self) -> Any:
        """The model; one that is loaded already as it is."""
        names = ("device", "dtype", "quantize", "revision")
        told = {name: getattr(self, name) for name in names}
        if self.rungs is not None:  # others' stand-ins of load_model need not know of it
            told["rungs"] = parse_rungs(self.rungs)
        return loaded_model(self.model, told)


@dataclass(frozen=True)
class ModelOptions(ServedOptions, LoadedOptions):
    """Options of the scorer `model`."""

    questions: Questions | str | os.PathLike[str] | QuestionBook = None
    """What to ask: one question or several for every image, a mapping from images to theirs, or a file of
    those (.csv, .jsonl; see read_questions). Default: "Describe the image."."""
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
    frames: int | None = None
    """Give each of so many frames of a video a grid of visual tokens of its own; by default six frames make
    one picture."""

    def __post_init__(self) -> None:
        check_rules(self.rule, self.sufficiency)
        super().__post_init__()
        self.check_served()
        here = {name: getattr(self, name) for name in ("device", "dtype", "quantize", "revision")}
        if self.endpoint is not None and (given := [n for n, v in here.items() if v not in ("auto", None)]):
            options = " and ".join(f"--{name}" for name in given)
            raise M3ScoreError(f"{options}: with --endpoint the server decides.")
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

    def load(self) -> Any:
        """See LoadedOptions."""
        if self.endpoint is None:
            return super().load()
        return self.connect(self.endpoint, self.model, self.rungs)

    @property
    def asks(self) -> bool:
        """Whether the options themselves say what to ask."""
        return bool(self.questions is not None or self.question)

    def seen(self, item: ImageItem) -> None:
        """See ScorerOptions: its questions are used, if not here."""
        with suppress(M3ScoreError):
            self.book.of(item.name, item.questions)

    def unused(self) -> Sequence[str]:
        """See ScorerOptions."""
        return self.book.unused()

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


class ModelScorer:
    """Asks a model at every scale."""

    Options: ClassVar[type[ModelOptions]] = ModelOptions
    traced: ClassVar[bool] = True

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.model: Any = options.load()
        check_frames(options.frames, self.model)
        named = isinstance(options.model, str) and options.endpoint is None
        self.name = str(options.model if named else self.model.name)
        self.ladder: tuple[int, ...] = tuple(self.model.ladder)
        self.columns = tuple(f"agreement_{tokens}" for tokens in self.ladder)
        self.block: int = getattr(
            self.model, "block", BLOCK_BATCHES * images_at_once(self.model, options.batch_size)
        )
        place = getattr(self.model, "url", None) or getattr(self.model, "device", "cpu")
        self.label = f"with {self.name} on {place}"
        self._bill = Bill(options.price_in, options.price_out)

    def identity(self) -> Mapping[str, Any]:
        """The model's weights and all that it is told."""
        return {
            "--model": calibration_identity(self.model),
            "--device": str(getattr(self.model, "device", "cpu")).partition(":")[0],
            "--dtype": str(getattr(self.model, "dtype", self.options.dtype)),
            **self.options.identity(),
        }

    def stream(
        self, items: Iterable[ImageItem], *, limits: Limits, workers: int | None = None
    ) -> Generator[RankedImage, None, None]:
        """See Scorer."""
        for result in self._stream(items, limits, workers):
            self._bill.add(result)
            yield result

    def costs(self) -> Sequence[str]:
        """What the server counted in this run, for people; nothing of a model in this process."""
        chat = getattr(self.model, "chat", None)
        return [] if chat is None else self._bill.sentences(chat.tokens_in, chat.tokens_out)

    def _stream(
        self, items: Iterable[ImageItem], limits: Limits, workers: int | None
    ) -> Generator[RankedImage, None, None]:
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


def loaded_model(model: Any, loading: Mapping[str, Any]) -> Any:
    """A model: loaded, with these arguments of load_model, if it is a name."""
    if not isinstance(model, str | os.PathLike):
        return model
    from m3score.models.loading import load_model

    return load_model(os.fspath(model), **loading)
