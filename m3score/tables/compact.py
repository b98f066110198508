"""Score tables of millions of rows in memory: about 200 bytes a row instead of two thousand.

formats.csv_rows reads every value by itself, with errors that name the line. Here whole columns are read at
once, eight times as fast; the slow reader is called where that fails, to say which line is to blame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m3score.tables.formats import Csv, Parquet, format_for, unguard_cell
from m3score.tables.io import PathLike, read_table
from m3score.tables.schema import TableKind

if TYPE_CHECKING:
    import pandas as pd

_ROWS_AT_ONCE = 50_000
_DTYPES = {"int": "Int64", "float": "float64", "bool": "boolean"}
_TEXT = "string[pyarrow]"


def read_compact(path: PathLike, kind: TableKind, *, format: str | None = None) -> pd.DataFrame:
    """Read a table ("-" is stdin), text as Arrow strings and no columns added; else as tables.read_table."""
    chosen = format_for(path, format)
    if str(path) != "-" and isinstance(chosen, Csv | Parquet):
        try:
            frame = _csv(path, kind) if isinstance(chosen, Csv) else _parquet(path, kind)
        except (ValueError, OSError, LookupError, TypeError):
            frame = None  # the slow reader says what is wrong, or can read it
        if frame is not None and set(kind.required) <= set(frame.columns):
            return frame
    return _compact(read_table(path, kind, format=format), kind)


def _csv(path: PathLike, kind: TableKind) -> pd.DataFrame:
    import pandas as pd

    header = list(pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns)
    dtypes = {name: _DTYPES.get(kind.kind(name), _TEXT) for name in header}
    # Only an empty cell means that there is nothing: an image may be called "nan" or "NULL".
    empty: dict[str, Any] = {name: [""] for name in header}
    pieces = pd.read_csv(
        path,
        dtype=dtypes,
        keep_default_na=False,
        na_values=empty,
        chunksize=_ROWS_AT_ONCE,
        encoding="utf-8-sig",
        index_col=False,
        on_bad_lines="error",
    )
    frame = pd.concat([_unguarded(piece) for piece in pieces], ignore_index=True)
    return frame.rename(columns={name: unguard_cell(name) for name in header})


def _unguarded(piece: pd.DataFrame) -> pd.DataFrame:
    for name in piece.columns:
        if piece[name].dtype == _TEXT:
            guarded = piece[name].str.startswith("'").fillna(False).to_numpy(bool)
            if guarded.any():
                piece.loc[guarded, name] = [unguard_cell(text) for text in piece[name][guarded]]
    return piece


def _parquet(path: PathLike, kind: TableKind) -> pd.DataFrame:
    import pandas as pd

    return _compact(pd.read_parquet(path, engine="pyarrow"), kind)


def _compact(frame: pd.DataFrame, kind: TableKind) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for name in frame.columns:
        wanted = _TEXT if kind.kind(str(name)) in ("text", "text?") else _DTYPES.get(kind.kind(str(name)))
        columns[str(name)] = frame[name] if wanted is None else frame[name].astype(wanted)  # type: ignore[call-overload]
    return pd.DataFrame(columns)
