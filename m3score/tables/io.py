"""Score and trace tables as files, written whole or not at all. The columns are in schema.py, the csv, jsonl
and parquet formats in formats.py, and a file of questions is read by data/questions.py.
"""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError, OutputError
from m3score.tables.formats import Parquet, TableFormat, format_for
from m3score.tables.schema import (
    SCORES,
    TRACES,
    TableKind,
    conform,
    printable,
)

if TYPE_CHECKING:
    import pandas as pd

    from m3score.tables.schema import Rows

PathLike = str | os.PathLike[str]
CHUNK_ROWS = 10_000
"""Rows of a table that are in memory while it is written; also the size of a parquet row group."""


def write_scores(rows: Rows, path: PathLike, *, format: str | None = None) -> None:
    """Write a score table; `rows` is a frame or an iterable of mappings. See `write_table`."""
    write_table(rows, path, SCORES, format=format)


def write_traces(rows: Rows, path: PathLike, *, format: str | None = None) -> None:
    """Write a trace table; `rows` is a frame or an iterable of TraceRows or mappings. See `write_table`."""
    write_table(rows, path, TRACES, format=format)


def read_scores(path: PathLike, *, format: str | None = None) -> pd.DataFrame:
    """Read a score table. See `read_table`."""
    return read_table(path, SCORES, format=format)


def read_traces(path: PathLike, *, format: str | None = None) -> pd.DataFrame:
    """Read a trace table. See `read_table`."""
    return read_table(path, TRACES, format=format)


def write_table(rows: Rows, path: PathLike, kind: TableKind, *, format: str | None = None) -> None:
    """Write a whole table to a file ("-" is stdout), by way of a temporary file in the same folder.

    Whatever was at `path` stays there until the new table is complete. M3ScoreError for an unknown format or
    a place that cannot be written to.
    """
    chosen, frame = format_for(path, format), conform(rows, kind)
    _write(chosen, [frame], path, kind)


def write_rows(
    rows: Iterable[Mapping[str, Any]],
    path: PathLike,
    kind: TableKind,
    columns: Sequence[str] = (),
    *,
    format: str | None = None,
    before_rename: Callable[[str, os.stat_result], None] | None = None,
) -> None:
    """write_table for any number of rows: only CHUNK_ROWS of them are in memory.

    Args:
        rows: mappings, in the table's order.
        path, kind, format: as for write_table.
        columns: all that the table has beside those of its kind: what is missing in the rows' first chunk
            has to be known from here.
        before_rename: called with the real path and the new file's status just before it takes its place.
    """
    _write(format_for(path, format), _frames(rows, kind, columns), path, kind, before_rename)


def _frames(
    rows: Iterable[Mapping[str, Any]], kind: TableKind, columns: Sequence[str]
) -> Iterator[pd.DataFrame]:
    empty = dict.fromkeys(columns)
    items = iter(rows)
    first = True
    while (chunk := [{**empty, **row} for row in islice(items, CHUNK_ROWS)]) or first:
        yield conform(chunk or [empty], kind).iloc[: len(chunk)]
        first = False


def _write(
    chosen: TableFormat,
    frames: Iterable[pd.DataFrame],
    path: PathLike,
    kind: TableKind,
    before_rename: Callable[[str, os.stat_result], None] | None = None,
) -> None:
    if str(path) == "-":
        with _printing():
            sys.stdout.flush()
            buffer = io.BytesIO()  # a parquet writer closes, and seeks in, what it writes to
            seekable = not isinstance(chosen, Parquet)
            chosen.write(frames, kind, sys.stdout.buffer if seekable else buffer)
            sys.stdout.buffer.write(buffer.getvalue())
            sys.stdout.flush()
        return
    write_atomically(path, lambda file: chosen.write(frames, kind, file), before_rename)


@contextmanager
def _printing() -> Iterator[None]:
    """Turns what goes wrong with stdout into an OutputError; a reader that left (`| head`) is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise OutputError.of(error, "stdout") from error


def drop_stdout() -> None:
    """Forget what stdout could not pass on: Python would try once more at the end, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_whole(path: PathLike, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it. M3ScoreError where it cannot be."""
    write_atomically(path, lambda file: file.write(content))


def write_atomically(
    path: PathLike,
    write: Callable[[IO[bytes]], object],
    before_rename: Callable[[str, os.stat_result], None] | None = None,
) -> None:
    """write_whole for content that comes piece by piece; `before_rename` as for write_rows."""
    target = os.path.realpath(path)  # a link keeps pointing at what was written
    try:
        if os.path.exists(target) and not os.path.isfile(target):  # a pipe or a device cannot be replaced
            with open(target, "wb") as file:
                write(file)
            return
        folder, name = os.path.split(target)
        temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may keep the new name and lose its content
            if before_rename:
                before_rename(target, os.stat(temporary))
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError.of(error, printable(str(path))) from error


def remove_leftovers(path: PathLike) -> None:
    """Remove what a killed process left of a table that it was writing to `path`."""
    folder, name = os.path.split(os.path.realpath(path))
    with suppress(OSError):
        for temporary in Path(folder).glob(f".{glob.escape(name[:200])}.*.tmp"):
            if temporary.name[len(name[:200]) + 2 : -4].isdigit():
                temporary.unlink()


def read_table(path: PathLike, kind: TableKind, *, format: str | None = None) -> pd.DataFrame:
    """Read a table ("-" is stdin): all its columns in their order, with pandas' nullable dtypes.

    M3ScoreError, naming the file, for an unknown format, an unreadable file, a missing column, or a value
    that is not of its column's kind.
    """
    chosen, name = format_for(path, format), printable(str(path))
    frame = chosen.read(read_whole(path), kind, name)
    missing = [column for column in kind.required if column not in frame.columns]
    if missing and (len(frame.columns) or len(frame)):
        needed = ", ".join(kind.required)
        raise M3ScoreError(
            f"{name}: a {kind.name} needs the columns {needed}; missing: {', '.join(missing)}."
        )
    try:
        return conform(frame, kind)
    except (ValueError, TypeError, OverflowError) as error:
        raise M3ScoreError(f"{name}: not a {kind.name} ({error}).") from None


def read_whole(path: PathLike) -> bytes:
    """A file's bytes ("-" is stdin); M3ScoreError that names the file where it cannot be read."""
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except FileNotFoundError:
        raise M3ScoreError(f"{printable(str(path))}: no such file.") from None
    except OSError as error:
        raise M3ScoreError(f"{printable(str(path))}: cannot read ({error.strerror or error}).") from error
