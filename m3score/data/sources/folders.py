"""Find image files in folders and by patterns, one after the other.

Opens only files whose names do not say what they are, for their first bytes, and keeps no more in memory than
the names in one folder. What can't be read (a broken link, a folder without permission, a path that leads
nowhere) is found too, with its error.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from m3score.common.errors import M3ScoreError
from m3score.common.files import open_regular, system_error, why_not_a_file
from m3score.data.item import ImageItem
from m3score.images.formats import may_be_image
from m3score.images.kinds import BEGINNING


def found_file(path: str, relative: str | None = None) -> ImageItem:
    """The file at a path, or why there is none to read."""
    return ImageItem(path, relative or os.path.basename(path) or path, why_not_a_file(path))


@dataclass
class FolderSearch:
    """Searches that share a memory of the folders they were in."""

    on_skip: Callable[[str], None]
    """Called with the path of every file that is left out because it is no image."""
    ordered: bool = True
    """Whether files come sorted by name; if not, not even the names in one folder are kept."""
    searched: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of every folder that was entered: what ends loops of links."""

    def path(self, path: str) -> Iterator[ImageItem]:
        """The file at a path, or the images in the folder there and below it."""
        if os.path.isdir(path):
            yield from self._below(path, self._is_image)
        else:
            yield found_file(path)

    def pattern(self, pattern: str) -> Iterator[ImageItem]:
        """The images that match; one ImageItem with an error if there are none."""
        nothing = True
        for item in self._deep_matches(pattern) if "**" in pattern else self._flat_matches(pattern):
            nothing = False
            yield item
        if nothing:
            yield ImageItem(pattern, pattern, "no image matches this pattern")

    def _flat_matches(self, pattern: str) -> Iterator[ImageItem]:
        keep = self._kept_by(pattern)
        parts = Path(pattern).parts
        fixed = _before_magic(parts)
        root = os.path.join(*parts[:fixed]) if fixed else ""
        for path in self._matching(root, parts[fixed:]):
            if os.path.isdir(path) or keep(path):
                yield from self.path(path)

    def _matching(self, root: str, parts: tuple[str, ...]) -> Iterator[str]:
        """Paths below root whose parts match one by one. (The glob module would list them all first.)"""
        if not parts:
            if os.path.lexists(root):
                yield root
        elif not glob.has_magic(parts[0]):
            yield from self._matching(os.path.join(root, parts[0]), parts[1:])
        elif os.path.isdir(root or os.curdir):
            hidden = parts[0].startswith(".")
            try:
                names = self._names(root or os.curdir, lambda name: fnmatchcase(name, parts[0]), hidden)
                for name, _ in names:
                    yield from self._matching(os.path.join(root, name), parts[1:])
            except OSError:
                return  # as the glob module: a folder that can't be listed has no matches

    def _deep_matches(self, pattern: str) -> Iterator[ImageItem]:
        """Files that match a pattern with "**". (The glob module would run in circles on loops of links.)"""
        parts = Path(pattern).parts
        fixed = _before_magic(parts)
        root = os.path.join(*parts[:fixed]) if fixed else os.curdir
        keep = self._kept_by(pattern)
        search = FolderSearch(self.on_skip, self.ordered)  # of its own: what it passes isn't used up
        for item in search._below(root, lambda path: True):
            if _matches(Path(item.relative).parts, parts[fixed:]) and keep(item.path):
                yield item

    def _kept_by(self, pattern: str) -> Callable[[str], bool]:
        """A pattern that names a suffix is taken at its word; any other gives images only."""
        suffix = os.path.splitext(pattern)[1]
        return (lambda path: True) if suffix and not glob.has_magic(suffix) else self._is_image

    def _below(self, root: str, keep: Callable[[str], bool]) -> Iterator[ImageItem]:
        """Files in a folder and below it, sorted by name at each level, each real folder once."""
        if not os.path.isdir(root):
            if keep(root):
                yield found_file(root, os.curdir)
            return
        # A stack of folders that are being read, not recursion: trees can be deeper than Python's stack.
        pending = [(root, "", self._entries(root))]
        while pending:
            folder, relative, entries = pending[-1]
            try:
                name, is_folder = next(entries)
            except StopIteration:
                pending.pop()
                continue
            except OSError as error:
                pending.pop()
                reason = f"can't search this folder: {system_error(error)}"
                yield ImageItem(folder, relative or os.curdir, reason)
                continue
            path, below = os.path.join(folder, name), os.path.join(relative, name)
            if is_folder:
                pending.append((path, below, self._entries(path)))
            elif keep(path):
                yield found_file(path, below)

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """What lies in a folder, hidden things left out; nothing if it was searched before."""
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) not in self.searched:
            self.searched.add((status.st_dev, status.st_ino))
            yield from self._names(folder)

    def _names(
        self, folder: str, keep: Callable[[str], bool] = lambda name: True, hidden: bool = False
    ) -> Iterator[tuple[str, bool]]:
        """(name, whether it is a folder or leads to one) of what is kept, sorted. OSError as of scandir."""
        with os.scandir(folder) as entries:
            kept = (one for one in entries if (hidden or not one.name.startswith(".")) and keep(one.name))
            if not self.ordered:
                yield from ((one.name, _is_folder(one)) for one in kept)
                return
            # Names alone, and folders on the side: tuples or entries of a million files would weigh 200 MB.
            folders: set[str] = set()
            names = []
            for one in kept:
                names.append(one.name)
                if _is_folder(one):
                    folders.add(one.name)
        names.sort(reverse=True)
        while names:  # memory goes as names go
            name = names.pop()
            yield name, name in folders

    def _is_image(self, path: str) -> bool:
        if may_be_image(path, lambda: _beginning(path)):
            return True
        self.on_skip(path)
        return False


def _beginning(path: str) -> bytes:
    """A file's first bytes; none if it can't be read, or is no regular file."""
    try:
        with open_regular(path) as file:
            return file.read(BEGINNING)
    except (M3ScoreError, OSError):
        return b""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _before_magic(parts: tuple[str, ...]) -> int:
    """How many of a pattern's parts come before the first with a wildcard."""
    return next(i for i, part in enumerate(parts) if glob.has_magic(part))


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path's parts match a pattern's parts, "**" standing for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        last = len(pattern) == 1
        return (last and bool(parts)) or any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
