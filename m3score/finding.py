"""Find image files: folders, files, glob patterns and lists on stdin, one after the other, lazily.

Opens no file. What can't be read (a broken link, a folder without permission, a path that leads nowhere) is
found too, with its error, so that every input stays visible to the end.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from m3score.images import image_suffixes, printable, system_error, why_not_a_file

if TYPE_CHECKING:
    from m3score.questions import Question

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class FoundImage:
    """One input: a file to open or its content, or the reason why there is neither."""

    path: str
    """As given, or the folder as given joined with what lies in it: what the tables call this input."""
    relative: str
    """Relative to the folder that was given; the file name for a file that was given."""
    error: str | None = None
    content: bytes | None = field(default=None, repr=False)
    """The encoded image, for an input that is no file of its own (a member of a shard, a row of a data set)."""
    questions: tuple[Question, ...] = ()
    """What the source itself asks about this image."""

    @property
    def shown(self) -> str:
        """The path as text that any table can hold."""
        return printable(self.path)


def find_images(
    paths: PathLike | Iterable[PathLike], *, on_skip: Callable[[str], None] | None = None
) -> Iterator[FoundImage]:
    """Find the images that the paths stand for, in a fixed order: as given, folders sorted by name.

    - A folder is searched, with everything below it, for files with the suffix (in either case) of a format
      that Pillow reads. Names that start with a dot are left out. Links are followed; a folder that several
      arguments or links (or a loop of links) lead to is searched once.
    - A file is taken whatever its name, as often as it is given.
    - A pattern ("photos/**/*.jpg", quoted so that the shell leaves it alone) gives the images that match; one
      that names another suffix ("*.dat") is taken at its word.
    - "-" reads paths of files or folders from stdin, one per line.

    Args:
        paths: one or many of these.
        on_skip: called with the path of every file in a folder that is left out because it is not an image.

    Yields:
        One FoundImage per input, lazily.
    """
    search = _Search(on_skip or (lambda path: None))
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        text = os.fspath(path)
        if text == "-":
            for line in _stdin_lines():
                yield from search.path(line)
        elif glob.has_magic(text) and not os.path.lexists(text):
            yield from search.pattern(text)
        else:
            yield from search.path(text)


def exists_somewhere(paths: Iterable[PathLike]) -> bool:
    """Whether any of the paths leads, or may lead, to something: cheap, to be asked before a model loads."""
    texts = [os.fspath(path) for path in paths]
    return any(text == "-" or glob.has_magic(text) or os.path.lexists(text) for text in texts)


@dataclass
class _Search:
    on_skip: Callable[[str], None]
    searched: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of every folder that was entered: what ends loops of links."""

    def path(self, path: str) -> Iterator[FoundImage]:
        if os.path.isdir(path):
            yield from self._below(path, self._is_image)
        else:
            yield FoundImage(path, os.path.basename(path) or path, why_not_a_file(path))

    def pattern(self, pattern: str) -> Iterator[FoundImage]:
        nothing = True
        for item in self._deep_matches(pattern) if "**" in pattern else self._flat_matches(pattern):
            nothing = False
            yield item
        if nothing:
            yield FoundImage(pattern, pattern, "no image matches this pattern")

    def _flat_matches(self, pattern: str) -> Iterator[FoundImage]:
        keep = self._kept_by(pattern)
        for path in sorted(glob.iglob(pattern)):
            if os.path.isdir(path) or keep(path):
                yield from self.path(path)

    def _deep_matches(self, pattern: str) -> Iterator[FoundImage]:
        """Files that match a pattern with "**". (The glob module would run in circles on loops of links.)"""
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = os.path.join(*parts[:fixed]) if fixed else os.curdir
        for item in _Search(self.on_skip)._below(root, lambda path: True):  # what it passes isn't used up
            fits = _matches(Path(item.relative).parts, parts[fixed:])
            if fits and self._kept_by(pattern)(item.path):
                yield item

    def _kept_by(self, pattern: str) -> Callable[[str], bool]:
        """A pattern that names a suffix is taken at its word; any other gives images only."""
        suffix = os.path.splitext(pattern)[1]
        return (lambda path: True) if suffix and not glob.has_magic(suffix) else self._is_image

    def _below(self, root: str, keep: Callable[[str], bool]) -> Iterator[FoundImage]:
        """Files in a folder and below it, sorted by name at each level, each real folder once."""
        pending = [root]  # a stack of paths, not recursion: trees can be deeper than Python's stack
        while pending:
            path = pending.pop()
            relative = os.path.relpath(path, root)
            if os.path.isdir(path):
                try:
                    pending.extend(self._entries(path))
                except OSError as error:
                    reason = f"can't search this folder: {system_error(error)}"
                    yield FoundImage(path, relative, reason)
            elif keep(path):
                yield FoundImage(path, relative, why_not_a_file(path))

    def _entries(self, folder: str) -> list[str]:
        """Paths of what lies in a folder, last one first; nothing if it was searched before."""
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in self.searched:
            return []
        self.searched.add((status.st_dev, status.st_ino))
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), reverse=True)
        return [os.path.join(folder, name) for name in names]

    def _is_image(self, path: str) -> bool:
        if os.path.splitext(path)[1].lower() in image_suffixes():
            return True
        self.on_skip(path)
        return False


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path's parts match a pattern's parts, "**" standing for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        last = len(pattern) == 1
        return (last and bool(parts)) or any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _stdin_lines() -> Iterator[str]:
    """Lines of stdin as file names: bytes that are not UTF-8 survive, as do spaces."""
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    for number, line in enumerate(stream):
        name = os.fsdecode(line).rstrip("\r\n")
        if number == 0:
            name = name.removeprefix("\ufeff")  # a byte order mark, from Windows
        if name.strip():
            yield name
