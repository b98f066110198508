"""Decoding of pictures that nobody has vouched for: in worker processes, within limits.

A picture can crash a decoder, keep it busy for ever or make it ask for all memory there is; here it costs one
error. What a model sees is made by the same code as in this process, so pixels are the same to the last bit.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from PIL import Image

from m3score.common.limits import Limits
from m3score.images.decode import open_image
from m3score.images.video import Frames, is_video, open_frames
from m3score.images.worker_pool import Crew, available
from m3score.models.m3.config import M3Settings
from m3score.models.m3.preprocess import Tiles, preprocess, preprocess_frames


class Decoder:
    """`open_image` in worker processes, for one run; used from several threads. Close it at the end."""

    def __init__(
        self, limits: Limits | None = None, settings: M3Settings | None = None, frames: int | None = None
    ) -> None:
        """
        Args:
            limits: what one picture may cost.
            settings: the image handling of a model: pictures then come back as the tiles that it sees, which
                are small however large the picture is.
            frames: a video comes back as so many frames with a grid each, which takes `settings`; by default
                as one picture.
        """
        self._limits = limits or Limits()
        self._settings = asdict(settings) if settings else None
        self._frames = frames
        self._crew = Crew(self._limits)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, source: str | os.PathLike[str] | bytes) -> Image.Image | Frames | Tiles:
        """The picture, upright and RGB, or its tiles.

        Raises:
            M3ScoreError: one sentence that says what is wrong with the file, or that decoding it took too
                long or killed its process.
        """
        limits = self._limits
        if not available():
            return open_visual(source, self._frames, limits)
        made = self._crew.call(
            _opened, source, limits.max_pixels, limits.max_bytes, self._settings, self._frames
        )
        return Tiles(*made) if isinstance(made, tuple) else made

    def close(self) -> None:
        """Let the processes go; what they are in the middle of fails."""
        self._crew.close()


def open_visual(source: Any, frames: int | None = None, limits: Limits | None = None) -> Image.Image | Frames:
    """`open_image`; with `frames`, a video is not one picture but so many."""
    held = limits or Limits()
    if frames is not None and is_video(source):
        return open_frames(source, frames, max_pixels=held.max_pixels, max_bytes=held.max_bytes)
    return open_image(source, max_pixels=held.max_pixels, max_bytes=held.max_bytes)


def _opened(
    source: str | os.PathLike[str] | bytes,
    max_pixels: int,
    max_bytes: int,
    settings: dict[str, Any] | None,
    frames: int | None,
) -> Any:
    """In a worker."""
    image = open_visual(source, frames, Limits(max_pixels, max_bytes))
    if settings is None:
        return image
    how = M3Settings(**settings)
    tiles = preprocess_frames(image.pictures, how) if isinstance(image, Frames) else preprocess(image, how)
    return tiles.pixel_values, tiles.size, tiles.tiles
