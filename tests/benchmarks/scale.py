"""Many small inputs with the predictor: does memory grow, does speed fall, how long does a resumed run skip?

    python tests/benchmarks/scale.py [--images 100000] [--predictor FILE]

Draws small pictures, runs `m3score rank --scorer predictor` over a tenth of them and over all, kills a third
run half-way and resumes it. The bars: peak memory of all within 15% of that of a tenth; images per second of
the last tenth within 10% of the first; to skip half the inputs takes under 5% of the full run's time.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from m3score.runs.resume.journal import journal_path
from tests.support.predictors import small_predictor

_MAIN = "from m3score.cli.main import main; main()"


@dataclass
class Watched:
    """One run: when how many rows were in its journal, and the most memory of its largest process."""

    points: list[tuple[float, int]]
    """Seconds since the start, rows."""
    peak: float
    """MB."""
    seconds: float

    def at(self, rows: float) -> float:
        """Seconds at which so many rows were there, for the first time: sorting them all comes afterwards."""
        return next(time for time, count in self.points if count >= rows)


def watch(command: list[str], out: Path, stop_at: int | None = None) -> Watched:
    """Run the command; kill it at so many rows, if asked to."""
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", _MAIN, *command], stderr=subprocess.DEVNULL)
    points, rows, position = [], 0, 0
    while True:
        try:
            with open(journal_path(out), "rb") as file:
                file.seek(position)
                new = file.read()
                position, rows = position + len(new), rows + new.count(b"\n")
        except FileNotFoundError:
            pass
        points.append((time.monotonic() - begun, max(0, rows - 1)))
        if stop_at is not None and rows > stop_at:
            os.kill(process.pid, signal.SIGKILL)  # Popen's own way would reap it, and its usage with it
        pid, _, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            return Watched(points, usage.ru_maxrss / 1024, time.monotonic() - begun)
        time.sleep(0.05)


def draw(count: int, folder: Path) -> None:
    """Small pictures of noise, in folders of a thousand."""
    dice = np.random.default_rng(0)
    for number in range(count):
        home = folder / f"{number // 1000:04}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(home / f"{number:07}.png")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--predictor", help="a name or a file; by default a small one that is made here")
    options = parser.parse_args()
    count, say = options.images, sys.stdout.write
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        draw(count, home / "in")
        predictor = options.predictor or str(home / "made-up.predictor")
        if options.predictor is None:
            small_predictor().save(predictor)

        def command(out: Path, limit: int) -> list[str]:
            how = ["--scorer", "predictor", "--predictor", predictor, "--limit", str(limit), "-q"]
            return ["rank", str(home / "in"), "--out", str(out), *how]

        tenth = watch(command(home / "tenth.csv", count // 10), home / "tenth.csv")
        full = watch(command(home / "full.csv", count), home / "full.csv")
        half = count // 2
        watch(command(home / "again.csv", count), home / "again.csv", stop_at=half)
        resumed = watch(command(home / "again.csv", count), home / "again.csv")
        same = (home / "again.csv").read_bytes() == (home / "full.csv").read_bytes()
    first = full.at(count / 10) - full.at(1)
    last = full.at(count) - full.at(count * 9 / 10)
    kept = resumed.points[0][1]
    skipping = resumed.at(kept + 1) - full.at(1)  # less what every run takes to begin
    say(f"{count:,} images: {full.seconds:.0f} s, {count / full.seconds:.0f} images/s.\n\n")
    say("| | | bar |\n|---|--:|--:|\n")
    say(f"| peak memory of all / of a tenth | {full.peak:.0f} / {tenth.peak:.0f} MB = ")
    say(f"{full.peak / tenth.peak:.2f} | 1.15 |\n")
    say(f"| images/s of the last tenth / of the first | {first / last:.2f} | 0.90 |\n")
    share = skipping / full.seconds
    say(f"| time to skip {kept:,} / of the full run | {skipping:.1f} s = {share:.1%} | 5% |\n")
    say(f"| the resumed run's table is the full run's | {'yes' if same else 'NO'} | yes |\n")


if __name__ == "__main__":
    main()
