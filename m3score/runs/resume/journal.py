"""The journal of a run: every finished row on disk at once, so that nothing done is ever done again.

One file beside the output (`.scores.csv.journal`), only ever appended to. A line is a record with a checksum;
the first one says with which options the run was begun. A record that a crash or a power cut tore is skipped,
and its input is done again. The file is written through to the disk every SYNC_SECONDS: a killed process
loses nothing, a power cut at most that much.

Knows lines, not what rows mean (collector.py).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NoReturn

from m3score.common.errors import M3ScoreError, OutputError
from m3score.tables.schema import printable

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed there
    fcntl = None  # type: ignore[assignment]

VERSION = 1
SYNC_SECONDS = 5.0
PathLike = str | os.PathLike[str]
Status = tuple[int, int, int, int]
"""A file's size, time of change in ns, time of change of its entry in ns, and inode."""


@dataclass(frozen=True)
class Record:
    """What a run found out about one input."""

    key: Mapping[str, Any]
    """`path`, and what the input was then; see input_state.py. `transient` is true of an error that may be
    gone when a run goes on."""
    row: Mapping[str, Any]
    traces: Sequence[Mapping[str, Any]] = ()

    @property
    def transient(self) -> bool:
        """Whether the row's error may be gone when a run goes on: such inputs are done again."""
        return bool(self.key.get("transient"))


def journal_path(out: PathLike) -> Path:
    """Where the journal of an output file lies: beside what a link points at."""
    folder, name = os.path.split(os.path.realpath(out))
    return Path(folder) / f".{name[:200]}.journal"


def keeps_journal(out: PathLike | None) -> bool:
    """Whether an output is a file: stdout, pipes and devices have no place beside them."""
    if out is None or str(out) == "-":
        return False
    return os.path.isfile(out) or not os.path.exists(out)


def written_by_earlier_run(out: PathLike | None, path: PathLike | None) -> bool:
    """Whether the file at `path` is, unchanged, one that an unfinished run into `out` wrote."""
    if out is None or path is None or not keeps_journal(out) or not os.path.isfile(path):
        return False
    try:
        with open(journal_path(out), "rb") as file:
            wrote = [_head(line)["wrote"] for line in file if b'"wrote"' in line and _whole(line)]
    except OSError:
        return False
    return [os.path.realpath(path), *status_of(os.stat(path))[:2], os.stat(path).st_ino] in wrote


def status_of(result: os.stat_result) -> Status:
    """A file's state as os.stat or os.fstat tell it."""
    return result.st_size, result.st_mtime_ns, result.st_ctime_ns, result.st_ino


class Journal:
    """An open journal, locked: see `open_journal`. Closing it leaves it there, `remove` does not."""

    def __init__(self, path: Path, *, anonymous: bool = False) -> None:
        self.path = path
        self.anonymous = anonymous
        self.rows = 0
        self.broken = False
        """Whether a record could not be written: the disk is full, or gone."""
        self._file = _open_locked(path)
        self._reader: IO[bytes] = open(path, "rb")  # noqa: SIM115
        self._synced = time.monotonic()
        self._torn = False
        self._hashes, self._offsets = array("Q"), array("q")
        self._asked = bytearray()
        """For each of these whether it was asked for."""

    # ---- beginning

    def begin(self, run: Mapping[str, Any], *, anew: bool) -> None:
        """Take up what an earlier run with the same options left; see open_journal."""
        with _translate_os_errors(self.path):
            if anew:
                os.ftruncate(self._file, 0)
            size = os.fstat(self._file).st_size
        header = self._reader.readline() if size else b""
        if header and header.endswith(b"\n"):
            self._check(header, run)
            self._load()
            return
        os.ftruncate(self._file, 0)  # empty, or a first line that a crash tore: nothing was done yet
        self._append({"journal": VERSION, "run": dict(run)})
        self.sync()
        _sync_folder(self.path.parent)

    def _check(self, header: bytes, run: Mapping[str, Any]) -> None:
        place = printable(str(self.path))
        head = _head(header) if _whole(header) else {}
        if head.get("journal") != VERSION:
            raise M3ScoreError(
                f"{place}: not a journal that this version of m3score can go on with; give --overwrite to "
                "start anew."
            )
        before, now = head["run"], json.loads(json.dumps(dict(run)))
        for name in dict.fromkeys([*now, *before]):
            if before.get(name) != now.get(name):
                raise M3ScoreError(
                    f"{place}: an unfinished run lies there, and {_difference(name, before, now)}: give the "
                    "same options to go on with it, or --overwrite to start anew."
                )

    def _load(self) -> None:
        import numpy as np

        hashes, offsets, offset = array("Q"), array("q"), self._reader.tell()
        line = b"\n"
        for line in self._reader:
            if _whole(line) and "path" in (head := _head(line)):
                hashes.append(_hash(head["path"]))
                offsets.append(offset)
            offset += len(line)
        self._torn = not line.endswith(b"\n")
        self.rows = len(hashes)
        order = np.argsort(np.array(hashes, dtype=np.uint64), kind="stable")
        self._hashes = array("Q", np.array(hashes, dtype=np.uint64)[order].tobytes())
        self._offsets = array("q", np.array(offsets, dtype=np.int64)[order].tobytes())
        self._asked = bytearray(len(order))

    # ---- rows

    def earlier(self, path: str) -> Iterator[tuple[int, Record]]:
        """Places and records of the path from before this run began, the newest first."""
        wanted = _hash(path)
        first = last = bisect_left(self._hashes, wanted)
        while last < len(self._hashes) and self._hashes[last] == wanted:
            last += 1
        self._asked[first:last] = b"\1" * (last - first)
        for i in reversed(range(first, last)):
            record = self.read(self._offsets[i])
            if record.key["path"] == path:
                yield self._offsets[i], record

    def unasked(self) -> int:
        """How many paths have records from before this run began that `earlier` was never asked about."""
        hashes = (number for number, asked in zip(self._hashes, self._asked, strict=True) if not asked)
        return sum(1 for _ in groupby(hashes))

    def append(self, record: Record) -> int:
        """Put a record on disk; its place. M3ScoreError where that is impossible: the rest stays good."""
        place = self._append(record.key, record.row, record.traces)
        self.rows += 1
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()
        return place

    def read(self, place: int) -> Record:
        """The record at a place that `append` or `earlier` gave."""
        self._reader.seek(place)
        _, key, row, traces = self._reader.readline().split(b"\t")
        return Record(json.loads(key), json.loads(row), json.loads(traces))

    def row(self, place: int) -> dict[str, Any]:
        """The row alone of the record at a place."""
        self._reader.seek(place)
        row: dict[str, Any] = json.loads(self._reader.readline().split(b"\t", 3)[2])
        return row

    def wrote(self, target: str, result: os.stat_result) -> None:
        """Remember that the table at `target` is this run's, so that the next one may replace it."""
        self._append({"wrote": [target, result.st_size, result.st_mtime_ns, result.st_ino]})
        self.sync()

    def _append(self, key: Mapping[str, Any], row: Any = None, traces: Any = ()) -> int:
        parts = (json.dumps(part, default=_plain).encode() for part in (key, row, list(traces)))
        body = b"\t".join(parts) + b"\n"
        line = b"%08x\t%b" % (zlib.crc32(body), body)
        with _translate_os_errors(self.path):
            place = os.fstat(self._file).st_size
            if self._torn:  # never glue a record to a torn one
                line, place = b"\n" + line, place + 1
            self.broken = self._torn = True
            rest = memoryview(line)
            while rest:  # a full disk takes a part first
                rest = rest[os.write(self._file, rest) :]
            self.broken = self._torn = False
        return place

    # ---- the end

    def sync(self) -> None:
        """Through to the disk. M3ScoreError if the file is not where it was any more: its rows are saved."""
        self._synced = time.monotonic()
        if self.anonymous:
            return
        with _translate_os_errors(self.path):
            os.fsync(self._file)
        try:
            there = os.stat(self.path).st_ino == os.fstat(self._file).st_ino
        except OSError:
            there = False
        if not there:
            self._rescue()

    def _rescue(self) -> NoReturn:
        self.broken = True
        told = f"{printable(str(self.path.parent))}: the output folder, or the journal in it, vanished"
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            place = folder / self.path.name
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                with open(place, "xb") as copy, open(self._reader.fileno(), "rb", closefd=False) as source:
                    source.seek(0)
                    shutil.copyfileobj(source, copy)
                    os.fsync(copy.fileno())
                moved = "" if folder == self.path.parent else f"move it to {printable(str(self.path))} and "
                raise M3ScoreError(
                    f"{told}; the {self.rows:,} rows so far are safe in {printable(str(place))}: {moved}give "
                    "the same command again to go on."
                )
        raise M3ScoreError(f"{told}, and there was no place to put the {self.rows:,} rows so far.")

    def remove(self) -> None:
        """The run is complete and its tables are in place: the journal has done its work."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the file and the lock."""
        if not self._reader.closed:
            self._reader.close()
            os.close(self._file)


def open_journal(out: PathLike | None, run: Mapping[str, Any], *, overwrite: bool = False) -> Journal:
    """The journal for an output, taken up where an earlier run with the same options left it.

    Args:
        out: the output file. None, "-" or a pipe: the journal is a temporary file, gone with the process.
        run: everything that rows depend on beside their input, by the option that sets it.
        overwrite: start anew, whatever lies there.

    Raises:
        M3ScoreError: another run holds the lock, the journal cannot be written, or it belongs to a run with
            other options (the first that differs is named).
    """
    from m3score._version import __version__

    run = {"m3score": __version__, **run}
    if out is None or not keeps_journal(out):
        handle, name = tempfile.mkstemp(prefix="m3score-", suffix=".journal")
        os.close(handle)
        journal = Journal(Path(name), anonymous=True)
        with suppress(OSError):
            os.unlink(name)  # (where an open file can't be removed, `remove` does it in the end)
    else:
        journal = Journal(journal_path(out))
    try:
        journal.begin(run, anew=overwrite)
    except BaseException:
        journal.close()
        raise
    return journal


# ---- small parts --------------------------------------------------------------------------------------


def _open_locked(path: Path) -> int:
    while True:
        with _translate_os_errors(path):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise M3ScoreError(
                f"{printable(str(path))}: another run is writing to this output now; wait for it, or give "
                "another --out."
            ) from None
        except OSError:
            pass  # a file system without locks
        with suppress(OSError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)  # the run that held it finished, and removed it, in this moment


class _translate_os_errors:
    """Turns an OSError into the sentence that the user reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write ({error.strerror or error}); what is done is kept: give the same command "
                "again, when that is mended, to go on.",
                subject=printable(str(self.path)),
            ) from error


def _difference(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = before.get(name), now.get(name)
    if any(isinstance(value, str) and len(value) >= 32 for value in (old, new)):
        return f"{name} is not what it was"
    return f"{name} was {json.dumps(old)} then and is {json.dumps(new)} now"


def _whole(line: bytes) -> bool:
    """Whether a line is a record, complete and unharmed, down to the tab after its checksum."""
    return line.endswith(b"\n") and line[:9] == b"%08x\t" % zlib.crc32(line[9:])


def _head(line: bytes) -> dict[str, Any]:
    head: dict[str, Any] = json.loads(line.split(b"\t", 2)[1])
    return head


def _hash(path: str) -> int:
    return int.from_bytes(blake2b(path.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def _plain(value: Any) -> Any:
    return value.item()  # a number of numpy


def _sync_folder(folder: Path) -> None:
    """A file's name is safe only when its folder is."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
