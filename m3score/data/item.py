"""One input on its way to a model, wherever it comes from: a file, a member of a shard, a row, a URL.

Knows no sources; those are folders.py, webdataset.py, parquet.py, hf_datasets.py and remote.py, and
discover.py chooses among them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from m3score.common.files import printable
from m3score.tables.formats import guard_cell

if TYPE_CHECKING:
    from m3score.data.questions import Question

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ImageItem:
    """One input: a file to open or its content, or the reason why there is neither."""

    path: str
    """What the tables call this input, unique in a run and the same in every run: the path or URL as given,
    or the folder, shard or table as given joined with what lies in it."""
    relative: str
    """Relative to what was given; the file name for a file that was given."""
    error: str | None = None
    content: bytes | None = field(default=None, repr=False)
    """The encoded image, for an input that is no file of its own (a member of a shard, a row of a table)."""
    questions: tuple[Question, ...] = ()
    """What the source itself asks about this image."""
    original: str | None = None
    """What the source calls it, where `path` is another: the name without the number that
    naming.make_names_unique gave it, or the file that a row of a table names."""

    @property
    def shown(self) -> str:
        """The path as text that any table can hold and no spreadsheet takes for a formula.

        "=cmd().png" is called "./=cmd().png": the same file, for people and for programs.
        """
        text = printable(self.path)
        return f"./{text}" if guard_cell(text) != text else text

    @property
    def name(self) -> str:
        """What the source calls it: for a file the path to open."""
        return self.original or self.path

    @property
    def source(self) -> str | bytes:
        """What is to be decoded: the content, or else the path of the file."""
        return self.name if self.content is None else self.content


@dataclass(frozen=True)
class ToFetch:
    """An input whose content takes a while to come: remote.fetched has several on their way at once."""

    found: ImageItem
    fetch: Callable[[], bytes]
    """Raises M3ScoreError where there is no getting it."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table or data set hold what; None: found out by name and type (see parquet.py)."""

    image: str | None = None
    question: str | None = None
    """A text, or a list of texts; "" leaves alone what the source asks, also in a shard's json."""
    answers: str | None = None
    """References: for a text question a text or a list; for a list one entry per question."""


def too_large(size: int | None, max_bytes: int) -> str:
    """The error of an encoded image of `size` bytes (None: nobody counted), more than `max_bytes`."""
    many = "more bytes" if size is None else f"{size:,} bytes, more"
    return f"{many} than the limit of {max_bytes:,} for an image in a shard, a row or a URL"
