"""What an input was when it was scored: how a run that goes on knows that it need not be scored again.

A file is the same if its size, times and inode are: no byte is read, so a million is skipped in a minute.
Where these differ (it was copied, touched or restored) the hash of its content decides, if the size is the
same. The risk: a file that is changed in place, with size and both times as they were, is taken for the old
one. (The time of its inode's change can't be set by ordinary means: that takes a clock that was turned back.)
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from typing import Any

from m3score.data.item import ImageItem
from m3score.runs.resume.journal import Status, status_of

LARGEST_HASHED = 1 << 28
"""Bytes; of larger files only size, times and inode count."""


def input_key(item: ImageItem) -> dict[str, Any]:
    """What is known about an input without reading it: before it is opened, so that it is never too new."""
    key: dict[str, Any] = {"path": item.path}
    if item.questions:
        key["asked"] = _digest(repr(item.questions).encode())
    if item.error is not None:
        key["error"] = item.error
    elif item.content is not None:
        key["digest"] = _digest(item.content)
    else:
        key["status"] = _status(item.name)
        if item.name != item.path:
            key["file"] = item.name
    return key


def digest_of(key: Mapping[str, Any]) -> str | None:
    """The hash of the file that a key stands for; None if it is no longer that file, or can't be read."""
    if not key.get("status") or key["status"][0] > LARGEST_HASHED:
        return None
    try:  # never wait for a pipe that has taken the file's place
        handle = os.open(key.get("file", key["path"]), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode) or list(status_of(found)) != list(key["status"]):
                return None
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, ValueError):
        return None


def has_changed(key: Mapping[str, Any]) -> bool:
    """Whether the file is another than when its key was made."""
    return "status" in key and _status(key.get("file", key["path"])) != key["status"]


def is_same(now: Mapping[str, Any], then: Mapping[str, Any], *, failed: bool) -> bool:
    """Whether an input is what it was when it was scored.

    `failed`: it could not be scored then. That counts only if it could at least be read and is untouched:
    a permission or a network share may have been mended.
    """
    if now.get("asked") != then.get("asked"):
        return False
    if "error" in now or "error" in then:
        return bool(now.get("error") == then.get("error"))
    if "status" not in now:  # its content came along
        return bool(now["digest"] == then.get("digest"))
    if now.get("status") and then.get("status") and list(now["status"]) == list(then["status"]):
        return not failed or then.get("digest") is not None
    if failed or then.get("digest") is None:
        return False
    same_size = now.get("status") and then.get("status") and now["status"][0] == then["status"][0]
    return bool(same_size) and digest_of(now) == then["digest"]


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _status(path: str) -> Status | None:
    try:
        return status_of(os.stat(path))
    except (OSError, ValueError):
        return None
