"""Put chosen files into a folder, as copies or links: none overwritten, none half written, none done twice.

Knows files, no tables. The folders below the files' common folder are kept, so that names that occur in
several of them stay apart; where a name is taken by another file all the same, a hash of the source's path is
added to it.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from m3score.errors import M3ScoreError
from m3score.images import printable, system_error


class How(StrEnum):
    """What is put there."""

    copy = "copy"
    link = "link"


@dataclass(frozen=True)
class Placed:
    """One file that was put into the folder, or the reason why it was not."""

    source: str
    """As given."""
    target: str | None
    """Where it lies now."""
    already: bool
    """Whether it was there before."""
    error: str | None


def place(
    paths: Sequence[str], folder: str | os.PathLike[str], how: How, *, root: str = "", base: str | None = None
) -> Iterator[Placed]:
    """Copy files into a folder (with their times), or put symbolic links to them there; one result per path.

    What lies there already with the same content is left as it is: a run that was interrupted goes on.

    Args:
        paths: files, as a score table names them; a path that occurs twice is placed once.
        folder: made if there is none.
        how: as copies or as links.
        root: where relative paths begin; "" is the working folder.
        base: a folder above all of them, below which folders are kept; by default the deepest one. What goes
            into the folder later keeps its place only with the same one.

    Raises:
        M3ScoreError: the folder cannot be made.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{printable(str(folder))}: {system_error(error)}.") from None
    sources = [os.path.abspath(os.path.join(root, path)) for path in paths]
    above = common_folder(paths, root) if base is None else base
    placed: dict[str, Placed] = {}
    for path, source in zip(paths, sources, strict=True):
        if source not in placed:
            placed[source] = _place(path, _on_disk(source), os.path.relpath(source, above), Path(folder), how)
        yield placed[source]


def common_folder(paths: Iterable[str], root: str = "") -> str:
    """The deepest folder above all files; M3ScoreError if they lie on several drives."""
    try:
        folders = {os.path.dirname(os.path.abspath(os.path.join(root, path))) for path in paths}
        return os.path.commonpath(folders) if folders else os.sep
    except ValueError:
        raise M3ScoreError("the images lie on several drives: select from one at a time.") from None


def _on_disk(source: str) -> str:
    r"""The file's real name: tables spell out bytes that are no UTF-8 as \xff."""
    if os.path.lexists(source) or "\\x" not in source:
        return source
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(source))
    return os.fsdecode(raw)


def _place(path: str, source: str, relative: str, folder: Path, how: How) -> Placed:
    if not os.path.isfile(source):
        return Placed(path, None, False, "no such file" if not os.path.lexists(source) else "not a file")
    tag = hashlib.blake2b(os.fsencode(source), digest_size=4).hexdigest()
    plain = folder / relative
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


def _same(source: str, target: Path, how: How) -> bool:
    if how is How.link:
        return target.is_symlink() and os.path.abspath(os.readlink(target)) == source
    return target.is_file() and not target.is_symlink() and filecmp.cmp(source, target)


def _put(source: str, target: Path, how: How) -> bool:
    """Whether the name was still free; what appears under it is whole."""
    if how is How.link:
        try:
            os.symlink(source, target)
        except FileExistsError:
            return False
        return True
    temporary = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
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
