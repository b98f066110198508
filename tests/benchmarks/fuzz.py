"""Can a damaged file crash or hang a run? Run: python tests/benchmarks/fuzz.py [--files 20000] [--seed 0]

Writes small pictures in every format and mode that Pillow can write here, damages them (bits, bytes, lengths,
cuts, repeats, pieces of other formats), and sends each through the isolated decoder as a run would. Bars: one
result for each, a picture or one sentence; no process of ours ends; none takes longer than the limit. Worker
processes that died or were killed are counted: they cost their own file. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.images.sandbox import Decoder
from m3score.images.worker_pool import WorkerError

MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F")
_LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@lru_cache(maxsize=1)
def originals() -> dict[str, bytes]:
    """A file in every format and mode that Pillow writes and reads again, by "FORMAT MODE"."""
    Image.init()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((64, 48))
    found = {}
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            out = io.BytesIO()
            try:
                picture = noise.convert("I").convert(mode) if mode == "I;16" else noise.convert(mode)
                picture.save(out, kind)
                Image.open(io.BytesIO(out.getvalue())).load()
            except Exception:  # no such mode in this format, or written in name only
                continue
            found[f"{kind} {mode}"] = out.getvalue()
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        out = io.BytesIO()
        noise.save(out, kind, save_all=True, append_images=[noise.rotate(90)])
        found[f"{kind} frames"] = out.getvalue()
    out = io.BytesIO()
    noise.save(out, "JPEG", progressive=True)
    found["JPEG progressive"] = out.getvalue()
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        out = io.BytesIO()
        noise.save(out, "TIFF", compression=compression)
        found[f"TIFF {compression}"] = out.getvalue()
    return found


def damaged(rng: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """The file with one to six things done to it, most of them near its head."""
    bad = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        size = max(1, len(bad))
        at = int(rng.integers(size)) if rng.random() < 0.4 else min(int(rng.integers(1, 200)), size - 1)
        length = int(rng.integers(1, 33))
        match rng.integers(8):
            case 0:
                bad[at : at + 1] = bytes([bad[at] ^ 1 << int(rng.integers(8))]) if bad else b""
            case 1:
                bad[at : at + length] = rng.bytes(length)
            case 2:
                value, width = int(rng.choice(_LENGTHS)), int(rng.choice([1, 2, 4]))
                order = "big" if rng.random() < 0.5 else "little"
                bad[at : at + width] = (value % 256**width).to_bytes(width, order)
            case 3:
                del bad[at : at + length]
            case 4:
                bad[at:at] = bad[at : at + length] * int(rng.integers(1, 9))
            case 5:
                del bad[max(at, 8) :]
            case 6:
                start = int(rng.integers(max(1, len(other) - length)))
                bad[at : at + length] = other[start : start + length]
            case 7:
                bad[at:at] = bytes(length)
    return bytes(bad)


def cases(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(name, content) of damaged files, every original as often as the others."""
    rng = np.random.default_rng(seed)
    files = list(originals().items())
    for number in range(count):
        name, data = files[number % len(files)]
        other = files[int(rng.integers(len(files)))][1]
        yield f"{name} #{number}", damaged(rng, data, other)


def outcome(decode: Decoder, case: tuple[str, bytes]) -> tuple[str, str, float, bytes]:
    """(name, what came of it, seconds, content)."""
    name, data = case
    begun = time.monotonic()
    try:
        picture = decode(data)
        came = "picture" if getattr(picture, "mode", "") == "RGB" else f"BAD: {picture!r}"
    except WorkerError as error:
        came = f"lost: {error}"
    except M3ScoreError as error:
        text = str(error)
        came = "sentence" if "\n" not in text and len(text) < 400 else f"BAD: {text!r}"
    except Exception as error:  # a bar is missed
        came = f"BAD: {type(error).__name__}: {error}"
    return name, came, time.monotonic() - begun, data


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files through the isolated decoder.")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="limit of each file")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    say(f"{len(originals())} originals, {chosen.files} damaged files, seed {chosen.seed}")
    counts: Counter[str] = Counter()
    slowest, begun = 0.0, time.monotonic()
    limits = Limits(seconds=chosen.seconds)
    with Decoder(limits) as decode, ThreadPoolExecutor(chosen.workers) as pool:
        todo = cases(chosen.files, chosen.seed)
        while group := [case for _, case in zip(range(500), todo, strict=False)]:
            for name, came, seconds, data in pool.map(partial(outcome, decode), group):
                counts[came.partition(":")[0]] += 1
                slowest = max(slowest, seconds)
                if came.startswith(("lost", "BAD")) or seconds > 5:
                    say(f"{name}: {came} in {seconds:.1f} s, {len(data)} bytes: {data[:24].hex()}")
            say(f"{sum(counts.values())}: {dict(counts)}, slowest {slowest:.1f} s")
    say(f"{time.monotonic() - begun:.0f} s; {_peaks()}")
    fine = sum(counts.values()) == chosen.files and not counts["BAD"]
    return 0 if fine else 1


def _peaks() -> str:
    try:
        import resource
    except ImportError:
        return "no memory figures here"
    unit = 2**20 if sys.platform == "darwin" else 2**10
    own, theirs = (
        resource.getrusage(w).ru_maxrss / unit for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return f"most memory {own:.0f} MB here, {theirs:.0f} MB in a worker that ended"


if __name__ == "__main__":
    sys.exit(main())
