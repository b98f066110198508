"""Where labels come from: drawn images, image files with or without questions, and `datasets` data sets.

A source is a stream of items in a fixed order. It knows nothing about models.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any, Protocol

from m3score.calibration.drawings.drawing import Drawing, draw_or_leave_empty
from m3score.calibration.drawings.unasked.assorted import assort
from m3score.calibration.drawings.variations import VariedDrawing, vary
from m3score.common.errors import M3ScoreError
from m3score.data.discover import count_images, exists_somewhere, find_images
from m3score.data.item import Columns, ImageItem
from m3score.data.loader import Opened, QuestionBook, open_item
from m3score.data.questions import Question, default_questions, read_questions
from m3score.data.sources.hf_datasets import DataSet, is_saved
from m3score.data.sources.remote import is_url
from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.images.sandbox import open_visual

DRAWN = "drawn"
VARIED = "varied"
ASSORTED = "assorted"
_DRAWN = re.compile(r"(drawn|varied|assorted):(\d+)/(\d+)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
        """How many items there are; None if they have no end, or only reading them all would tell."""
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
                drawing = draw_or_leave_empty(self.seed, index)
                asked = tuple(
                    Question(a.question, (a.answer,), metric="exact_match") for a in drawing.questions
                )
                yield Item(name, drawing.image, partial(Opened, name, drawing.image, asked))


@dataclass(frozen=True)
class VariedDrawings:
    """The same stream as picture files of many sizes and shapes, most of them JPEGs; see variations.py."""

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
                varied = vary(self.seed, index, empty=True)
                if varied.questions:
                    yield Item(name, varied.content, partial(self._open, name, varied))

    def _open(self, name: str, varied: VariedDrawing) -> Opened:
        asked = tuple(Question(a.question, (a.answer,), metric="exact_match") for a in varied.questions)
        return Opened(name, open_image(varied.content), asked)


@dataclass(frozen=True)
class Assorted:
    """Drawn picture files of all kinds that nothing is asked about; see assorted.py."""

    seed: int

    @property
    def told(self) -> dict[str, Any]:
        return {"source": ASSORTED, "seed": self.seed}

    def count(self) -> None:
        return None

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        for index in islice(count(), limit):
            name = f"{ASSORTED}:{self.seed}/{index}"
            if name not in done:
                content = assort(self.seed, index)
                yield Item(name, content, partial(_unasked, name, content))


def _unasked(name: str, content: bytes) -> Opened:
    return Opened(name, open_image(content))


@dataclass(frozen=True)
class Files:
    """Images as find_images finds them; asked what a questions file says, or their source, or the panel."""

    paths: tuple[str, ...]
    questions: Mapping[str, list[Question]] | None = None
    columns: Columns = field(default_factory=Columns)
    frames: int | None = None
    """Of videos: a grid of tokens for each of so many frames; None for six frames as one picture."""

    @property
    def told(self) -> dict[str, Any]:
        asked = {name: [q.to_dict() for q in qs] for name, qs in sorted((self.questions or {}).items())}
        digest = hashlib.sha256(repr(asked or default_questions()).encode()).hexdigest()[:16]
        chosen = {name: column for name, column in asdict(self.columns).items() if column is not None}
        places = [path if is_url(path) else os.path.abspath(path) for path in self.paths]
        columns = {"columns": chosen} if chosen else {}
        return {"source": places, "questions": digest, **columns, **_told_frames(self.frames)}

    def count(self) -> int | None:
        return count_images(self.paths)

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        # Files without a row in the questions file fail, unless their source itself asks something.
        found = find_images(self.paths, columns=self.columns)
        return _items(found, QuestionBook(self.questions), self.frames, limit, done)


@dataclass(frozen=True)
class Rows:
    """A data set of the `datasets` library: one row, one image with its question or questions."""

    data: DataSet
    frames: int | None = None
    """As of Files."""

    @property
    def told(self) -> dict[str, Any]:
        return {**self.data.told, **_told_frames(self.frames)}

    def count(self) -> int | None:
        return self.data.count()

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        return _items(find_images(self.data), QuestionBook(), self.frames, limit, done)


def _told_frames(frames: int | None) -> dict[str, int]:
    return {} if frames is None else {"frames": frames}


def _items(
    found: Iterator[ImageItem],
    book: QuestionBook,
    frames: int | None,
    limit: int | None,
    done: Container[str],
) -> Iterator[Item]:
    decode = partial(open_visual, frames=frames)
    for one in islice(found, limit):
        if one.shown not in done:
            opened = partial(open_item, one, book, decode=decode)
            yield Item(one.shown, None if one.error else one.source, opened)


# ---- finding a source ---------------------------------------------------------------------------------


def find_source(
    source: str,
    *,
    seed: int = 0,
    questions: str | os.PathLike[str] | None = None,
    split: str | None = None,
    image: str | None = None,
    question: str | None = None,
    answers: str | None = None,
    frames: int | None = None,
) -> Source:
    """The source that a word on the command line stands for.

    Args:
        source: "drawn", "varied" or "assorted"; what find_images takes (but no list on stdin); a data set
            that `Dataset.save_to_disk` wrote; or the id of a data set on the Hugging Face hub.
        seed: of drawn images.
        questions: a questions file (see read_questions), for image files only.
        split: which split of a data set; needed where there are several.
        image, question, answers: columns of a data set or parquet file; see rows.chosen_columns.
        frames: give each of so many frames of a video a grid of tokens.

    Raises M3ScoreError if there is no such thing.
    """
    if source == DRAWN:
        found: Source = Drawn(seed)
    elif source == VARIED:
        found = VariedDrawings(seed)
    elif source == ASSORTED:
        found = Assorted(seed)
    elif is_saved(source) or (_HUB_ID.fullmatch(source) and not os.path.exists(source)):
        data = DataSet(source, split, Columns(image, question, answers))
        data.check()
        found = Rows(data, frames)
    else:
        return _files(source, questions, Columns(image, question, answers), frames)
    if frames is not None and not isinstance(found, Rows):
        raise M3ScoreError(f"--frames is for videos; {source} has none.")
    if questions is not None:
        raise M3ScoreError(f"--questions goes with image files; {source} has its own questions.")
    return found


def _files(
    source: str, questions: str | os.PathLike[str] | None, columns: Columns, frames: int | None
) -> Files:
    if source == "-" or not exists_somewhere([source]):
        raise M3ScoreError(
            f"{source}: no such source; allowed: {DRAWN}, {VARIED}, {ASSORTED}, image files or a folder of "
            "them, tar shards, parquet files, a data set saved on disk, or a data set's id on the Hugging "
            "Face hub."
        )
    return Files((source,), None if questions is None else read_questions(questions), columns, frames)


# ---- images by their name in a table --------------------------------------------------------------------


def image_named(name: str) -> ImageSource:
    """The image that a trace calls `name`: drawn again, or its path."""
    if match := _DRAWN.fullmatch(name):
        seed, index = int(match[2]), int(match[3])
        if match[1] == ASSORTED:
            return assort(seed, index)
        if match[1] == VARIED:
            return vary(seed, index, empty=True).content
        return draw_or_leave_empty(seed, index).image
    return name


def questions_named(name: str) -> list[str] | None:
    """What a drawn image is asked, by its name in a trace; None for other images."""
    if match := _DRAWN.fullmatch(name):
        seed, index = int(match[2]), int(match[3])
        if match[1] == ASSORTED:
            return []
        drawn: Drawing | VariedDrawing = draw_or_leave_empty(seed, index)
        if match[1] == VARIED:
            drawn = vary(seed, index, empty=True)
        return [a.question for a in drawn.questions]
    return None


def split_key(item_source: ImageSource | None, name: str) -> str:
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
