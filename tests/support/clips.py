"""Videos made for tests, with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs PyAV: pip install 'm3score[video]'")

RATE = 10


def write_video(path: Path, times: Sequence[int], size: tuple[int, int] = (64, 48)) -> Path:
    """A video of one grey level per frame, 4 more each time; `times` are in frames of 1/RATE s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.bit_rate, stream.codec_context.qmin, stream.codec_context.qmax = (
            10**7,
            1,
            1,
        )  # grey levels count
        for number, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), 4 * number, np.uint8)
            pixels[: size[1] // 4] = 255  # what is up
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """Write into an mp4 file how a player is to turn its pictures: clockwise, as phones do."""
    matrices = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
    a, b, c, d = (65536 * value for value in matrices[degrees])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    assert struct.unpack_from(">3i", data, matrix) == (65536, 0, 0)
    struct.pack_into(">9i", data, matrix, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def folder_of_clips(folder: Path) -> dict[str, str | None]:
    """Videos of all sorts in a folder: what has to be said of each, or None where it is a picture."""
    folder.mkdir()
    write_video(folder / "good.mp4", range(30))
    write_video(folder / "variable.mkv", [*range(30), *range(30, 61, 10)])
    turn(write_video(folder / "turned.mp4", range(12)), 90)
    data = (folder / "good.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 2])
    cut = write_video(folder / "cut.mkv", range(60))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 4])
    broken = bytearray(data)
    broken[40 : len(data) // 2] = bytes(len(data) // 2 - 40)
    (folder / "broken.mp4").write_bytes(broken)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    write_sound(folder / "sound.m4a").rename(folder / "sound.mp4")
    still = folder / "still.png"
    with av.open(str(folder / "good.mp4")) as container:
        next(container.decode(video=0)).to_image().save(still)
    still.rename(folder / "still.mp4")
    write_video(folder / "long.mkv", [0, 10 * 3600 * RATE])
    return {
        "good.mp4": None,
        "variable.mkv": None,
        "turned.mp4": None,
        "still.mp4": None,
        "truncated.mp4": "damaged",
        "cut.mkv": "truncated",
        "broken.mp4": "damaged",
        "empty.mp4": "empty file",
        "text.mp4": "not a video",
        "sound.mp4": "no pictures",
        "long.mkv": "more than the limit of 21,600",
    }
