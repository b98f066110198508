"""Open files whose names nobody has vouched for: regular ones only, and what is said about all others.

Knows paths, nothing about pictures.
"""

from __future__ import annotations

import os
import stat
from typing import IO

from m3score.common.errors import M3ScoreError
from m3score.common.limits import MAX_FILE_BYTES

_SPECIAL_FILES = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# Linux can say what a path leads to, and keep hold of it, without opening it. Elsewhere a pipe or a device
# that takes a file's place within microseconds is opened, but not waited for and not read.
_LOOK_ONLY = hasattr(os, "O_PATH") and os.path.isdir("/proc/self/fd")
_LOOK = os.O_PATH if _LOOK_ONLY else os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_LOOK |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def printable(path: str | os.PathLike[str]) -> str:
    """The path as text that any table can hold: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def why_not_a_file(path: str | os.PathLike[str], wanted: str = "an image file") -> str | None:
    """What stands in the way of reading the path as a regular file, without opening it; None if nothing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return f"broken link: its target {printable(os.readlink(path))} does not exist"
        return "no such file"
    except OSError as error:
        return system_error(error)
    except ValueError:  # a NUL byte in the name
        return "not a valid file name"
    return _not_regular(status, wanted)


def _not_regular(status: os.stat_result, wanted: str) -> str | None:
    if stat.S_ISDIR(status.st_mode):
        return f"is a folder, not {wanted}"
    for is_special, kind in _SPECIAL_FILES:
        if is_special(status.st_mode):
            return f"is {kind}, not {wanted}"
    return "empty file (0 bytes)" if status.st_size == 0 and stat.S_ISREG(status.st_mode) else None


def open_regular(
    path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES, wanted: str = "an image file"
) -> IO[bytes]:
    """Open a regular file for reading. Nothing else is ever opened, also if it takes the file's place now.

    `wanted` is what errors say it should have been.

    Raises:
        M3ScoreError: no such file, or it is a folder, a pipe, a device, empty, too large or not readable.
    """
    name = printable(path)
    problem = why_not_a_file(path, wanted)
    if problem:
        raise M3ScoreError(problem, subject=name)
    try:
        handle = os.open(path, _LOOK)
    except OSError as error:
        raise M3ScoreError(system_error(error), subject=name) from None
    try:
        status = os.fstat(handle)
        problem = _not_regular(status, wanted)
        if problem:
            raise M3ScoreError(problem, subject=name)
        check_bytes(status.st_size, name, max_bytes)
        if _LOOK_ONLY:
            return open(f"/proc/self/fd/{handle}", "rb")
        file, handle = os.fdopen(handle, "rb"), -1
        return file
    except OSError as error:
        raise M3ScoreError(system_error(error), subject=name) from None
    finally:
        if handle >= 0:
            os.close(handle)


def check_bytes(count: int, name: str, max_bytes: int) -> None:
    """M3ScoreError if a file of so many bytes is too large."""
    if count > max_bytes:
        raise M3ScoreError(f"{count:,} bytes, more than the limit of {max_bytes:,}", subject=name)


def system_error(error: OSError) -> str:
    """An operating system's error in its own words, without errno and path: "permission denied"."""
    return (error.strerror or str(error) or type(error).__name__).lower()
