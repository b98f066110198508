"""Put chosen images into a folder, as copies or links: none overwritten, none half written, none done twice.

Knows files, and pictures that lie in shards, tables and data sets (by way of extract.py). The folders
below the images' common folder are kept, so that names that occur in several of them stay apart; a shard or
table counts as a folder. Where a name is taken by another file all the same, a hash of the source's path is
added to it.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from m3score.common.errors import M3ScoreError
from m3score.data.extract import finder, taken_out
from m3score.data.item import Columns, FoundImage
from m3score.data.sources.remote import is_url
from m3score.images.decode import image_suffixes, printable, suffix_of, system_error

if TYPE_CHECKING:
    from m3score.data.sources.hf_datasets import DataSet


class How(StrEnum):
    """What is put there."""

    copy = "copy"
    link = "link"


@dataclass(frozen=True)
class Placed:
    """One image that was put into the folder, or the reason why it was not."""

    source: str
    """As given."""
    target: str | None
    """Where it lies now."""
    already: bool
    """Whether it was there before."""
    error: str | None


def place(
    paths: Sequence[str],
    folder: str | os.PathLike[str],
    how: How,
    *,
    root: str = "",
    base: str | None = None,
    data_sets: Sequence[DataSet] = (),
    columns: Columns | None = None,
    fetch: bool = False,
) -> Iterator[Placed]:
    """Copy images into a folder (files with their times), or put symbolic links to them there; one result per
    path, files first.

    What lies there already with the same content is left as it is: a run that was interrupted goes on.
    Pictures out of shards and tables can be copied only; what has no suffix there is given its format's.

    Args:
        paths: images, as a score table names them; a file that occurs twice is placed once.
        folder: made if there is none.
        how: as copies or as links.
        root: where relative paths begin; "" is the working folder.
        base: a folder above all of them, below which folders are kept; by default the deepest one. What goes
            into the folder later keeps its place only with the same one.
        data_sets, columns, fetch: of pictures that are no files; see picture_sources.taken_out.

    Raises:
        M3ScoreError: the folder cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{printable(str(folder))}: {system_error(error)}.") from None
    find, above = finder(None), common_folder(paths, root) if base is None else base
    files: dict[str, Placed] = {}
    others: dict[str, None] = {}
    for path in paths:
        source = os.path.abspath(find(os.path.join(root, path)))
        if not os.path.lexists(source):
            others[path] = None
            continue
        if source not in files:
            files[source] = _place(path, source, os.path.relpath(source, above), Path(folder), how)
        yield replace(files[source], source=path)

    def here(path: str) -> str:
        return path if is_url(path) else find(os.path.join(root, path))

    for path, found in taken_out(others, here, data_sets=data_sets, columns=columns, fetch=fetch):
        del others[path]
        relative = os.path.relpath(os.path.abspath(os.path.join(root, path)), above)
        yield _place_member(path, found, Path(folder) / relative, how)
    yield from (Placed(path, None, False, "no such file") for path in others)


def common_folder(paths: Iterable[str], root: str = "") -> str:
    """The deepest folder above all files; M3ScoreError if they lie on several drives."""
    try:
        folders = {os.path.dirname(os.path.abspath(os.path.join(root, path))) for path in paths}
        return os.path.commonpath(folders) if folders else os.sep
    except ValueError:
        raise M3ScoreError("the images lie on several drives: select from one at a time.") from None


def _place(path: str, source: str, relative: str, folder: Path, how: How) -> Placed:
    if not os.path.isfile(source):
        return Placed(path, None, False, "not a file" if os.path.exists(source) else "no such file")
    return _put_somewhere(path, source, source, folder / relative, how)


def _place_member(path: str, found: FoundImage, target: Path, how: How) -> Placed:
    """What lies in a shard or table, or the file that a row of a table names."""
    if found.error:
        return Placed(path, None, False, found.error)
    if found.content is not None and how is How.link:
        return Placed(path, None, False, "lies in another file, where no link can lead: copies can be had")
    source = os.path.abspath(found.name) if found.content is None else found.content
    if target.suffix.lower() not in image_suffixes():
        suffix = Path(source).suffix if isinstance(source, str) else suffix_of(source)
        target = target.with_name(target.name + suffix)
    return _put_somewhere(path, source, os.path.abspath(path), target, how)


def _put_somewhere(path: str, source: str | bytes, identity: str, plain: Path, how: How) -> Placed:
    """Under the plain name, or where another file has it, under one with a hash of the source's path."""
    tag = hashlib.blake2b(os.fsencode(identity), digest_size=4).hexdigest()
    try:
        for target in (plain, plain.with_name(f"{plain.stem}-{tag}{plain.suffix}")):
            target.parent.mkdir(parents=True, exist_ok=True)
            if _same(source, target, how):
                return Placed(path, str(target), True, None)
            if not os.path.lexists(target) and _put(source, target, how):
                return Placed(path, str(target), False, None)
    except OSError as error:
        return Placed(path, None, False, system_error(error))
    return Placed(path, None, False, f"another file has its place in {printable(str(plain.parent))}")


def _same(source: str | bytes, target: Path, how: How) -> bool:
    if how is How.link:
        return target.is_symlink() and os.path.abspath(os.readlink(target)) == source
    if not target.is_file() or target.is_symlink():
        return False
    if isinstance(source, bytes):
        return target.stat().st_size == len(source) and target.read_bytes() == source
    return filecmp.cmp(source, target)


def _put(source: str | bytes, target: Path, how: How) -> bool:
    """Whether the name was still free; what appears under it is whole."""
    if how is How.link:
        try:
            os.symlink(source, target)
        except FileExistsError:
            return False
        return True
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
        if isinstance(source, bytes):
            temporary.write_bytes(source)
        else:
            shutil.copy2(source, temporary)
        try:
            os.link(temporary, target)  # unlike a rename it never replaces anything
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            os.rename(temporary, target)
        return True
    finally:
        temporary.unlink(missing_ok=True)
