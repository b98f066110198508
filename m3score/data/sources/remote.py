"""Files behind URLs (s3://, gs://, hf://, https://, zip://, memory:// ...), by way of fsspec.

Nothing here touches the network before a URL was given. Each file is fetched whole, several at once: what
takes time is the way there.
"""

from __future__ import annotations

import os
import posixpath
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any, cast

from m3score.common.errors import M3ScoreError, MissingExtraError, one_line
from m3score.common.limits import MAX_EMBEDDED_BYTES
from m3score.data.item import ImageItem, ToFetch, too_large
from m3score.images.formats import image_suffixes

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_AT_ONCE = 16
_TRIES = 3
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_url(path: str) -> bool:
    """Whether the path is a URL, plain or chained ("zip://a.jpg::https://host/x.zip")."""
    return _URL.match(path) is not None


def local_path(url: str) -> str | None:
    """The path of a file:// URL; None for others."""
    protocol, _, path = url.partition("://")
    return path if protocol.lower() in ("file", "local") and "::" not in url else None


@dataclass(frozen=True)
class RemoteFile:
    """A file that a URL leads to."""

    url: str
    relative: str
    """Relative to the URL that was given; the file name for a file that was given."""
    system: Any
    path: str
    """As the file system wants it."""
    max_bytes: int = MAX_EMBEDDED_BYTES
    """More are not read."""

    def open(self) -> IO[bytes]:
        """Open for reading; the file system's own exceptions."""
        return cast(IO[bytes], self.system.open(self.path, "rb"))

    def read(self) -> bytes:
        """The content. M3ScoreError if it can't be had, or is larger than `max_bytes`."""
        for attempt in range(1, _TRIES + 1):
            try:
                with self.open() as file:
                    content = file.read(self.max_bytes + 1)
                break
            except Exception as error:  # every file system has exceptions of its own
                if attempt == _TRIES or isinstance(_meant(error), (*_FINAL, ImportError)):
                    raise M3ScoreError(f"can't be fetched ({explained(error)})") from None
                time.sleep(0.5 * 2**attempt)  # an overloaded server may answer in a moment
        if len(content) > self.max_bytes:
            raise M3ScoreError(too_large(None, self.max_bytes))
        return content

    def to_fetch(self) -> ToFetch:
        """The file as an image whose content is still to come."""
        return ToFetch(ImageItem(self.url, self.relative), self.read)


def remote_files(
    url: str, keep: Callable[[str], bool], max_bytes: int = MAX_EMBEDDED_BYTES
) -> Iterator[RemoteFile]:
    """The files that a URL stands for: one, those below a folder, or what matches a pattern ("*"), sorted.

    A folder's listing is fsspec's, in memory as a whole: give many millions of files as shards, or as a list
    on stdin. What a folder holds is taken if `keep` says so of its path, as are matches of a pattern that
    does not end in a suffix.

    Raises:
        M3ScoreError: the protocol needs a package that is not installed (named), or there is no such place.
    """
    system, path = _opened_system(url)
    prefix, chain = _around(url)
    root = path.rstrip("/")

    def file(found: str, relative: str) -> RemoteFile:
        name = found if is_url(found) else f"{prefix}{found.lstrip('/')}{chain}"
        return RemoteFile(url if found == path else name, relative, system, found, max_bytes)

    try:
        if "*" in path:
            matches = [one for one in system.glob(path) if not system.isdir(one)]
            named = "*" not in posixpath.splitext(path)[1] and posixpath.splitext(path)[1]
            for match in sorted(matches):
                if named or keep(match):
                    yield file(match, posixpath.basename(match))
            if not matches:
                raise M3ScoreError("nothing matches this pattern")
        elif _may_be_folder(url) and system.isdir(path):
            for folder, below, names in system.walk(path):
                below.sort()  # walk goes on in this order, where the file system lets us say so
                for name in sorted(names):
                    found = f"{folder.rstrip('/')}/{name}" if folder.strip("/") else name
                    if keep(found):
                        yield file(found, found.removeprefix(root).lstrip("/"))
        else:
            yield file(path, posixpath.basename(root) or path)
    except M3ScoreError:
        raise
    except Exception as error:  # as in read
        raise M3ScoreError(f"can't be searched ({explained(error)})") from None


def fetched(found: Iterable[ImageItem | ToFetch]) -> Iterator[ImageItem]:
    """The inputs in order, with their content. A few at once are fetched, or wait until they are wanted."""
    waiting: deque[ImageItem | Future[ImageItem]] = deque()
    pool: ThreadPoolExecutor | None = None
    try:
        for item in found:
            if isinstance(item, ToFetch):
                pool = pool or ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="m3score-fetch")
                waiting.append(pool.submit(_fetch, item))
            elif waiting:
                waiting.append(item)
            else:
                yield item
            while len(waiting) >= _AT_ONCE or _held(waiting) > MAX_EMBEDDED_BYTES:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:  # also when the caller stops early
        if pool:
            pool.shutdown(wait=False, cancel_futures=True)


def placed(
    found: ImageItem, where: str | None, folder: str = "", *, max_bytes: int = MAX_EMBEDDED_BYTES
) -> ImageItem | ToFetch:
    """A row's input, with its image to be taken from `where`: a URL, or a path relative to `folder`."""
    if where is None or found.error:
        return found
    if is_url(where) and local_path(where) is None:
        return ToFetch(found, partial(_read, where, max_bytes))
    path = os.path.join(folder, local_path(where) or where)
    return replace(found, original=path)


def explained(error: Exception) -> str:
    """An exception of a file system in one line."""
    error = _meant(error)
    detail = one_line(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__


def _meant(error: Exception) -> Exception:
    """What happened: fsspec calls everything that goes wrong on the way to a web server a missing file."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception):
        return error
    return error if getattr(cause, "status", None) in (404, 410) else cause


def _fetch(item: ToFetch) -> ImageItem:
    try:
        return replace(item.found, content=item.fetch())
    except M3ScoreError as error:
        return replace(item.found, error=str(error))


def _result(item: ImageItem | Future[ImageItem]) -> ImageItem:
    return item if isinstance(item, ImageItem) else item.result()


def _held(waiting: Iterable[ImageItem | Future[ImageItem]]) -> int:
    """Bytes that are in memory."""
    here = (_result(item) for item in waiting if isinstance(item, ImageItem) or item.done())
    return sum(len(item.content or b"") for item in here)


def _may_be_folder(url: str) -> bool:
    """Whether to ask: it costs a request, and web servers answer with the file itself."""
    first = url.partition("::")[0].lower()
    file = first.startswith(("http://", "https://")) or posixpath.splitext(first)[1] in image_suffixes()
    return first.endswith("/") or not file


def _read(url: str, max_bytes: int) -> bytes:
    system, path = _opened_system(url)
    return RemoteFile(url, "", system, path, max_bytes).read()


def _opened_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise MissingExtraError("reading URLs", "remote", subject=url) from None
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    except ImportError as error:  # fsspec says which package it is that the protocol needs
        raise M3ScoreError(f"{str(error).rstrip('.')}.", subject=url) from None
    except Exception as error:
        raise M3ScoreError(f"can't be opened ({explained(error)}).", subject=url) from None


def _around(url: str) -> tuple[str, str]:
    """What stands before and after a path in the names of files: "s3://" and "::https://host/x.zip"."""
    first, *others = url.split("::")
    return f"{first.partition('://')[0]}://", "".join(f"::{other}" for other in others)
