"""Decoding of untrusted pictures: in worker processes, within limits.

A picture can crash a decoder, keep it busy for ever or make it ask for all memory there is. Here that costs
one error. A model's preprocessing can run in the workers too; pixels are the same to the last bit as in this
process, because it is the same code.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from m3score.common.limits import Limits
from m3score.images.decode import open_image
from m3score.images.video import Frames, is_video, open_frames
from m3score.images.worker_pool import PoolSession, available


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Preparation:
    """What a worker makes of an opened picture before it is sent back, such as a model's preprocessing."""

    function: Callable[..., Any]
    """Called in the worker as function(image, *arguments), with a PIL image or Frames. It is imported by its
    name there, and returns values that protocol.py can send."""
    arguments: tuple[Any, ...] = ()
    """Values that protocol.py can send."""
    restore: Callable[[Any], Any] = _unchanged
    """Called in this process, on what the worker sent."""


class Decoder:
    """`open_image` in worker processes, for one run; used from several threads. Close it at the end."""

    def __init__(
        self,
        limits: Limits | None = None,
        preparation: Preparation | None = None,
        frames: int | None = None,
    ) -> None:
        """
        Args:
            limits: what one picture may cost.
            preparation: return what this makes of a picture, which may be much smaller than the picture.
            frames: open a video as this many frames (then `preparation` is needed); by default as one
                picture.
        """
        self._limits = limits or Limits()
        self._preparation = preparation
        self._frames = frames
        self._crew = PoolSession(self._limits)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, source: str | os.PathLike[str] | bytes) -> Any:
        """The picture, upright and RGB, or what `preparation` made of it.

        Where there can be no worker processes, it is always the picture itself.

        Raises:
            M3ScoreError: one sentence that says what is wrong with the file, or that decoding it took too
                long or killed its process.
        """
        limits, preparation = self._limits, self._preparation
        if not available():
            return open_visual(source, self._frames, limits)
        if preparation is None:
            return self._crew.call(_opened, source, limits.max_pixels, limits.max_bytes, self._frames)
        prepared = self._crew.call(
            _prepared,
            source,
            limits.max_pixels,
            limits.max_bytes,
            self._frames,
            preparation.function.__module__,
            preparation.function.__qualname__,
            preparation.arguments,
        )
        return preparation.restore(prepared)

    def close(self) -> None:
        """Let the processes go; calls that are still running fail."""
        self._crew.close()


def open_visual(source: Any, frames: int | None = None, limits: Limits | None = None) -> Image.Image | Frames:
    """`open_image`; but with `frames`, a video becomes this many frames."""
    held = limits or Limits()
    if frames is not None and is_video(source):
        return open_frames(source, frames, max_pixels=held.max_pixels, max_bytes=held.max_bytes)
    return open_image(source, max_pixels=held.max_pixels, max_bytes=held.max_bytes)


def _opened(
    source: str | os.PathLike[str] | bytes, max_pixels: int, max_bytes: int, frames: int | None
) -> Image.Image | Frames:
    """Runs in a worker."""
    return open_visual(source, frames, Limits(max_pixels, max_bytes))


def _prepared(
    source: str | os.PathLike[str] | bytes,
    max_pixels: int,
    max_bytes: int,
    frames: int | None,
    module: str,
    name: str,
    arguments: tuple[Any, ...],
) -> Any:
    """Runs in a worker."""
    function = getattr(importlib.import_module(module), name)
    return function(_opened(source, max_pixels, max_bytes, frames), *arguments)
