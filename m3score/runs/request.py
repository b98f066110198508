"""What a run is asked for: its inputs, where its tables go, and with what it scores."""

from __future__ import annotations

import glob
import io
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from m3score.common.errors import M3ScoreError
from m3score.common.limits import MAX_EMBEDDED_BYTES, Limits
from m3score.data.discover import Source, count_images, exists_somewhere, find_images
from m3score.data.item import Columns, ImageItem, PathLike
from m3score.data.sources.hf_datasets import DataSet, is_saved
from m3score.data.sources.parquet import is_table
from m3score.data.sources.remote import is_url
from m3score.data.sources.webdataset import is_shard
from m3score.images.decode import open_image
from m3score.images.given import as_source, is_picture, name_of
from m3score.images.video import missing_reader
from m3score.runs.resume.journal import written_by_earlier_run
from m3score.tables.formats import format_for
from m3score.tables.schema import SCORES, TableKind

if TYPE_CHECKING:
    from m3score.images.given import ImageSource
    from m3score.scoring.base import ScorerOptions


Paths: TypeAlias = "Source | ImageSource | Iterable[Any]"
"""One or many of what find_images takes, and of pictures as open_image takes them."""


# ---- inputs ---------------------------------------------------------------------------------------------


class Inputs:
    """The inputs: looked for lazily, counted on the side, with what was skipped.

    Args:
        paths: one or many of what find_images takes, and of pictures as open_image takes them. A folder that
            `save_to_disk` of the datasets library wrote is that data set.
        limit: at most so many inputs.
        columns: what to read of tables.
        max_bytes: Limits.max_embedded_bytes.
        split: of data sets saved on disk, where they have several.
    """

    def __init__(
        self,
        paths: Paths,
        limit: int | None = None,
        columns: Columns | None = None,
        max_bytes: int = MAX_EMBEDDED_BYTES,
        split: str | None = None,
    ) -> None:
        columns_read = columns or Columns()
        self.paths: Sequence[Source] = [
            DataSet(os.fspath(path), split, columns_read, max_bytes=max_bytes) if _is_saved(path) else path
            for path in _sources(paths)
        ]
        self.limit = limit
        self.columns = columns
        self.max_bytes = max_bytes
        self.skipped: Counter[str] = Counter()
        """Files that were not taken for images, by suffix."""

    def begin(self) -> Iterator[ImageItem]:
        """The inputs; M3ScoreError, before a model is loaded for nothing, if there are none."""
        names = ", ".join(str(getattr(path, "name", path)) for path in self.paths)
        if not exists_somewhere(self.paths):
            pattern = all(isinstance(path, str) and glob.has_magic(path) for path in self.paths)
            reason = "no image matches this pattern" if pattern else "no such file or folder"
            raise M3ScoreError(f"{names}: {reason}.")
        self.skipped.clear()
        found = find_images(
            self.paths,
            columns=self.columns,
            on_skip=lambda path: self.skipped.update([_suffix(path)]),
            max_bytes=self.max_bytes,
        )
        first = next(found, None)
        if first is None:
            others = f" ({sum(self.skipped.values()):,} other files)" if self.skipped else ""
            raise M3ScoreError(f"{names}: no images found{others}.{self._hint()}")
        return islice(chain([first], found), self.limit)

    def _hint(self) -> str:
        if videos := missing_reader(self.skipped):
            return f" {videos}"
        if ".arrow" in self.skipped:
            return (
                " A data set that was saved on disk has to be named itself, not the folder that it lies in."
            )
        inside = next((s for s in self.skipped if is_shard(f"x{s}") or is_table(f"x{s}")), None)
        return f' Shards and tables have to be named, as in "FOLDER/*{inside}".' if inside else ""

    def count(self) -> int | None:
        """How many inputs there are; None if there is no telling before the end."""
        return None if "-" in self.paths else count_images(self.paths, self.limit)

    def ask(self) -> bool:
        """Whether the first input comes with a question, as rows of data sets, tables and shards may."""
        if not any(map(_may_ask, self.paths)):
            return False
        return bool(next(Inputs(self.paths, 1, self.columns, self.max_bytes).begin()).questions)

    def keep_stdin(self) -> None:
        """Put a list that comes on stdin into a temporary file without a name: it can be read twice then."""
        if "-" not in self.paths:
            return
        source = getattr(sys.stdin, "buffer", sys.stdin)
        kept = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        for line in source:
            kept.write(line if isinstance(line, bytes) else str(line).encode(errors="surrogateescape"))
        sys.stdin = io.TextIOWrapper(_Rewound(kept))


def _sources(paths: Any) -> list[Source]:
    """Paths and data sets as they are; pictures, each run of them as one source."""
    single = isinstance(paths, str | os.PathLike) or is_picture(paths) or not isinstance(paths, Iterable)
    sources: list[Any] = []
    for path in [paths] if single else paths:
        if not is_picture(path):
            sources.append(path)
        elif sources and isinstance(sources[-1], _Pictures):
            sources[-1].pictures.append(path)
        else:
            sources.append(_Pictures([path]))
    return sources


@dataclass
class _Pictures:
    """Pictures of the caller's as a source, in the way of a DataSet."""

    pictures: list[Any]
    name: str = "pictures"

    def images(self) -> Iterator[ImageItem]:
        """Inputs called after the files that they say they are from, else image-0, image-1 ..."""
        for number, picture in enumerate(self.pictures):
            path = name_of(picture) or f"image-{number}"
            try:
                yield ImageItem(path, path, content=_encoded(picture))
            except M3ScoreError as error:
                yield ImageItem(path, path, error.reason)

    def count(self) -> int:
        """How many there are."""
        return len(self.pictures)


def _encoded(value: Any) -> bytes:
    """A picture as the bytes of an image file; pixels are turned into a PNG, without loss.

    Raises:
        M3ScoreError: it is none.
    """
    source = as_source(value)
    if isinstance(source, bytes):
        return source
    file = io.BytesIO()
    open_image(source).save(file, "PNG", compress_level=1)
    return file.getvalue()


class _Rewound(io.BufferedReader):
    """A file whose every iteration begins at its start."""

    def __iter__(self) -> Any:
        self.seek(0)
        return super().__iter__()


def _suffix(path: str) -> str:
    """What a skipped file is counted as."""
    return os.path.splitext(path)[1].lower() or "no suffix"


def inputs_of(
    paths: Sequence[Source] | None,
    limit: int | None,
    *,
    dataset: str | None = None,
    split: str | None = None,
    columns: Columns | None = None,
    streaming: bool = False,
    max_bytes: int = MAX_EMBEDDED_BYTES,
) -> Inputs:
    """The inputs that paths and a data set of the datasets library stand for.

    Args:
        paths: see find_images.
        limit, columns, max_bytes: see Inputs.
        dataset: a hub id or folder; see hf_datasets.DataSet.
        split, streaming: of the data set.

    Raises:
        M3ScoreError: the arguments make no sense together, or there is no such data set, split or column.
    """
    if dataset is None:
        if streaming:
            raise M3ScoreError("--streaming goes with --dataset.")
        if split is not None and not any(map(_is_saved, paths or ())):
            raise M3ScoreError("--split goes with --dataset, or with a data set that was saved on disk.")
        if not paths:
            raise M3ScoreError("give PATHS, or --dataset NAME.")
        _check_columns(paths, columns)
        inputs = Inputs(paths, limit, columns, max_bytes, split)
        for source in inputs.paths:
            if isinstance(source, DataSet):
                source.check()
        return inputs
    rows = DataSet(dataset, split, columns or Columns(), streaming=streaming, max_bytes=max_bytes)
    rows.check()
    return Inputs([*(paths or ()), rows], limit, columns, max_bytes)


def _is_saved(path: Any) -> TypeGuard[PathLike]:
    return isinstance(path, str | os.PathLike) and is_saved(path)


def _check_columns(paths: Sequence[Source], columns: Columns | None) -> None:
    """M3ScoreError for columns that are named where no input can have any."""
    given = {"--image-column": columns and columns.image, "--question-column": columns and columns.question,
             "--answers-column": columns and columns.answers}  # fmt: skip
    named = [option for option, value in given.items() if value]
    if named and not any(map(_may_have_columns, paths)):
        raise M3ScoreError(
            f"{' and '.join(named)}: none of the inputs is a parquet file or a data set (--dataset)."
        )


def _may_have_columns(path: Source) -> bool:
    if not isinstance(path, str | os.PathLike):
        return True
    text = os.fspath(path)
    return (
        text == "-" or is_table(text) or is_saved(text) or is_url(text) or glob.has_magic(text) or "{" in text
    )


def _may_ask(path: Source) -> bool:
    if not isinstance(path, str | os.PathLike):
        return not isinstance(path, _Pictures)
    return is_table(os.fspath(path)) or is_shard(os.fspath(path))


# ---- tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """Where a run's tables go, and what is in them."""

    out: Path | None = None
    """The table's file, "-" for stdout; None: no file, the rows are kept in memory."""
    format: str | None = None
    """Of the table, whatever the suffix of its name."""
    traces: Path | None = None
    """The file of the trace table."""
    kind: TableKind = SCORES
    ranked: bool = True
    """Sorted by complexity and with a rank; else in the order of the inputs."""

    def checked(self, *, overwrite: bool) -> Target:
        """The target as it is to be used; M3ScoreError for what would show after hours of work."""
        if self.out is not None and self.out == self.traces:
            raise M3ScoreError("--out and --traces need different files.")
        check_target(self.out, self.format, overwrite=overwrite, out=self.out)
        check_target(self.traces, None, overwrite=overwrite, out=self.out)
        if self.format is None and self.out is not None and _is_special(self.out):
            return replace(self, format="csv")
        return self


def check_target(path: Path | None, format: str | None, *, overwrite: bool, out: Path | None = None) -> None:
    """Complain about an output file now, not after hours of work.

    `out` is the output of a run with a journal: what an unfinished run into it wrote may be replaced.
    """
    if path is None or str(path) == "-" or _is_special(path):
        return
    format_for(path, format)
    if path.is_dir():
        raise M3ScoreError(f"{path}: is a folder; --out and --traces need a file name.")
    if not path.parent.is_dir():
        raise M3ScoreError(f"{path}: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise M3ScoreError(f"{path}: no permission to write to the folder {path.parent}.")
    if path.is_file() and not overwrite and not written_by_earlier_run(out, path):
        raise M3ScoreError(f"{path}: exists already; give --overwrite to replace it.")


def _is_special(path: Path) -> bool:
    """Whether a path is a device or a pipe, such as /dev/null: written to as it is, and as csv."""
    return path.exists() and not path.is_file() and not path.is_dir()


# ---- all together ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A run that is asked for."""

    inputs: Inputs
    scorer: Any
    """A scorer's class, or a scorer that is made already."""
    options: ScorerOptions
    target: Target
    command: str = "rank"
    """What the journal calls it."""
    limits: Limits = field(default_factory=Limits)
    workers: int | None = None
    anew: bool = False
    """Forget what an earlier, unfinished run left."""


def as_path(path: PathLike | None) -> Path | None:
    """A Path, of what may be none."""
    return None if path is None else Path(path)
