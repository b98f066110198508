"""Images in tar shards (webdataset's layout), read once from the beginning to the end.

Nothing is unpacked to disk, and one sample is in memory at a time. In webdataset's layout the files of a
sample follow each other and differ in their suffix: 0001.jpg, 0001.json, 0001.txt. A sample's json may hold
what a row of a questions file does: question, answers, options, metric.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import IO, Any, cast

from m3score.common.errors import M3ScoreError, one_line
from m3score.common.files import printable, system_error
from m3score.common.limits import MAX_EMBEDDED_BYTES
from m3score.data.item import Columns, ImageItem, too_large
from m3score.data.questions import Question, question_of
from m3score.data.sources.parquet import questions_of
from m3score.images.formats import may_be_image
from m3score.images.kinds import BEGINNING, RAW_SUFFIXES, help_with

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

_MOST_IN_A_SAMPLE = 16
"""Images that wait for the json of their sample: more than that in one sample is not webdataset's layout."""
_LARGEST_JSON = 2**24


def is_shard(path: str) -> bool:
    """Whether the name is a tar file's."""
    return path.lower().endswith(SUFFIXES)


def shard_images(
    name: str,
    open_shard: Callable[[], IO[bytes]],
    on_skip: Callable[[str], None] = lambda path: None,
    *,
    ask: bool = True,
    wanted: Collection[str] | None = None,
    max_bytes: int = MAX_EMBEDDED_BYTES,
) -> Iterator[ImageItem]:
    """The images of one shard, as SHARD/MEMBER. Where the shard is damaged, the last one is an error.

    Args:
        name: of the shard, a path or a URL.
        open_shard: opens it for reading; it need not be seekable.
        on_skip: called with the name of every member that is neither an image nor a sample's json.
        ask: whether what the json files ask is of interest.
        wanted: members; no others are read where a shard is a plain tar file that can be sought in.
        max_bytes: an image of more bytes is not read, but an error.
    """
    sample: list[ImageItem] = []
    questions: tuple[Question, ...] = ()
    stem = problem = ""
    for member in _members(name, open_shard, on_skip, wanted, max_bytes):
        own_stem, suffix = os.path.splitext(member.relative)
        if own_stem != stem or len(sample) >= _MOST_IN_A_SAMPLE:
            yield from (_asked(image, questions, problem) for image in sample)
            sample, questions, stem, problem = [], (), own_stem, ""
        if suffix.lower() == ".json" and member.content is not None:
            try:
                questions = _questions(member.content) if ask else ()
            except M3ScoreError as error:
                problem = f"the questions in {printable(os.path.basename(member.relative))}: {error}"
        else:
            sample.append(member)
    yield from (_asked(image, questions, problem) for image in sample)


def _asked(image: ImageItem, questions: tuple[Question, ...], problem: str) -> ImageItem:
    if problem and not image.error:
        return replace(image, content=None, error=problem)
    return replace(image, questions=questions)


def _questions(content: bytes) -> tuple[Question, ...]:
    """What a sample's json asks; nothing if it is about something else."""
    try:
        row = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(row, dict) or not row.get("question"):
        return ()
    answers = "answers" if "answers" in row else "answer"
    if isinstance(row["question"], list):
        return questions_of(row, Columns(None, "question", answers if answers in row else None))
    return (question_of({**row, "answers": row.get(answers)}),)


# ---- tar ----------------------------------------------------------------------------------------------


def _members(
    name: str,
    open_shard: Callable[[], IO[bytes]],
    on_skip: Callable[[str], None],
    wanted: Collection[str] | None,
    max_bytes: int,
) -> Iterator[ImageItem]:
    """Images and json files of a shard, with their content."""
    last = reading = None
    try:
        with open_shard() as file, _decompressed(file) as plain, _tar(plain, wanted, file) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                reading = member.name
                suffix = os.path.splitext(reading)[1].lower()
                if wanted is not None and reading not in wanted:
                    last, reading = reading, None
                    continue
                usable = member.isreg() and not os.path.basename(reading).startswith(".")
                if usable and suffix == ".json" and member.size <= _LARGEST_JSON:
                    content = cast(IO[bytes], tar.extractfile(member)).read()
                    yield ImageItem(f"{name}/{reading}", reading, content=content)
                elif usable and (found := _image(f"{name}/{reading}", tar, member, max_bytes)):
                    yield found
                elif usable:
                    on_skip(f"{name}/{reading}")
                last, reading = reading, None
    except Exception as error:  # decompressors and remote file systems raise whatever they like
        yield _broken(name, last, reading, error)


def _tar(plain: IO[bytes], wanted: Collection[str] | None, file: IO[bytes]) -> tarfile.TarFile:
    skips = wanted is not None and plain is file and file.seekable()
    return tarfile.open(fileobj=plain, mode="r:" if skips else "r|", tarinfo=_Header, encoding="utf-8")


def _image(path: str, tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> ImageItem | None:
    """The member as an input; None if it is no picture."""
    content = cast(IO[bytes], tar.extractfile(member))
    beginning = content.read(BEGINNING)
    if not may_be_image(member.name, lambda: beginning):
        return None
    if member.size == 0:
        return ImageItem(path, member.name, "empty file (0 bytes)")
    if member.size > max_bytes:
        return ImageItem(path, member.name, too_large(member.size, max_bytes))
    if os.path.splitext(member.name)[1].lower() in RAW_SUFFIXES:
        return ImageItem(path, member.name, help_with(beginning, member.name))
    return ImageItem(path, member.name, content=beginning + content.read())


def _broken(name: str, last: str | None, reading: str | None, error: Exception) -> ImageItem:
    if isinstance(error, M3ScoreError):
        detail = str(error)
    elif isinstance(error, OSError) and error.errno is not None:
        detail = system_error(error)
    else:
        detail = one_line(error, 160)
    if reading is not None:
        reason = f"the shard is damaged here ({detail}): what follows in it is lost"
        return ImageItem(f"{name}/{reading}", reading, reason)
    if last is not None:
        reason = f"the shard is damaged after {printable(last)} ({detail}): what follows in it is lost"
        return ImageItem(name, os.path.basename(name), reason)
    return ImageItem(name, os.path.basename(name), f"not a tar file that can be read ({detail})")


class _Header(tarfile.TarInfo):
    """A member's header. tarfile itself takes a damaged one, unless it is the first, for the shard's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark at the end of a complete shard
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            raise tarfile.ReadError("the file ends without the mark of a complete tar file") from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from None


_MAGIC: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def _decompressed(file: IO[bytes]) -> Any:
    """The file, or what it unpacks to, by its first bytes: names lie."""
    import io

    buffered: Any = file if hasattr(file, "peek") else io.BufferedReader(cast(Any, file))
    start = buffered.peek(6)[:6]
    if start.startswith(_ZSTANDARD):
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(buffered, mode="r"), "zstd")
    for magic, opened in _MAGIC.items():
        if start.startswith(magic):
            return opened(fileobj=buffered) if opened is gzip.GzipFile else opened(buffered)
    return buffered
