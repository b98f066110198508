"""Score and trace tables as files, written whole or not at all. The columns are in columns.py, the csv, jsonl
and parquet formats in formats.py, and a file of questions is read by questions.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from m3score.columns import (
    SCORE_COLUMNS,
    SCORES,
    TRACE_COLUMNS,
    TRACES,
    TableKind,
    conform,
    printable,
    score_columns,
)
from m3score.errors import M3ScoreError
from m3score.formats import FORMATS, format_for
from m3score.questions import Question, read_questions

if TYPE_CHECKING:
    import pandas as pd

    from m3score.columns import Rows

__all__ = [
    "FORMATS",
    "SCORES",
    "SCORE_COLUMNS",
    "TRACES",
    "TRACE_COLUMNS",
    "Question",
    "conform",
    "format_for",
    "printable",
    "read_questions",
    "read_scores",
    "read_table",
    "read_traces",
    "score_columns",
    "write_scores",
    "write_table",
    "write_traces",
    "write_whole",
]

PathLike = str | os.PathLike[str]


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
    content = format_for(path, format).write(conform(rows, kind), kind)
    if str(path) == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
        return
    write_whole(path, content)


def write_whole(path: PathLike, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever sees half of it. M3ScoreError where it cannot be."""
    target = os.path.realpath(path)  # a link keeps pointing at what was written
    try:
        if os.path.exists(target) and not os.path.isfile(target):  # a pipe or a device cannot be replaced
            Path(target).write_bytes(content)
            return
        folder, name = os.path.split(target)
        temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may keep the new name and lose its content
            os.replace(temporary, target)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{printable(str(path))}: cannot write ({error.strerror or error}).") from error


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
    except OSError as error:
        raise M3ScoreError(f"{printable(str(path))}: cannot read ({error.strerror or error}).") from error
