"""Memory of a run over a million inputs: rows into the journal, sorted, written as csv, jsonl, parquet.

    python tests/benchmarks/table_memory.py [--rows 1000000]

Prints, per format, the seconds and the growth of the peak resident memory over that of a table of ten rows,
each in a process of its own. The bar: at most 500 MB for a million rows, those of a resumed run included.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from m3score.data.item import ImageItem
from m3score.runs.engine import run
from m3score.runs.executors.local import LocalExecutor
from m3score.runs.request import Inputs, Request, Target
from m3score.scoring.base import Scored, ScorerOptions

LADDER = (1, 9, 36, 144, 576)


class Made(Inputs):
    """Inputs that are nowhere."""

    def __init__(self, rows: int) -> None:
        super().__init__("nowhere")
        self.rows = rows

    def begin(self) -> Iterator[ImageItem]:
        """So many."""
        return _found(self.rows)


class Dice:
    """A scorer that rolls dice."""

    Options: ClassVar[type[ScorerOptions]] = ScorerOptions
    traced: ClassVar[bool] = False
    columns = tuple(f"agreement_{tokens}" for tokens in LADDER)
    ladder = LADDER
    block = 1
    label = "with dice"

    def __init__(self, options: ScorerOptions, stop_at: int | None = None) -> None:
        self.options, self.stop_at = options, stop_at

    def identity(self) -> dict[str, Any]:
        """The same in every run."""
        return {"--rule": "stays"}

    def stream(self, items: Iterable[ImageItem], **how: Any) -> Generator[Scored, None, None]:
        """Rows like a model's."""
        dice = random.Random(0)
        for number, item in enumerate(items):
            if number == self.stop_at:
                raise KeyboardInterrupt
            yield Scored(_row(item, dice))


def collect(rows: int, suffix: str, resumed: bool) -> None:
    """In a process of its own: prints the seconds and the peak in MB."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = Target(Path(folder) / f"scores.{suffix}")
        for stop_at in (rows // 2, None) if resumed else (None,):
            scorer = Dice(ScorerOptions(), stop_at)
            outcome = run(Request(Made(rows), scorer, scorer.options, target), LocalExecutor())
        assert outcome.tally.images == rows and outcome.resumed == (rows // 2 if resumed else 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"{time.monotonic() - begun:.1f} {peak:.1f}\n")


def _found(rows: int) -> Iterator[ImageItem]:
    for i in range(rows):
        name = f"part-{i // 1000:05}/image-{i:09}.jpg"
        yield ImageItem(f"/data/pictures/{name}", name, error="not opened here")


def _row(item: ImageItem, dice: random.Random) -> dict[str, Any]:
    complexity = dice.random()
    return {
        "path": item.path,
        "complexity": complexity,
        "effective_tokens": 576**complexity,
        "required_tokens": dice.choice(LADDER),
        "solved": True,
        "monotone": dice.random() < 0.9,
        **{f"agreement_{tokens}": dice.random() for tokens in LADDER},
        "questions": 3,
        "width": 640,
        "height": 480,
        "error": None,
    }


def main() -> None:
    """Measure every format, fresh and resumed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=3, metavar=("ROWS", "SUFFIX", "RESUMED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        rows, suffix, resumed = options.one
        collect(int(rows), suffix, resumed == "True")
        return

    def measured(rows: int, suffix: str, resumed: bool) -> tuple[float, float]:
        command = [sys.executable, __file__, "--one", str(rows), suffix, str(resumed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, peak = map(float, done.stdout.split())
        return seconds, peak

    sys.stdout.write(
        f"{options.rows:,} rows\n\n| format | run | s | MB more at the peak |\n|---|---|--:|--:|\n"
    )
    for suffix in ("csv", "jsonl", "parquet"):
        _, few = measured(10, suffix, False)
        for resumed in (False, True):
            seconds, peak = measured(options.rows, suffix, resumed)
            how = "resumed at half" if resumed else "in one go"
            sys.stdout.write(f"| {suffix} | {how} | {seconds:.0f} | {peak - few:.0f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
