"""Tables row by row: for files that are larger than the memory.

Knows formats and columns; reads one batch at a time and keeps nothing. io.py reads whole tables.
"""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from m3score.common.errors import M3ScoreError
from m3score.images.decode import printable
from m3score.tables.formats import Csv, JsonLines, Parquet, format_for, unguard_cell
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
        rows: Iterator[tuple[str, dict[str, Any]]]
        if isinstance(chosen, Parquet):
            rows = _parquet_rows(file, name)
        elif isinstance(chosen, Csv | JsonLines):
            text = io.TextIOWrapper(file, "utf-8-sig", newline="" if isinstance(chosen, Csv) else None)
            rows = _csv_rows(text, kind, name) if isinstance(chosen, Csv) else _jsonl_rows(text, name)
        else:  # a format of somebody else's: whole
            frame = chosen.read(file.read(), kind, name)
            rows = ((name, row) for row in _frame_rows(frame))
        first = next(rows, None)
        if first is None:
            return
        missing = [column for column in kind.required if column not in first[1]]
        if missing:
            needed = ", ".join(kind.required)
            raise M3ScoreError(
                f"{name}: a {kind.name} needs the columns {needed}; missing: {', '.join(missing)}."
            )
        kinds = _Kinds(kind)
        for where, row in itertools.chain([first], rows):
            yield _record(row, kinds, where)


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
    except OSError as error:
        raise M3ScoreError(f"{name}: cannot read ({error.strerror or error}).") from error


def _csv_rows(text: IO[str], kind: TableKind, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(text, strict=True)
    try:
        header = [unguard_cell(cell) for cell in next(reader, [])]
        if len(set(header)) < len(header):
            raise M3ScoreError(f"{name}, line 1: a column appears twice.")
        kinds = [kind.kind(column) for column in header]
        for cells in filter(None, reader):
            where = f"{name}, line {reader.line_num}"
            if len(cells) != len(header):
                raise M3ScoreError(f"{where}: {len(cells)} cells under {len(header)} columns.")
            row: dict[str, Any] = {}
            for column, cell, of in zip(header, cells, kinds, strict=True):
                if cell == "" and of != "text":
                    row[column] = None
                elif of == "list":
                    row[column] = _json(cell, where)
                else:
                    row[column] = unguard_cell(cell) if of in ("text", "text?", "any") else cell
            yield where, row
    except csv.Error as error:
        raise M3ScoreError(f"{name}, line {reader.line_num}: {error}.") from None


def _json(cell: str, where: str) -> Any:
    import json

    try:
        return json.loads(cell)
    except json.JSONDecodeError as error:
        raise M3ScoreError(f"{where}: {cell[:60]!r} is no JSON list ({error}).") from None


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
