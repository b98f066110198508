"""Export selected images into a folder, as copies or links: none overwritten, half written or done twice.

Knows files, and images inside shards, tables and data sets (through extract.py). The folders below the
images' common folder are kept, so that equal names in different folders do not clash; a shard or table counts
as a folder. If another file has the name all the same, a hash of the source's path is added to it.
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
from m3score.common.files import printable, system_error
from m3score.data.extract import Find, extract_images, finder
from m3score.data.item import Columns, ImageItem
from m3score.images.decode import suffix_of
from m3score.images.formats import image_suffixes

if TYPE_CHECKING:
    from m3score.data.sources.hf_datasets import DataSet


class ExportMode(StrEnum):
    """How images are exported."""

    copy = "copy"
    link = "link"


@dataclass(frozen=True)
class ExportResult:
    """One image that was exported, or the reason why it was not."""

    source: str
    """The path as given."""
    target: str | None
    """The exported file."""
    already: bool
    """Whether the target was there before."""
    error: str | None


def export_images(
    paths: Sequence[str],
    folder: str | os.PathLike[str],
    mode: ExportMode,
    *,
    find: Find | None = None,
    base: str | None = None,
    data_sets: Sequence[DataSet] = (),
    columns: Columns | None = None,
    fetch: bool = False,
) -> Iterator[ExportResult]:
    """Copy images into a folder (files with their times), or link to them; one result per path, files first.

    A target that has the right content already is left as it is, so an interrupted export can be repeated.
    Images in shards and tables can only be copied; one without a suffix gets that of its format.

    Args:
        paths: images, as a score table names them; a file that occurs twice is exported once.
        folder: created if it does not exist.
        mode: as copies or as links.
        find: where a path of the table lies, see data.extract.finder; by default in the working folder.
        base: a folder above all images, below which folders are kept; by default the deepest one. Give the
            same one for later exports into the folder, so that names stay the same.
        data_sets, columns, fetch: for images that are no files; see data.extract.extract_images.

    Raises:
        M3ScoreError: the folder can't be created.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{printable(str(folder))}: {system_error(error)}.") from None
    here = find or finder(None)
    above = common_folder(paths) if base is None else base
    files: dict[str, ExportResult] = {}
    others: dict[str, None] = {}
    for path in paths:
        source = os.path.abspath(here(path))
        if not os.path.lexists(source):
            others[path] = None
            continue
        if source not in files:
            inside = os.path.dirname(os.path.relpath(os.path.abspath(path), above))
            relative = os.path.join(inside, os.path.basename(source))
            files[source] = _export_file(path, source, relative, Path(folder), mode)
        yield replace(files[source], source=path)
    for path, found in extract_images(others, here, data_sets=data_sets, columns=columns, fetch=fetch):
        del others[path]
        relative = os.path.relpath(os.path.abspath(path), above)
        yield _export_member(path, found, Path(folder) / relative, mode)
    yield from (ExportResult(path, None, False, "no such file") for path in others)


def common_folder(paths: Iterable[str]) -> str:
    """The deepest folder above all paths, by their names; M3ScoreError if they are on several drives."""
    try:
        folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
        return os.path.commonpath(folders) if folders else os.sep
    except ValueError:
        raise M3ScoreError("the images lie on several drives: select from one at a time.") from None


def _export_file(path: str, source: str, relative: str, folder: Path, mode: ExportMode) -> ExportResult:
    if not os.path.isfile(source):
        return ExportResult(path, None, False, "not a file" if os.path.exists(source) else "no such file")
    return _put_under_free_name(path, source, source, folder / relative, mode)


def _export_member(path: str, found: ImageItem, target: Path, mode: ExportMode) -> ExportResult:
    """Export an image inside a shard or table, or the file that a row of a table names."""
    if found.error:
        return ExportResult(path, None, False, found.error)
    if found.content is not None and mode is ExportMode.link:
        reason = "lies in another file, where no link can lead: copies can be had"
        return ExportResult(path, None, False, reason)
    source = os.path.abspath(found.name) if found.content is None else found.content
    if target.suffix.lower() not in image_suffixes():
        suffix = Path(source).suffix if isinstance(source, str) else suffix_of(source)
        target = target.with_name(target.name + suffix)
    return _put_under_free_name(path, source, os.path.abspath(path), target, mode)


def _put_under_free_name(
    path: str, source: str | bytes, identity: str, plain: Path, mode: ExportMode
) -> ExportResult:
    """Use the plain name, or if another file has it, one with a hash of the source's path."""
    tag = hashlib.blake2b(os.fsencode(identity), digest_size=4).hexdigest()
    try:
        for target in (plain, plain.with_name(f"{plain.stem}-{tag}{plain.suffix}")):
            target.parent.mkdir(parents=True, exist_ok=True)
            if _same(source, target, mode):
                return ExportResult(path, str(target), True, None)
            if not os.path.lexists(target) and _put(source, target, mode):
                return ExportResult(path, str(target), False, None)
    except OSError as error:
        return ExportResult(path, None, False, system_error(error))
    return ExportResult(path, None, False, f"another file has its place in {printable(str(plain.parent))}")


def _same(source: str | bytes, target: Path, mode: ExportMode) -> bool:
    if mode is ExportMode.link:
        return target.is_symlink() and os.path.abspath(os.readlink(target)) == source
    if not target.is_file() or target.is_symlink():
        return False
    if isinstance(source, bytes):
        return target.stat().st_size == len(source) and target.read_bytes() == source
    return filecmp.cmp(source, target)


def _put(source: str | bytes, target: Path, mode: ExportMode) -> bool:
    """Write atomically; returns whether the name was still free."""
    if mode is ExportMode.link:
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
