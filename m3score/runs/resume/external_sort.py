"""Sort more rows than fit into memory: sorted runs in temporary files, merged."""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

RUN_ROWS = 20_000
"""Rows that are sorted in memory at a time (about 30 MB of score rows)."""
MOST_RUNS = 256
"""Temporary files that are open at once; so many are merged into one."""

Row = dict[str, Any]
Key = Callable[[Row], Any]


def external_sort(
    rows: Iterable[Row], key: Key, *, folder: str | None = None, run_rows: int = RUN_ROWS
) -> Iterator[Row]:
    """The rows in the order of their keys; equal ones stay in the order in which they came.

    Args:
        rows: JSON-ready.
        key: as for sorted().
        folder: where temporary files may lie; they have no name, so that no crash leaves one behind.
        run_rows: rows in memory.

    Raises:
        OSError: the folder cannot be written to, or is full.
    """
    runs: list[IO[str]] = []
    try:
        chunk: list[Row] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) >= run_rows:
                runs.append(_spilled(sorted(chunk, key=key), folder))
                chunk.clear()
            if len(runs) == MOST_RUNS:
                merged = _spilled(heapq.merge(*map(_read, runs), key=key), folder)
                for run in runs:
                    run.close()
                runs = [merged]
        yield from heapq.merge(*map(_read, runs), sorted(chunk, key=key), key=key)
    finally:
        for run in runs:
            run.close()


def _spilled(rows: Iterable[Row], folder: str | None) -> IO[str]:
    run: IO[str] = tempfile.TemporaryFile("w+", encoding="ascii", dir=folder)  # noqa: SIM115
    for row in rows:
        run.write(json.dumps(row) + "\n")
    run.flush()
    run.seek(0)
    return run


def _read(run: IO[str]) -> Iterator[Row]:
    return map(json.loads, run)
