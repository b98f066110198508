"""How fast are the features of a picture, beside decoding it? Run: python tests/benchmarks/features.py

Benchmarks are scripts, one per subject; pytest doesn't collect them. They say ratios of two things that are
measured in the same run, in turns, so that a slow or busy machine slows both: medians over rounds of the
wall-clock time and of the ratio, and the ratio of processor time, which others' work disturbs less. Pictures
are drawn into a temporary folder; nothing is read from elsewhere.

Bars: a 12-megapixel JPEG file costs less than its full decode by Pillow; a 640x480 JPEG file at most 4 times
its decode, the prediction included (the features alone: 3.3); two workers do 1.7 times what one does.

`--predict` measures m3score.predict_scale in place of image_features; `--rounds N` takes N rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from m3score.images.parallel import available_processors, map_images
from m3score.routing.features.image import image_features


def draw_photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Shapes in front of soft clouds, with a sensor's noise: compresses about as a photograph does."""
    rng = np.random.default_rng(seed)
    clouds = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    leaves = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    leaves = leaves.filter(ImageFilter.GaussianBlur(1.0)).resize((width, height))
    image = Image.blend(clouds, leaves, 0.45)
    pen = ImageDraw.Draw(image)
    for _ in range(40):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        size = int(rng.integers(height // 40, height // 5))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        draw = (pen.rectangle, pen.ellipse)[int(rng.integers(2))]
        draw((x, y, x + size, y + size), fill=colour)
    noise = rng.normal(0, 5, (height, width, 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))


def decode(path: Path) -> None:
    """What everyone who looks at a picture must do first."""
    with Image.open(path) as image:
        image.load()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor time of one call."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


@dataclass(frozen=True)
class Comparison:
    """Medians over rounds: seconds of one and of the other, and one's over the other's in both clocks."""

    one: float
    other: float
    ratio: float
    processor_ratio: float


def compare(one: Callable[[], object], other: Callable[[], object], rounds: int) -> Comparison:
    """Both in turns; who goes first changes, so that neither always finds the other's caches."""
    one(), other()
    times = []
    for k in range(rounds):
        first, second = (one, other) if k % 2 else (other, one)
        pair = {first: seconds(first)}
        pair[second] = seconds(second)
        times.append((*pair[one], *pair[other]))
    middle = statistics.median
    return Comparison(
        one=middle(a for a, _, _, _ in times),
        other=middle(b for _, _, b, _ in times),
        ratio=middle(a / b for a, _, b, _ in times),
        processor_ratio=middle(a for _, a, _, _ in times) / middle(max(b, 1e-9) for _, _, _, b in times),
    )


def repeated(work: Callable[[Path], object], paths: list[Path]) -> None:
    for path in paths:
        work(path)


def consume(work: Callable[[Path], object], paths: list[Path], workers: int) -> None:
    deque(map_images(work, paths, workers), maxlen=0)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    options = argparse.ArgumentParser(description="Speed of the image features, as ratios.")
    options.add_argument("--rounds", type=int, default=31)
    options.add_argument("--predict", action="store_true", help="measure predict_scale, not image_features")
    chosen = options.parse_args()
    work: Callable[[Path], object] = image_features
    if chosen.predict:
        from m3score import predict_scale

        work = predict_scale
    say(f"{'predict_scale' if chosen.predict else 'image_features'} on {available_processors()} processors")
    with tempfile.TemporaryDirectory() as folder:
        large, small = Path(folder, "large.jpg"), [Path(folder, f"{k}.jpg") for k in range(8)]
        draw_photograph(4000, 3000).save(large, quality=85)
        for seed, path in enumerate(small):
            draw_photograph(640, 480, seed).save(path, quality=85)
        for name, paths, bar in (("4000x3000", [large], 1.0), ("640x480", small, 4.0)):
            bits = statistics.mean(path.stat().st_size for path in paths) * 8
            pixels = int(name.split("x")[0]) * int(name.split("x")[1])
            found = compare(partial(repeated, work, paths), partial(repeated, decode, paths), chosen.rounds)
            each = len(paths)
            say(
                f"{name} JPEG of {bits / pixels:.1f} bits a pixel: {1e3 * found.one / each:.2f} ms, decode "
                f"{1e3 * found.other / each:.2f} ms, ratio {found.ratio:.2f} (in processor time "
                f"{found.processor_ratio:.2f}; bar {bar}); {each / found.one:.0f} images/s"
            )
        many = small * 600
        found = compare(
            partial(consume, work, many, 1), partial(consume, work, many, 2), max(3, chosen.rounds // 6)
        )
        say(
            f"640x480, one worker {len(many) / found.one:.0f} images/s, two {len(many) / found.other:.0f} "
            f"images/s: {found.ratio:.2f} times as many (bar 1.7)"
        )


if __name__ == "__main__":
    main()
