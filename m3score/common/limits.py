"""How much one picture may cost: pixels, bytes, seconds, and the memory that follows from these."""

from __future__ import annotations

from dataclasses import dataclass

from m3score.common.errors import M3ScoreError

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: about half a gigabyte as RGB, and where Pillow itself gives up."""

MAX_FILE_BYTES = 1_000_000_000
"""Largest file that is opened: room for MAX_PIXELS in 16-bit channels, not packed at all."""

MAX_EMBEDDED_BYTES = 2**28
"""Largest encoded image that is read out of a shard, a row or a URL: it has to be in memory."""

SECONDS = 60.0
"""A picture of MAX_PIXELS takes a few; what takes this long was made to."""

_BASE, _PER_PIXEL = 300_000_000, 4


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. One that costs more is an error of its own, not of the run."""

    max_pixels: int = MAX_PIXELS
    """Width times height."""
    max_bytes: int = MAX_FILE_BYTES
    """Of the file, or of the bytes that stand for one."""
    seconds: float = SECONDS
    """Of wall-clock time in a worker process, from reading the file to what is made of it."""
    max_embedded_bytes: int = MAX_EMBEDDED_BYTES
    """Of an encoded image in a shard, a row or a URL, before it is read into memory."""

    @classmethod
    def of(cls, max_pixels: int, max_bytes: int | None, seconds: float) -> Limits:
        """Limits as the command line gives them: one number of bytes, if any, for files and all else."""
        if max_bytes is None:
            return cls(max_pixels, seconds=seconds)
        return cls(max_pixels, max_bytes, seconds, max_bytes)

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_bytes", "seconds", "max_embedded_bytes"):
            if not getattr(self, name) > 0:
                raise M3ScoreError(f"{name} must be more than 0, not {getattr(self, name)}.")

    @property
    def memory(self) -> int:
        """Bytes that a worker process may have: Pillow keeps 4 for each RGB pixel.

        A second copy of a picture near max_pixels, which some formats need, does not fit: with the model's
        process, both together stay below 1.5 GB by default. Who allows more pixels allows more memory.
        """
        return _BASE + _PER_PIXEL * self.max_pixels
