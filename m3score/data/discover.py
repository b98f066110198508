"""Find images: whatever the paths on a command line stand for, one input after the other, lazily.

Chooses among the sources (folders.py, webdataset.py, parquet.py, hf_datasets.py, remote.py) and keeps names
apart.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import IO, TYPE_CHECKING, TypeAlias

from m3score.common.errors import M3ScoreError
from m3score.common.files import why_not_a_file
from m3score.common.limits import MAX_EMBEDDED_BYTES
from m3score.data.item import Columns, ImageItem, PathLike, ToFetch
from m3score.data.naming import make_names_unique
from m3score.data.sources.folders import FolderSearch, found_file
from m3score.data.sources.parquet import is_table, parquet_images, parquet_rows
from m3score.data.sources.remote import RemoteFile, fetched, is_url, local_path, placed, remote_files
from m3score.data.sources.webdataset import is_shard, shard_images
from m3score.images.formats import may_be_image

if TYPE_CHECKING:
    from m3score.data.sources.hf_datasets import DataSet

Source: TypeAlias = "PathLike | DataSet"

_Found: TypeAlias = Iterator[ImageItem | ToFetch]


def find_images(
    paths: Source | Iterable[Source],
    *,
    columns: Columns | None = None,
    on_skip: Callable[[str], None] | None = None,
    max_bytes: int = MAX_EMBEDDED_BYTES,
) -> Iterator[ImageItem]:
    """Find the images that the paths stand for, in a fixed order: as given, folders sorted by name.

    - A folder is searched, with everything below it, for pictures: files with the suffix (in either case) of
      one, and of those whose suffix says nothing the ones that begin like a picture. Those that can't be
      opened here are found too, so that they get a row. Names that start with a dot are left out. Links are
      followed; a folder that several arguments or links (or a loop of links) lead to is searched once.
    - A file is taken whatever its name, as often as it is given.
    - A tar file ("shard.tar", also .tar.gz, .tgz, .tar.bz2, .tar.xz, .tar.zst) gives the images in it, and a
      parquet file one image per row.
    - "{0000..0009}" and "{a,b}" stand for several paths, unless there is a file of that name.
    - A pattern ("photos/**/*.jpg", quoted so that the shell leaves it alone) gives the images that match; one
      that names another suffix ("*.dat", "*.tar") is taken at its word.
    - A URL gives what is there: a file, a folder, or what matches a pattern with "*"; see remote.py.
    - "-" reads all these but patterns from stdin, one per line.
    - A DataSet gives one image per row.

    Every input has a path of its own: see naming.make_names_unique. What can't be read is an input with an
    error; a damaged shard or table costs one such input, and what follows in it.

    Args:
        paths: one or many of these.
        columns: what to read of parquet files.
        on_skip: called with the path of every file in a folder or shard that is left out because it is not an
            image.
        max_bytes: an image in a shard, a row or a URL that has more is not read, but an error. (Of a DataSet,
            its own limit counts.)

    Yields:
        One ImageItem per input, lazily.
    """
    search = _Search(columns or Columns(), on_skip or (lambda path: None), max_bytes=max_bytes)
    return make_names_unique(fetched(_all(paths, search)))


def count_images(paths: Source | Iterable[Source], limit: int | None = None) -> int | None:
    """How many inputs find_images will find; None where only reading everything would tell."""
    total = 0
    for path in _several(paths):
        number = _count(path)
        if number is None:
            return None
        total += number
        if limit is not None and total >= limit:
            return limit
    return total


def exists_somewhere(paths: Source | Iterable[Source]) -> bool:
    """Whether any of the paths leads, or may lead, to something: to be asked before a model loads."""
    return any(
        not isinstance(path, str | os.PathLike) or _exists(os.fspath(path)) for path in _several(paths)
    )


def _exists(text: str) -> bool:
    if text == "-" or is_url(text) or os.path.lexists(text):
        return True
    if _BRACES.search(text):
        return any(map(_exists, _expanded(text)))
    if not glob.has_magic(text):
        return False
    return not next(FolderSearch(lambda path: None, ordered=False).pattern(text)).error


@dataclass
class _Search:
    """What a path stands for."""

    columns: Columns
    on_skip: Callable[[str], None]
    ordered: bool = True
    max_bytes: int = MAX_EMBEDDED_BYTES

    def __post_init__(self) -> None:
        self.folders = FolderSearch(self.on_skip, self.ordered)
        self.ask = self.columns.question != ""

    def given(self, path: Source) -> _Found:
        """An argument."""
        if not isinstance(path, str | os.PathLike):
            yield from path.images()
            return
        text = os.fspath(path)
        if text == "-":
            for line in _stdin_lines():
                yield from self.path(line)
        elif _BRACES.search(text) and not os.path.lexists(text):
            for one in _expanded(text):
                yield from self.given(one)
        elif glob.has_magic(text) and not os.path.lexists(text) and not is_url(text):
            for found in self.folders.pattern(text):
                yield from self._within(found)
        else:
            yield from self.path(text)

    def path(self, path: str) -> _Found:
        """A path or URL that is no pattern."""
        path = local_path(path) or path
        if is_url(path) and not os.path.lexists(path):
            yield from self._url(path)
        elif is_shard(path) or is_table(path):
            yield from self._within(found_file(path)) if not os.path.isdir(path) else self.folders.path(path)
        else:
            yield from self.folders.path(path)

    def _within(self, file: ImageItem) -> _Found:
        """A local file, or what is in it."""
        if file.error or not (is_shard(file.path) or is_table(file.path)):
            yield file
        elif is_shard(file.path):
            yield from self._in_shard(file.path, partial(_opened, file.path))
        else:
            yield from self._in_table(file.path, partial(_opened, file.path), os.path.dirname(file.path))

    def _in_shard(self, name: str, opened: Callable[[], IO[bytes]]) -> _Found:
        return shard_images(name, opened, self.on_skip, ask=self.ask, max_bytes=self.max_bytes)

    def _in_table(self, name: str, opened: Callable[[], IO[bytes]], folder: str = "") -> _Found:
        for row in parquet_images(name, opened, self.columns, max_bytes=self.max_bytes):
            yield placed(*row, folder, max_bytes=self.max_bytes)

    def _url(self, url: str) -> _Found:
        try:
            for file in remote_files(url, self._keeps, self.max_bytes):
                yield from self._within_remote(file)
        except M3ScoreError as error:
            yield ImageItem(url, url, error.reason)

    def _within_remote(self, file: RemoteFile) -> _Found:
        if is_shard(file.path):
            yield from self._in_shard(file.url, file.open)
        elif is_table(file.path):
            yield from self._in_table(file.url, file.open)
        else:
            yield file.to_fetch()

    def _keeps(self, path: str) -> bool:
        if may_be_image(path, None):
            return True
        self.on_skip(path)
        return False


def _several(paths: Source | Iterable[Source]) -> Iterable[Source]:
    return paths if isinstance(paths, Iterable) and not isinstance(paths, str) else [paths]


def _all(paths: Source | Iterable[Source], search: _Search) -> _Found:
    return chain.from_iterable(search.given(path) for path in _several(paths))


def _count(path: Source) -> int | None:
    if not isinstance(path, str | os.PathLike):
        return path.count()
    text = os.fspath(path)
    if text == "-" or is_url(text) or _BRACES.search(text) or is_shard(text):
        return None
    if is_table(text) and not glob.has_magic(text):
        return 1 if why_not_a_file(text) else parquet_rows(text)
    if glob.has_magic(text) and (is_table(text) or os.path.splitext(text)[1] in ("", ".*")):
        return None
    return sum(1 for _ in _all([text], _Search(Columns(), lambda path: None, ordered=False)))


def _opened(path: str) -> IO[bytes]:
    return open(path, "rb")


# ---- several in one -----------------------------------------------------------------------------------

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def _expanded(text: str) -> Iterator[str]:
    """The paths that a path with braces stands for, as in a shell: "a{08..10}" is a08, a09, a10."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    for word in _choices(match):
        yield from _expanded(text[: match.start()] + word + text[match.end() :])


def _choices(match: re.Match[str]) -> Iterable[str]:
    first, last, words = match.groups()
    if words is not None:
        return words.split(",")
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))


def _stdin_lines() -> Iterator[str]:
    """Lines of stdin as file names: bytes that are not UTF-8 survive, as do spaces."""
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    for number, line in enumerate(stream):
        name = os.fsdecode(line).rstrip("\r\n")
        if number == 0:
            name = name.removeprefix("\ufeff")  # a byte order mark, from Windows
        if name.strip():
            yield name
