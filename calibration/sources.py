"""Where labels come from: drawn images, image files with or without questions, and `datasets` data sets.

A source is a stream of items in a fixed order. It knows nothing about models.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

from m3score.calibration.drawn import draw
from m3score.calibration.varied import Varied, vary
from m3score.errors import M3ScoreError
from m3score.finding import find_images
from m3score.images import ImageSource, open_image
from m3score.prefetch import Opened, QuestionBook, open_item
from m3score.questions import Question
from m3score.traces import as_question, default_questions

DRAWN = "drawn"
VARIED = "varied"
_DRAWN = re.compile(r"(drawn|varied):(\d+)/(\d+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Item:
    """One image on its way to the oracle."""

    name: str
    """What the tables call it: a path, or SOURCE and index."""
    source: ImageSource | None
    """What features are computed from, the way a user will hand it in; None if there is nothing to read."""
    open: Callable[[], Opened]
    """Decodes the image for the model, with its questions; its errors are in the result."""


class Source(Protocol):
    """A stream of items, the same at every call."""

    @property
    def told(self) -> dict[str, Any]:
        """What a collection is of, ready for JSON: two runs with the same go on with each other."""
        ...

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        """The first `limit` items, without those whose names are in `done`."""
        ...

    def count(self) -> int | None:
        """How many items there are; None if they have no end."""
        ...


@dataclass(frozen=True)
class Drawn:
    """The endless stream of drawings of one seed, with questions whose answers are known."""

    seed: int

    @property
    def told(self) -> dict[str, Any]:
        return {"source": DRAWN, "seed": self.seed}

    def count(self) -> None:
        return None

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        for index in islice(count(), limit):
            name = f"{DRAWN}:{self.seed}/{index}"
            if name not in done:
                drawing = draw(self.seed, index)
                asked = tuple(Question(a.question, (a.answer,), metric="exact_match") for a in drawing.asked)
                yield Item(name, drawing.image, partial(Opened, name, drawing.image, asked))


@dataclass(frozen=True)
class VariedDrawings:
    """The same stream as picture files of many sizes and shapes, most of them JPEGs; see varied.py."""

    seed: int

    @property
    def told(self) -> dict[str, Any]:
        return {"source": VARIED, "seed": self.seed}

    def count(self) -> None:
        return None

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        for index in islice(count(), limit):
            name = f"{VARIED}:{self.seed}/{index}"
            if name not in done:
                varied = vary(self.seed, index)
                if varied.asked:
                    yield Item(name, varied.content, partial(self._open, name, varied))

    def _open(self, name: str, varied: Varied) -> Opened:
        asked = tuple(Question(a.question, (a.answer,), metric="exact_match") for a in varied.asked)
        return Opened(name, open_image(varied.content), asked)


@dataclass(frozen=True)
class Files:
    """Image files as find_images finds them; asked what a questions file says, or the probe panel."""

    paths: tuple[str, ...]
    questions: Mapping[str, list[Question]] | None = None

    @property
    def told(self) -> dict[str, Any]:
        asked = {name: [q.to_dict() for q in qs] for name, qs in sorted((self.questions or {}).items())}
        digest = hashlib.sha256(repr(asked or default_questions()).encode()).hexdigest()[:16]
        return {"source": [os.path.abspath(path) for path in self.paths], "questions": digest}

    def count(self) -> int:
        return sum(1 for _ in find_images(self.paths))

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        book = QuestionBook(self.questions)
        for found in islice(find_images(self.paths), limit):
            if found.shown in done:
                continue
            yield Item(found.shown, None if found.error else found.path, partial(open_item, found, book))


@dataclass(frozen=True)
class Rows:
    """A data set of the `datasets` library: one row, one image with its question or questions."""

    name: str
    rows: Any
    image: str = "image"
    question: str | None = None
    """Column of the questions, a text or a list of them; None asks the probe panel."""
    answers: str | None = None
    """Column of the references: for a text question a text or a list; for a list one entry per question."""

    @property
    def told(self) -> dict[str, Any]:
        columns = {"image": self.image, "question": self.question, "answers": self.answers}
        return {"source": self.name, "columns": columns}

    def count(self) -> int:
        return len(self.rows)

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        for index in islice(range(len(self.rows)), limit):
            name = f"{self.name}/{index}"
            if name in done:
                continue
            row = self.rows[index]
            value = row[self.image]
            if isinstance(value, Mapping):  # an Image column that is not decoded
                value = value.get("bytes") or value.get("path")
            yield Item(name, value, partial(self._open, name, value, row))

    def _open(self, name: str, value: Any, row: Mapping[str, Any]) -> Opened:
        try:
            if value is None:
                raise M3ScoreError("no image in this row")
            return Opened(name, open_image(value), self._asked(row))
        except M3ScoreError as error:
            return Opened(name, None, error=str(error))

    def _asked(self, row: Mapping[str, Any]) -> tuple[Question, ...]:
        asked = row[self.question] if self.question else None
        if asked is None:
            return default_questions()
        answers = row[self.answers] if self.answers else None
        if isinstance(asked, str):
            return (as_question(asked, _texts(answers)),)
        given = [None] * len(asked) if answers is None else answers
        if len(given) != len(asked):
            raise M3ScoreError(f"{len(asked)} questions with {len(given)} answers")
        return tuple(as_question(one, _texts(own)) for one, own in zip(asked, given, strict=True))


def _texts(answers: Any) -> tuple[str, ...] | None:
    if answers is None:
        return None
    return tuple(str(one) for one in answers) if isinstance(answers, list | tuple) else (str(answers),)


# ---- finding a source ---------------------------------------------------------------------------------


def find_source(
    source: str,
    *,
    seed: int = 0,
    questions: str | os.PathLike[str] | None = None,
    split: str | None = None,
    image: str = "image",
    question: str | None = None,
    answers: str | None = None,
) -> Source:
    """The source that a word on the command line stands for.

    Args:
        source: "drawn" or "varied"; image files, a folder of them, or a quoted pattern; a data set that
            `Dataset.save_to_disk` wrote; or the id of a data set on the Hugging Face hub.
        seed: of drawn images.
        questions: a questions file (see read_questions), for image files only.
        split: which split of a data set; needed where there are several.
        image, question, answers: columns of a data set. By default image, and question and answers (or
            answer) where there are such columns.

    Raises M3ScoreError if there is no such thing.
    """
    if source == DRAWN:
        found: Source = Drawn(seed)
    elif source == VARIED:
        found = VariedDrawings(seed)
    elif _is_saved(source) or (_HUB_ID.fullmatch(source) and not os.path.exists(source)):
        found = _data_set(source, split, image, question, answers)
    else:
        return _files(source, questions)
    if questions is not None:
        raise M3ScoreError(f"--questions goes with image files; {source} has its own questions.")
    return found


def _files(source: str, questions: str | os.PathLike[str] | None) -> Files:
    from m3score.finding import exists_somewhere
    from m3score.questions import read_questions

    if source == "-" or not exists_somewhere([source]):
        raise M3ScoreError(
            f"{source}: no such source; allowed: {DRAWN}, {VARIED}, image files or a folder of them, a data "
            "set saved on disk, or a data set's id on the Hugging Face hub."
        )
    return Files((source,), None if questions is None else read_questions(questions))


def _is_saved(source: str) -> bool:
    return any((Path(source) / name).is_file() for name in _SAVED)


def _data_set(name: str, split: str | None, image: str, question: str | None, answers: str | None) -> Rows:
    import datasets

    try:
        loaded = datasets.load_from_disk(name) if _is_saved(name) else datasets.load_dataset(name)
    except Exception as error:  # the library and the hub raise a dozen kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise M3ScoreError(f"{name}: can't be loaded as a data set ({reason}).") from None
    if isinstance(loaded, Mapping):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            raise M3ScoreError(f"{name}: --split has to be one of {', '.join(loaded)}, not {split!r}.")
        loaded, name = loaded[split], f"{name}/{split}"
    elif split is not None:
        raise M3ScoreError(f"{name}: has no splits, so --split {split} makes no sense.")
    columns = loaded.column_names
    question = question or ("question" if "question" in columns else None)
    answers = answers or next((c for c in ("answers", "answer") if question and c in columns), None)
    for option, column in (("image", image), ("question", question), ("answers", answers)):
        if column is not None and column not in columns:
            raise M3ScoreError(
                f"{name}: no column {column!r} (--{option}-column); there are {', '.join(columns)}."
            )
    if isinstance(loaded.features[image], datasets.Image):
        loaded = loaded.cast_column(image, datasets.Image(decode=False))  # opened, and failing, one by one
    return Rows(name, loaded, image, question, answers)


# ---- images by their name in a table --------------------------------------------------------------------


def image_named(name: str) -> ImageSource:
    """The image that a trace calls `name`: drawn again, or its path."""
    if match := _DRAWN.fullmatch(name):
        seed, index = int(match[2]), int(match[3])
        return vary(seed, index).content if match[1] == VARIED else draw(seed, index).image
    return name


def questions_named(name: str) -> list[str] | None:
    """What a drawn image is asked, by its name in a trace; None for other images."""
    if match := _DRAWN.fullmatch(name):
        seed, index = int(match[2]), int(match[3])
        return [a.question for a in (vary if match[1] == VARIED else draw)(seed, index).asked]
    return None


def key_of(item_source: ImageSource | None, name: str) -> str:
    """What tells images apart when they are split: a hash of the file's bytes, so that copies stay together.

    Drawn images, and those that can't be read, go by their name.
    """
    try:
        if isinstance(item_source, bytes):
            return hashlib.sha256(item_source).hexdigest()[:32]
        if isinstance(item_source, str | os.PathLike):
            with open(item_source, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except (OSError, ValueError):
        pass
    return name
