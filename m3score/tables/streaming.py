"""Tables row by row: for files that are larger than the memory.

Knows formats and columns; reads one batch at a time and keeps nothing. io.py reads whole tables.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from m3score.common.errors import M3ScoreError
from m3score.common.files import printable
from m3score.tables.formats import Csv, JsonLines, Parquet, csv_rows, format_for
from m3score.tables.io import PathLike
from m3score.tables.json_lines import json_lines
from m3score.tables.schema import TableKind, absent, cast

if TYPE_CHECKING:
    import pandas as pd

    Table: TypeAlias = PathLike | pd.DataFrame | Iterable[Mapping[str, Any]]
    """A file of any table format, a frame, or rows."""

_ROWS_AT_ONCE = 5_000


def stream_rows(table: Table, kind: TableKind, *, format: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table as dictionaries, one after the other; absent values are left out.

    Args:
        table: a file ("-" is csv on stdin), a frame, or rows.
        kind: what the columns are.
        format: of a file, whatever its suffix.

    Raises:
        M3ScoreError: an unreadable file, a missing column, or a value that is not of its column's kind; with
            the file and, where there are lines, the line.
    """
    if isinstance(table, str) or hasattr(table, "__fspath__"):
        yield from _file_rows(str(table), kind, format)
        return
    rows: Any = table
    records = _frame_rows(rows) if hasattr(rows, "itertuples") else rows
    kinds = _Kinds(kind)
    for number, row in enumerate(records, start=1):
        yield _record(row, kinds, f"row {number}")


def _frame_rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    for values in frame.itertuples(index=False, name=None):
        yield dict(zip(names, values, strict=True))


def _file_rows(path: str, kind: TableKind, format: str | None) -> Iterator[dict[str, Any]]:
    name, chosen = printable(path), format_for(path, format)
    with _opened(path, name) as file:
        if isinstance(chosen, Csv):
            text = io.TextIOWrapper(file, "utf-8-sig", newline="")
            header, parsed = csv_rows(text, kind, name)
            for number, values in enumerate(parsed):
                if number == 0:
                    _check(header, kind, name)
                yield {
                    column: value for column, value in zip(header, values, strict=True) if value is not None
                }
            return
        rows: Iterator[tuple[str, dict[str, Any]]]
        if isinstance(chosen, Parquet):
            rows = _parquet_rows(file, name)
        elif isinstance(chosen, JsonLines):
            rows = _jsonl_rows(io.TextIOWrapper(file, "utf-8-sig"), name)
        else:  # a format of somebody else's: whole
            frame = chosen.read(file.read(), kind, name)
            rows = ((name, row) for row in _frame_rows(frame))
        kinds = _Kinds(kind)
        for number, (where, row) in enumerate(rows):
            if number == 0:
                _check(row, kind, name)
            yield _record(row, kinds, where)


def _check(columns: Container[str], kind: TableKind, name: str) -> None:
    missing = [column for column in kind.required if column not in columns]
    if missing:
        needed = ", ".join(kind.required)
        raise M3ScoreError(
            f"{name}: a {kind.name} needs the columns {needed}; missing: {', '.join(missing)}."
        )


@contextmanager
def _opened(path: str, name: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(path).open("rb") as file:
            yield file
    except UnicodeDecodeError as error:
        raise M3ScoreError(f"{name}: not UTF-8 text (byte {error.start}).") from None
    except FileNotFoundError:
        raise M3ScoreError(f"{name}: no such file.") from None
    except OSError as error:
        raise M3ScoreError(f"{name}: cannot read ({error.strerror or error}).") from error


def _jsonl_rows(text: IO[str], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text, start=1):
        for _, row in json_lines(line.rstrip("\n"), f"{name}, line {number}"):
            yield f"{name}, line {number}", row


def _parquet_rows(file: IO[bytes], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield name, row
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, M3ScoreError):
            raise
        raise M3ScoreError(f"{name}: not a readable parquet file ({error}).") from None


class _Kinds(dict[str, str]):
    """Kinds of columns, looked up once each."""

    def __init__(self, kind: TableKind) -> None:
        self._kind = kind

    def __missing__(self, column: str) -> str:
        self[column] = self._kind.kind(column)
        return self[column]


def _record(row: Mapping[str, Any], kinds: Mapping[str, str], where: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for column, value in row.items():
        if absent(value):
            continue
        try:
            record[str(column)] = cast(value, kinds[str(column)])
        except ValueError as error:
            raise M3ScoreError(f"{where}: column {column!r} {error}.") from None
    return record
