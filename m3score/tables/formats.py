"""Table formats: frames to bytes and back. One class and one line register a format.

Knows bytes, not names of files. A table is written piece by piece: it may be larger than memory. What comes
back is what went in: floats to the last bit, lists through csv, whole numbers whole where some are missing.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from m3score.common.errors import M3ScoreError
from m3score.tables.json_lines import json_lines
from m3score.tables.schema import TableKind, absent, cast, printable

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class TableFormat(Protocol):
    """One way to keep a table as bytes; `read` may return any dtypes, `conform` sets them right."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of file names, in lower case, with their dot."""
        ...

    def write(self, frames: Iterable[pd.DataFrame], kind: TableKind, file: IO[bytes]) -> None:
        """Write a table that comes in pieces with the same columns: one at least, which may be empty."""
        ...

    def read(self, content: bytes, kind: TableKind, name: str) -> pd.DataFrame:
        """The table, or an M3ScoreError that begins with `name` and says what is wrong where."""
        ...


_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def guard_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe before a leading = + - @, tab or newline.

    `unguard_cell` is its inverse; text that begins with apostrophes and then one of these gets one more.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_cell(text: str) -> str:
    """The text that `guard_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class Csv:
    """Comma-separated UTF-8. Lists are JSON; text, but no number, is guarded from spreadsheets."""

    suffixes = (".csv",)

    def write(self, frames: Iterable[pd.DataFrame], kind: TableKind, file: IO[bytes]) -> None:
        for number, frame in enumerate(frames):
            if number == 0:
                file.write(
                    (",".join(_quoted(guard_cell(printable(c))) for c in frame.columns) + "\n").encode()
                )
            kinds = [kind.kind(name) for name in frame.columns]
            for values in frame.itertuples(index=False, name=None):
                cells = (_quoted(_cell(v, k)) for v, k in zip(values, kinds, strict=True))
                file.write((",".join(cells) + "\n").encode())

    def read(self, content: bytes, kind: TableKind, name: str) -> pd.DataFrame:
        import pandas as pd

        header, rows = csv_rows(io.StringIO(_decoded(content, name), newline=""), kind, name)
        return pd.DataFrame(list(rows), columns=pd.Index(header), dtype=object)


def csv_rows(text: IO[str], kind: TableKind, name: str) -> tuple[list[str], Iterator[list[Any]]]:
    """The columns of a csv table, and its rows one after the other: values of their columns' kinds, or None.

    Args:
        text: opened with newline="".
        kind: of the table.
        name: what errors call it.

    Raises:
        M3ScoreError: not csv, a row of another length, a value that is not of its column's kind; with the
            line. Of the rows, when they are reached.
    """
    first = text.readline()
    delimiter = delimiter_of(first, kind.required, name)
    reader = csv.reader(chain([first] if first else [], text), strict=True, delimiter=delimiter)

    def fault(what: object) -> M3ScoreError:
        return M3ScoreError(what, subject=f"{name}, line {reader.line_num}")

    def rows() -> Iterator[list[Any]]:
        try:
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise fault(f"{len(cells)} cells under {len(header)} columns.")
                try:
                    yield list(map(_parsed, cells, kinds))
                except ValueError:
                    raise fault(_wrong_cell(cells, header, kinds)) from None
        except csv.Error as error:
            raise fault(f"{error}.") from None

    try:
        header = [unguard_cell(cell) for cell in next(reader, [])]
    except csv.Error as error:
        raise fault(f"{error}.") from None
    if len(set(header)) < len(header):
        raise fault("a column appears twice.")
    kinds = [kind.kind(column) for column in header]
    return header, rows()


def delimiter_of(first: str, needed: Collection[str], name: str, taken: Callable[[str], str] = str) -> str:
    """What stands between the columns of a csv file: commas, or what spreadsheets write in their place.

    Semicolons or tabs are taken where they, and not commas, make the needed columns out of the first line; a
    warning says so.

    Args:
        first: the first line.
        needed: columns that the file must have.
        name: what the warning calls the file.
        taken: what a heading is taken for.
    """
    for delimiter, called in ((";", "semicolons"), ("\t", "tabs")):
        columns = {taken(cell.strip('"\r\n')) for cell in first.split(delimiter)}
        if len(columns) > 1 and set(needed) <= columns:
            logger.warning("%s: has %s between its columns", name, called)
            return delimiter
    return ","


def _cell(value: Any, kind: str) -> str:
    if kind == "list":
        return json.dumps(value, ensure_ascii=False)
    if absent(value):
        return ""
    if isinstance(value, str):
        return guard_cell(value)
    return (
        str(bool(value)).lower() if kind == "bool" else str(value)
    )  # str() of a float is its shortest exact form


def _quoted(cell: str) -> str:
    # The csv module leaves a lone carriage return unquoted when lines end in "\n".
    return '"' + cell.replace('"', '""') + '"' if any(char in cell for char in ',"\n\r') else cell


def _wrong_cell(cells: list[str], header: list[str], kinds: list[str]) -> str:
    """What is wrong with the first cell that can't be parsed."""
    for cell, column, kind in zip(cells, header, kinds, strict=True):
        try:
            _parsed(cell, kind)
        except ValueError as error:  # what the json module raises is one too
            return f"column {column!r}: {error}."
    raise AssertionError("every cell can be parsed")


def _parsed(cell: str, kind: str) -> Any:
    if kind == "text":
        return unguard_cell(cell)
    if cell == "":
        return None
    if kind in ("text?", "any", "json"):
        return unguard_cell(cell)
    return cast(json.loads(cell) if kind == "list" else cell, kind)


class JsonLines:
    """One JSON object per line; absent values are null."""

    suffixes = (".jsonl", ".ndjson")

    def write(self, frames: Iterable[pd.DataFrame], kind: TableKind, file: IO[bytes]) -> None:
        for frame in frames:
            objects = [kind.kind(name) == "json" for name in frame.columns]
            for values in frame.itertuples(index=False, name=None):
                row = {name: _plain(v) for name, v in zip(frame.columns, values, strict=True)}
                row |= {
                    name: json.loads(row[name])
                    for name, is_object in zip(frame.columns, objects, strict=True)
                    if is_object and row[name] is not None
                }
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())

    def read(self, content: bytes, kind: TableKind, name: str) -> pd.DataFrame:
        import pandas as pd

        rows = [row for _, row in json_lines(_decoded(content, name), name)]
        return pd.DataFrame(rows, dtype=object)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return value
    if absent(value) or (isinstance(value, float) and math.isinf(value)):
        return None
    return value.item() if hasattr(value, "item") else value


class Parquet:
    """Apache Parquet, by pyarrow."""

    suffixes = (".parquet", ".pq")

    def write(self, frames: Iterable[pd.DataFrame], kind: TableKind, file: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pieces = iter(frames)
        first = next(pieces)
        schema = _schema(first, kind)
        with pq.ParquetWriter(file, schema) as writer:
            for frame in chain([first], pieces):
                writer.write_table(pa.Table.from_pandas(frame, schema, preserve_index=False))

    def read(self, content: bytes, kind: TableKind, name: str) -> pd.DataFrame:
        import pandas as pd
        import pyarrow as pa

        try:
            return pd.read_parquet(io.BytesIO(content), engine="pyarrow")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise M3ScoreError(f"{name}: not a readable parquet file ({error}).") from None


def _schema(frame: pd.DataFrame, kind: TableKind) -> Any:
    """An arrow schema by the columns' kinds: the same whether or not a column holds anything yet."""
    import pyarrow as pa

    types = {"text": pa.string(), "text?": pa.string(), "json": pa.string(), "list": pa.list_(pa.string())}
    schema = pa.Schema.from_pandas(frame, preserve_index=False)
    for i, name in enumerate(schema.names):
        if kind.kind(name) in types:
            schema = schema.set(i, pa.field(name, types[kind.kind(name)]))
    return schema


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        raise M3ScoreError(f"{name}: not UTF-8 text (byte {error.start}).") from None


FORMATS: dict[str, TableFormat] = {"csv": Csv(), "jsonl": JsonLines(), "parquet": Parquet()}
"""Every format by name. A new one is a class and a line here."""


def format_for(path: str | os.PathLike[str], format: str | None = None) -> TableFormat:
    """The format of that name, or else the one of the path's suffix; csv for "-" (stdout, stdin).

    M3ScoreError that lists the names, or the suffixes, for any other.
    """
    if format is not None:
        if format not in FORMATS:
            raise M3ScoreError(f"unknown table format {format!r}; allowed: {', '.join(FORMATS)}.")
        return FORMATS[format]
    if str(path) == "-":
        return FORMATS["csv"]
    suffix = Path(path).suffix.lower()
    for candidate in FORMATS.values():
        if suffix in candidate.suffixes:
            return candidate
    allowed = ", ".join(suffix for candidate in FORMATS.values() for suffix in candidate.suffixes)
    raise M3ScoreError(f"{printable(str(path))}: unknown table suffix {suffix!r}; allowed: {allowed}.")
