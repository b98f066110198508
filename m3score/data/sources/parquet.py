"""Images in the rows of tables: which columns hold them and what is asked, and parquet files of such rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import IO, Any

from m3score.common.errors import M3ScoreError, one_line
from m3score.common.files import system_error
from m3score.common.limits import MAX_EMBEDDED_BYTES
from m3score.data.item import Columns, ImageItem, too_large
from m3score.data.questions import Question
from m3score.data.references import is_missing, read_texts

SUFFIXES = (".parquet", ".pq")

_AT_ONCE = 16
"""Rows that are in memory at once."""


def is_table(path: str) -> bool:
    """Whether the name is a parquet file's."""
    return path.lower().endswith(SUFFIXES)


# ---- columns ------------------------------------------------------------------------------------------


def chosen_columns(name: str, there: Sequence[str], images: Sequence[str], wanted: Columns) -> Columns:
    """The columns to read of a table.

    Args:
        name: of the table, for errors.
        there: its columns.
        images: those that can hold images, the likelier ones first.
        wanted: what was asked for. Without: the column "image", or the first of `images`; the column
            "question"; and with it "answers" or "answer".

    Raises:
        M3ScoreError: a column that was asked for is not there, or there is none with images.
    """
    question = wanted.question or ("question" if wanted.question is None and "question" in there else None)
    answers = wanted.answers or next((c for c in ("answers", "answer") if question and c in there), None)
    image = wanted.image or ("image" if "image" in there or not images else images[0])
    for option, column in (("image", image), ("question", question), ("answers", answers)):
        if column is not None and column not in there:
            raise M3ScoreError(
                f"no column {column!r} (--{option}-column); there are {', '.join(there)}.", subject=name
            )
    return Columns(image, question, answers)


def questions_of(row: Mapping[str, Any], columns: Columns) -> tuple[Question, ...]:
    """What a row asks about its image; M3ScoreError if that makes no sense."""
    asked = row[columns.question] if columns.question else None
    if is_missing(asked):
        return ()
    answers = row[columns.answers] if columns.answers else None
    if isinstance(asked, str):
        return (Question(asked, read_texts(answers, columns.answers or "answers")),)
    if not isinstance(asked, list | tuple):
        raise M3ScoreError(f"a question has to be a text or a list of texts, not {type(asked).__name__}")
    given: Any = [None] * len(asked) if is_missing(answers) else answers
    if not isinstance(given, list | tuple) or len(given) != len(asked):
        raise M3ScoreError(f"{len(asked)} questions need a list with the answers of each, not {given!r:.100}")
    return tuple(_asked(*one, columns) for one in zip(asked, given, strict=True))


def _asked(text: Any, answers: Any, columns: Columns) -> Question:
    if not isinstance(text, str):
        raise M3ScoreError(f"a question has to be a text, not {text!r:.100}")
    return Question(text, read_texts(answers, columns.answers or "answers"))


def row_image(
    path: str,
    relative: str,
    row: Mapping[str, Any],
    columns: Columns,
    max_bytes: int = MAX_EMBEDDED_BYTES,
) -> tuple[ImageItem, str | None]:
    """A row as an input called `path`; and where its image lies, if it is not in the row.

    An image of more than `max_bytes` is an error.
    """
    value: Any = row[columns.image or "image"]
    where = None
    if isinstance(value, Mapping):  # an Image column of the datasets library, not decoded
        where, value = value.get("path"), value.get("bytes")
    elif isinstance(value, str):
        where, value = value, None
    try:
        asked = questions_of(row, columns)
    except M3ScoreError as error:
        return ImageItem(path, relative, str(error)), None
    if isinstance(value, bytes) and 0 < len(value) <= max_bytes:
        return ImageItem(path, relative, content=value, questions=asked), None
    if value is None and where:
        return ImageItem(path, relative, questions=asked), where
    if not value:
        return ImageItem(path, relative, "no image in this row"), None
    if isinstance(value, bytes):
        return ImageItem(path, relative, too_large(len(value), max_bytes)), None
    reason = f"no image in the column {columns.image}, but {type(value).__name__}"
    return ImageItem(path, relative, reason), None


# ---- parquet ------------------------------------------------------------------------------------------


def parquet_images(
    name: str,
    open_file: Callable[[], IO[bytes]],
    columns: Columns,
    *,
    wanted: Collection[int] | None = None,
    max_bytes: int = MAX_EMBEDDED_BYTES,
) -> Iterator[tuple[ImageItem, str | None]]:
    """Rows of a parquet file as inputs called FILE/ROW, each with where its image lies if not in the row.

    Row groups that can't be read are one error each; the others are read all the same. Where the numbers of
    the `wanted` rows are given, row groups without any are left out. `max_bytes` is as in row_image.
    """
    import pyarrow.parquet as pq

    try:
        with open_file() as file:
            # pre_buffer would read whole row groups, which hold hundreds of megabytes of images
            table = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
            schema = table.schema_arrow
            chosen = chosen_columns(name, schema.names, _image_columns(schema), columns)
            first = 0
            for group in range(table.num_row_groups):
                rows = range(first, first + table.metadata.row_group(group).num_rows)
                if wanted is None or any(row in rows for row in wanted):
                    yield from _group_images(name, table, group, first, chosen, max_bytes)
                first = rows.stop
    except M3ScoreError as error:
        yield ImageItem(name, os.path.basename(name), error.reason), None
    except Exception as error:  # pyarrow's errors, and those of remote file systems
        reason = f"not a parquet file that can be read ({_detail(error)})"
        yield ImageItem(name, os.path.basename(name), reason), None


def _group_images(
    name: str, table: Any, group: int, first: int, columns: Columns, max_bytes: int
) -> Iterator[tuple[ImageItem, str | None]]:
    wanted = list(dict.fromkeys(filter(None, (columns.image, columns.question, columns.answers))))
    index = first
    try:
        for batch in table.iter_batches(_AT_ONCE, row_groups=[group], columns=wanted, use_threads=False):
            for row in batch.to_pylist():
                yield row_image(f"{name}/{index}", str(index), row, columns, max_bytes)
                index += 1
    except Exception as error:
        last = first + table.metadata.row_group(group).num_rows - 1
        reason = f"damaged from here to row {last} ({_detail(error)}): these rows are lost"
        yield ImageItem(f"{name}/{index}", str(index), reason), None


def parquet_rows(path: str) -> int:
    """How many rows a local parquet file has, by its footer; 0 if it can't be read."""
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except Exception:
        return 0


def _image_columns(schema: Any) -> list[str]:
    """Columns that can hold images: bytes, or the datasets library's {bytes, path}."""
    import pyarrow.types as types

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
        return types.is_binary(kind) or types.is_large_binary(kind)

    there = [field.name for field in schema if holds_images(field.type)]
    return there or [name for name in ("path", "file_name", "image_path", "url") if name in schema.names]


def _detail(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return system_error(error)
    return one_line(error, 160)
