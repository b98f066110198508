"""A video as a picture: frames sampled evenly and laid out as a grid, which is how M3 is shown videos.

Knows PyAV; knows nothing about models. The layout is IG-VLM's ("An Image Grid Can Be Worth a Video", arXiv
2403.18406), which the M3 paper takes for its video results: six frames, each the first of its sixth of the
video, in reading order, round(sqrt(6)) = 2 beside each other.

Frames are chosen by time, so a variable frame rate does not matter; they are turned as the file says.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import IO, Any

from PIL import Image

from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.common.files import check_bytes, open_regular, printable
from m3score.common.limits import MAX_FILE_BYTES, MAX_PIXELS

FRAMES = 6
"""Frames of a video, as in the M3 paper."""
MAX_SECONDS = 6 * 3600
"""Longest video that is opened."""
_SLACK = 1
"""Seconds by which a video may be shorter than it says."""
LARGEST_GRID = 16_777_216
"""Pixels of a grid; frames of 4K are shrunk to fit, those of 1280x720 stay as they are."""

VIDEO_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
        *(".ogv", ".webm", ".wmv"),
    )
)

_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"jxl ", b"crx ")
_BEGINNINGS = (
    b"\x1aE\xdf\xa3",
    b"FLV\x01",
    b"\x00\x00\x01\xba",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    b"OggS",
)


@dataclass(frozen=True)
class Frames:
    """Frames of a video that are to have a grid of visual tokens each, in their order."""

    pictures: tuple[Image.Image, ...]
    """Upright, mode RGB."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first, in pixels."""
        return self.pictures[0].size


def video_suffixes() -> frozenset[str]:
    """Suffixes of files that are taken for videos; none where PyAV is not installed."""
    return VIDEO_SUFFIXES if find_spec("av") else frozenset()


def missing_reader(suffixes: Iterable[str]) -> str | None:
    """What to install, if files with one of these suffixes are videos that can't be read without."""
    if video_suffixes() or VIDEO_SUFFIXES.isdisjoint(suffixes):
        return None
    return MissingExtraError("Reading videos", "video").reason


def looks_like_video(beginning: bytes) -> bool:
    """Whether a file that begins so is a container of moving pictures (or of sound: that shows later).

    Args:
        beginning: the first 16 bytes or more.
    """
    if beginning[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return beginning[8:12] not in _STILL_BRANDS
    return beginning.startswith(_BEGINNINGS) or (beginning[:4] == b"RIFF" and beginning[8:12] == b"AVI ")


def video_grid(file: IO[bytes], name: str, *, max_pixels: int, frames: int = FRAMES) -> Image.Image:
    """A video's frames as one picture, mode RGB; the arguments are those of `video_frames`."""
    return arrange(video_frames(file, name, max_pixels=max_pixels, frames=frames))


def is_video(source: Any) -> bool:
    """Whether a path, or the bytes of a file, hold a video, by how they begin.

    Raises M3ScoreError for a path that can't be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return looks_like_video(bytes(source[:16]))
    if not isinstance(source, str | os.PathLike):
        return False
    with open_regular(source) as file:
        return looks_like_video(file.read(16))


def open_frames(
    source: str | os.PathLike[str] | bytes,
    frames: int = FRAMES,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_FILE_BYTES,
) -> Frames:
    """`video_frames` of a path, or of the bytes of a file."""
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(len(source), "the image", max_bytes)
        return Frames(
            tuple(video_frames(io.BytesIO(source), "the image", max_pixels=max_pixels, frames=frames))
        )
    with open_regular(source, max_bytes) as file:
        return Frames(tuple(video_frames(file, printable(source), max_pixels=max_pixels, frames=frames)))


def arrange(frames: Sequence[Image.Image]) -> Image.Image:
    """Pictures in reading order, round(sqrt(n)) beside each other; what stays empty is white.

    All get the size of the narrowest and the lowest, as IG-VLM has it.
    """
    columns = max(1, round(math.sqrt(len(frames))))
    rows = math.ceil(len(frames) / columns)
    width, height = min(one.width for one in frames), min(one.height for one in frames)
    shrunk = min(1.0, math.sqrt(LARGEST_GRID / (columns * width * rows * height)))
    width, height = max(1, int(width * shrunk)), max(1, int(height * shrunk))
    grid = Image.new("RGB", (columns * width, rows * height), "white")
    for number, one in enumerate(frames):
        row, column = divmod(number, columns)
        grid.paste(one.resize((width, height), Image.Resampling.BICUBIC), (column * width, row * height))
    return grid


def video_frames(file: IO[bytes], name: str, *, max_pixels: int, frames: int = FRAMES) -> list[Image.Image]:
    """Frames sampled evenly: the first of each part, when the video is cut into as many equal parts.

    Args:
        file: an open file that can seek.
        name: what errors call it.
        max_pixels: refuse frames of more pixels than this.
        frames: how many; a video that has fewer gives some several times.

    Returns:
        Upright pictures of mode RGB.

    Raises:
        M3ScoreError: one sentence that names the file and what is wrong with it.
        MissingExtraError: PyAV is not installed.
    """
    if frames < 1:
        raise M3ScoreError(f"frames must be at least 1, not {frames}.")
    try:
        import av
    except ImportError:
        raise MissingExtraError(f"{name} is a video, which", "video") from None
    av.logging.set_level(None)  # what matters becomes an error
    try:
        with av.open(file, metadata_errors="replace") as container:
            if not container.streams.video:
                raise M3ScoreError("has sound or other data, but no pictures", subject=name)
            stream = container.streams.video[0]
            pixels = stream.width * stream.height
            if pixels > max_pixels:
                size = f"{stream.width}x{stream.height}"
                raise M3ScoreError(
                    f"{pixels:,} pixels ({size}), more than the limit of {max_pixels:,}", subject=name
                )
            return _sampled(container, stream, name, frames)
    except (av.error.FFmpegError, EOFError, OSError, ValueError) as error:
        if isinstance(error, M3ScoreError):
            raise
        detail = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise M3ScoreError(
            f"damaged or unreadable video ({detail or type(error).__name__})", subject=name
        ) from None


def _sampled(container: Any, stream: Any, name: str, count: int) -> list[Image.Image]:
    start, length = _extent(container, stream, name)
    if length > MAX_SECONDS:
        raise M3ScoreError(
            f"{float(length):,.0f} seconds long, more than the limit of {MAX_SECONDS:,}", subject=name
        )
    rate = stream.average_rate or Fraction(25)
    step = Fraction(math.floor(length * rate / count)) / rate  # whole frames, as IG-VLM counts
    pictures = []
    for number in range(count):
        frame = _frame_at(container, stream, start + number * step + 1 / (4 * rate))
        if frame is None:
            raise M3ScoreError("truncated: the file ends before the video does", subject=name)
        pictures.append(_upright(frame))
    return pictures


def _extent(container: Any, stream: Any, name: str) -> tuple[Fraction, Fraction]:
    """When the video starts, and how long it is, in seconds."""
    base = stream.time_base
    start = (stream.start_time or 0) * base
    if stream.duration:
        return start, stream.duration * base
    if container.duration:
        return start, Fraction(container.duration, 1_000_000)
    ends = [
        (packet.pts + (packet.duration or 0)) * base
        for packet in container.demux(stream)
        if packet.pts is not None
    ]
    if not ends:
        raise M3ScoreError("has no pictures in it", subject=name)
    return start, max(ends) - start


def _frame_at(container: Any, stream: Any, seconds: Fraction) -> Any:
    """The frame that is shown at a time, the last that does not come later; None if the file ends before."""
    container.seek(int(seconds / stream.time_base), stream=stream, backward=True)
    shown = None
    for frame in container.decode(stream):
        late = frame.pts is not None and frame.pts * stream.time_base > seconds
        if shown is not None and late:
            return shown
        shown = frame
        if late:  # nothing earlier: as good as it gets
            return shown
    if shown is None or shown.pts is None:
        return shown
    lasts = max((shown.duration or 0) * stream.time_base, 1 / (stream.average_rate or Fraction(25)))
    return shown if seconds < shown.pts * stream.time_base + lasts + _SLACK else None


def _upright(frame: Any) -> Image.Image:
    """The picture, turned counterclockwise by what the file says."""
    picture = frame.to_image().convert("RGB")
    turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    turn = turns.get(round(frame.rotation) % 360)
    return picture if turn is None else picture.transpose(turn)
