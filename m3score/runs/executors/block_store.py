"""Finished blocks of a run on a cluster: parquet files beside the output, one per block of inputs.

A block's file is named by a hash of what its rows depend on: the inputs as they were, and the options of the
run. So a block that is done a second time, by whomever, is the same file; and a run that is started again
finds what is done, in whatever order it was done. Files appear by write-then-rename: whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from m3score.common.errors import OutputError
from m3score.data.item import ImageItem
from m3score.runs.resume.input_state import input_key
from m3score.runs.resume.journal import PathLike, keeps_journal
from m3score.tables.io import write_atomically


def blocks_folder(out: PathLike) -> Path:
    """Where the finished blocks of an output file lie: beside what a link points at."""
    folder, name = os.path.split(os.path.realpath(out))
    return Path(folder) / f".{name[:200]}.blocks"


class BlockStore:
    """The blocks of one run that are done.

    Args:
        out: the output file. None, "-" or a pipe: the blocks lie in a temporary folder, gone with the run.
        run: everything that rows depend on beside their input, as for the journal.
        overwrite: forget what an earlier run left.
    """

    def __init__(self, out: PathLike | None, run: Mapping[str, Any], *, overwrite: bool = False) -> None:
        from m3score._version import __version__

        self._run = json.dumps({"m3score": __version__, **run}, sort_keys=True, default=str)
        self._temporary = out is None or not keeps_journal(out)
        if out is None or self._temporary:
            self.folder = Path(tempfile.mkdtemp(prefix="m3score-blocks-"))
            return
        self.folder = blocks_folder(out)
        if overwrite:
            self.remove()
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError.of(error, self.folder) from error

    def name_of(self, items: Sequence[ImageItem]) -> str:
        """The name of the block of these inputs, as they are now."""
        digest = hashlib.blake2b(self._run.encode(), digest_size=16)
        for item in items:
            digest.update(json.dumps(input_key(item), sort_keys=True).encode())
        return digest.hexdigest()

    def write(self, name: str, results: Iterable[str]) -> None:
        """Put a block's results, JSON texts, on disk. M3ScoreError where that is impossible."""
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({"result": pa.array(list(results), pa.string())})
        write_atomically(self._path(name), lambda file: parquet.write_table(table, file))

    def read(self, name: str, count: int) -> list[dict[str, Any]] | None:
        """A block's results; None if it is not there, or not whole."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            texts = parquet.read_table(self._path(name))["result"].to_pylist()
            return [json.loads(text) for text in texts] if len(texts) == count else None
        except (OSError, pa.ArrowException, KeyError, ValueError):
            return None

    def earlier(self, name: str, count: int) -> bool:
        """Whether an earlier run did this block, for good: not with failures that may pass."""
        if not self._path(name).exists() or (results := self.read(name, count)) is None:
            return False
        return not any(result.get("transient") for result in results)

    def remove(self) -> None:
        """The run's table is in place: the blocks have done their work."""
        with suppress(OSError):
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Leave the blocks to the next run, if there can be one."""
        if self._temporary:
            self.remove()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"
