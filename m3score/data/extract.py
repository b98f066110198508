"""Where the pictures of a table lie: files as they are, and what lies in shards, tables and data sets.

A table calls a picture by its source joined with what lies in it: photos/a.jpg, shard.tar/0001.jpg,
train.parquet/12, user/name/train/12 (see item.py). Each source is read once, from its beginning to the last
picture that is wanted of it, and copies of these lie in a temporary folder.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError
from m3score.common.files import printable
from m3score.data.item import Columns, ImageItem, ToFetch
from m3score.data.naming import make_names_unique
from m3score.data.sources.parquet import is_table, parquet_images
from m3score.data.sources.remote import fetched, is_url, placed
from m3score.data.sources.webdataset import is_shard, shard_images

if TYPE_CHECKING:
    from m3score.data.sources.hf_datasets import DataSet

KEPT = 2 * 2**30
"""Bytes of all copies together."""
_NUMBERED = re.compile(r"(.+)#(\d+)", re.DOTALL)
"""What naming.make_names_unique makes of a name that is there already."""
_ROW = re.compile(r"(.+)/\d+", re.DOTALL)
_BYTES = re.compile(r"\\x([89a-f][0-9a-f])")
"""What columns.printable makes of bytes that are no UTF-8."""

Find = Callable[[str], str]
"""The file of a picture, by its name in a table; M3ScoreError, without the name, where there is none."""


def folder_of_table(table: Any) -> Path | None:
    """The folder of a table that is a file, which its paths may be relative to; None for other tables."""
    is_file = (isinstance(table, str) or hasattr(table, "__fspath__")) and str(table) != "-"
    return Path(table).parent if is_file else None


def finder(folder: str | os.PathLike[str] | None, root: str | os.PathLike[str] | None = None) -> Find:
    """Where a table's path lies: the one rule for all commands that look for the pictures of a table.

    A relative path is looked for in `folder`, the table's own, then in the working folder, and last in
    `root`, which the caller names. A path that lies nowhere comes back as it is.
    """
    places = [os.fspath(place) for place in (folder, "", root) if place is not None]

    def find(path: str) -> str:
        for name in _spellings(path):
            for place in places:
                if os.path.lexists(found := os.path.join(place, name)):
                    return found
        return path

    return find


def _spellings(path: str) -> Iterator[str]:
    """The path, and what may have been called so when the table was written."""
    numbered = _NUMBERED.fullmatch(path)
    for name in (path, numbered[1]) if numbered else (path,):
        yield name
        if _BYTES.search(name):
            raw = _BYTES.sub(lambda match: os.fsdecode(bytes.fromhex(match[1])), name)
            yield raw


@contextmanager
def opened_images(
    paths: Iterable[str],
    folder: str | os.PathLike[str] | None,
    *,
    data_sets: Sequence[DataSet] = (),
    columns: Columns | None = None,
    fetch: bool = False,
    root: str | os.PathLike[str] | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Iterator[Find]:
    """Copies, for as long as the context lasts, of those pictures that are no files of their own.

    Args:
        paths: the pictures that will be asked for, by their names in the table.
        folder, root: which paths may be relative to; see `finder`.
        data_sets, columns, fetch: as in `extract_images`.
        on_picture: called once per path.

    Yields:
        The finder of these pictures, and of files.
    """
    here = finder(folder, root)
    wanted = dict.fromkeys(paths)
    with tempfile.TemporaryDirectory(prefix="m3score-pictures-") as temporary:
        copies = _Copies(Path(temporary))
        for path, found in extract_images(wanted, here, data_sets=data_sets, columns=columns, fetch=fetch):
            copies.keep(path, found)
            del wanted[path]
            on_picture()
        for _ in wanted:
            on_picture()
        yield lambda path: copies.file(path) or here(path)


def extract_images(
    paths: Iterable[str],
    here: Find,
    *,
    data_sets: Sequence[DataSet] = (),
    columns: Columns | None = None,
    fetch: bool = False,
) -> Iterator[tuple[str, ImageItem]]:
    """Those pictures that are no files of their own, each once: the content, the file named, or why neither.

    Args:
        paths: pictures by their names in the table.
        here: which of them are files.
        data_sets: sources of the table; folders that hold data sets are found without.
        columns: where parquet files hold their images; see rows.chosen_columns.
        fetch: whether pictures are fetched from URLs.
    """
    for source, wanted in _by_source(paths, here, data_sets).items():
        yield from _Reading(source, wanted, here, columns or Columns(), fetch).wanted_images(data_sets)


_Source = tuple[str, Any, Any]
"""What it is ("shard", "table", "data set", "folder", "url"), its name, and a data set's split."""


def _by_source(paths: Iterable[str], here: Find, data_sets: Sequence[DataSet]) -> dict[_Source, list[str]]:
    sources: dict[_Source, list[str]] = {}
    for path in dict.fromkeys(paths):
        source = None if os.path.lexists(here(path)) else _source(path, here, data_sets)
        if source is not None:
            sources.setdefault(source, []).append(path)
    return sources


def _source(path: str, here: Find, data_sets: Sequence[DataSet]) -> _Source | None:
    """What a picture that is no file lies in; None if nothing tells."""
    for number, rows in enumerate(data_sets):
        if rows.holds(path):
            return "data set", number, None
    if is_url(path):
        inner = _container(path)
        return "url", inner or "", None
    if inner := _container(path):
        return "shard" if is_shard(inner) else "table", inner, None
    if match := _ROW.fullmatch(path):
        parent, split = os.path.split(match[1])
        for name, part in ((match[1], None), (parent, split)):
            if name and _holds_rows(here(name)):
                return "folder", name, part
    return None


def _opened(place: str) -> IO[bytes]:
    return open(place, "rb")


def _container(path: str) -> str | None:
    """The first part of a path that is called like a shard or a table."""
    places = [match.start() for match in re.finditer("/", path)]
    names = (path[:place] for place in places)
    return next((name for name in names if is_shard(name) or is_table(name)), None)


def _holds_rows(folder: str) -> bool:
    from m3score.data.sources.hf_datasets import is_saved

    if not os.path.isdir(folder):
        return False
    return is_saved(folder) or any(is_table(file.name) for file in Path(folder).glob("**/*"))


class _Reading:
    """The wanted pictures of one source."""

    def __init__(
        self, source: _Source, wanted: Sequence[str], here: Find, columns: Columns, fetch: bool
    ) -> None:
        self.kind, self.name, self.split = source
        self.wanted, self.here, self.columns, self.fetch = wanted, here, columns, fetch

    def wanted_images(self, data_sets: Sequence[DataSet]) -> Iterator[tuple[str, ImageItem]]:
        """Each of them by its path, in the order of the source; at the end those that could not be had."""
        left = dict.fromkeys(self.wanted)
        turns = {m[1]: 0 for m in map(_NUMBERED.fullmatch, left) if m}
        lost = "not in there any more"
        try:
            for found in self._images(data_sets):
                name = found.shown
                if name in left:
                    del left[name]
                    yield name, found
                elif found.error and name in (self.name, *left):
                    lost = found.error
                if (base := _base(found)) in turns:
                    turns[base] += 1
                if not left:
                    return
            if any(turns.values()):
                yield from self._given_several_times(left, turns, data_sets)
        except M3ScoreError as error:
            lost = str(error).rstrip(".")
        for path in left:
            yield path, ImageItem(path, path, lost)

    def _given_several_times(
        self, left: dict[str, Any], turns: dict[str, int], data_sets: Sequence[DataSet]
    ) -> Iterator[tuple[str, ImageItem]]:
        """Names numbered on from a run that read the source more than once; takes them out of `left`."""
        same: dict[tuple[str, int], list[str]] = {}
        for path in left:
            match = _NUMBERED.fullmatch(path)
            if match and turns[match[1]]:
                same.setdefault((match[1], (int(match[2]) - 1) % turns[match[1]]), []).append(path)
        turn = dict.fromkeys(turns, 0)
        for found in self._images(data_sets) if same else ():
            if (base := _base(found)) not in turn:
                continue
            for path in same.get((base, turn[base]), ()):
                del left[path]
                yield path, found
            turn[base] += 1

    def _images(self, data_sets: Sequence[DataSet]) -> Iterator[ImageItem]:
        """What there is of them, called as in the table, and maybe others. M3ScoreError if there is none."""
        yield from make_names_unique(fetched(self._found(data_sets)), quiet=True)

    def _found(self, data_sets: Sequence[DataSet]) -> Iterator[ImageItem | ToFetch]:
        if self.kind == "data set":
            return data_sets[self.name].some(self.wanted)
        if self.kind == "url":
            return self._of_url()
        place = self.here(self.name)
        if not os.path.exists(place):
            raise M3ScoreError(f"{printable(os.path.basename(self.name))}, which it lies in, is gone")
        if self.kind == "folder":
            return self._of_folder(place)
        inner = {path[len(self.name) + 1 :] for path in self.wanted}
        inner |= {match[1] for match in map(_NUMBERED.fullmatch, inner) if match}
        opened = partial(_opened, place)
        if self.kind == "shard":
            return shard_images(self.name, opened, ask=False, wanted=inner)
        rows = {int(name) for name in inner if name.isdecimal()}
        found = parquet_images(self.name, opened, self.columns, wanted=rows)
        return self._allowed(placed(*row, os.path.dirname(place)) for row in found)

    def _of_folder(self, place: str) -> Iterator[ImageItem | ToFetch]:
        from m3score.data.sources.hf_datasets import DataSet

        rows = DataSet(place, self.split, self.columns)
        return self._allowed(rows.some(self.wanted, called=self.name))

    def _of_url(self) -> Iterator[ImageItem | ToFetch]:
        from m3score.data.discover import find_images

        if not self.fetch:
            raise M3ScoreError("at a URL, which only --fetch asks")
        if self.name:
            return find_images(self.name, columns=self.columns)
        numbered = {path: _NUMBERED.fullmatch(path) for path in self.wanted}
        return find_images(dict.fromkeys(m[1] if m else path for path, m in numbered.items()))

    def _allowed(self, found: Iterable[ImageItem | ToFetch]) -> Iterator[ImageItem | ToFetch]:
        """A table on this machine may name URLs too."""
        for item in found:
            if isinstance(item, ToFetch) and not self.fetch:
                yield ImageItem(item.found.path, item.found.relative, "at a URL, which only --fetch asks")
            else:
                yield item


def _base(found: ImageItem) -> str:
    """The name without the number that naming.make_names_unique gave it."""
    return found.shown if found.content is None else printable(found.name)


class _Copies:
    """What was copied out, and why what was not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._kept, self._written = 0, 0

    def file(self, path: str) -> str | None:
        """The copy of a picture, or the file that a row named; None if it is a file of its own."""
        if path in self._reasons:
            raise M3ScoreError(self._reasons[path])
        return self._files.get(path)

    def keep(self, path: str, found: ImageItem) -> None:
        """Remember one that was taken out, as far as there is room."""
        if found.error:
            self._reasons[path] = found.error
        elif found.content is None:
            self._files[path] = found.name
        elif self._kept + len(found.content) > KEPT:
            self._reasons[path] = (
                f"left out: more than {KEPT / 2**30:.0f} GB of pictures out of shards and tables"
            )
        else:
            self._kept += len(found.content)
            self._written += 1
            file = self._folder / f"{self._written}"
            file.write_bytes(found.content)
            self._files[path] = str(file)
