"""Kill -9 at random moments of a run, also while it ends or goes on, and compare the final tables.

    python tests/benchmarks/faults.py [--kills 60] [--images 400] [--seed 0] [--real]

Every line is one run into a fresh folder: killed once or twice at a random moment, then left to finish. The
model is a fake that needs no time, or with --real the bundled one: then a resumed run asks it about other
batches of pictures than the undisturbed one. The bar: every table, and every trace table, is byte for byte
that of an undisturbed run, and nothing else is left in the folder.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from m3score.calibration.drawings.drawing import draw
from tests.support.fakes import grey
from tests.support.runs import records, run, start


def main() -> int:
    """Print the table; the exit code is the number of runs whose table differed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true", help="with m3-tiny, on drawn pictures")
    options = parser.parse_args()
    pace = None if options.real else 0.02
    dice = random.Random(options.seed)
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        for number in range(options.images):
            if number % 17 == 5:
                (folder / f"{number:05}.png").write_bytes(b"broken")
            else:
                picture = draw(options.seed, number).image if options.real else grey(number % 256)
                picture.save(folder / f"{number:05}.png")
        whole, seconds = _undisturbed(Path(place), folder, pace)
        say(f"An undisturbed run takes {seconds:.1f} s.\n\n")
        say("| kills | at s | rows in the journal | identical |\n")
        say("|--:|---|---|---|\n")
        done = wrong = 0
        while done < options.kills:
            home = Path(place) / f"run-{done}"
            home.mkdir()
            moments, rows = [], []
            for _ in range(min(dice.randint(1, 2), options.kills - done)):
                moments.append(dice.uniform(0.0, 1.05 * seconds))
                _kill_after(moments[-1], _command(folder, home), pace)
                rows.append(max(0, records(home / "s.csv") - 1))
            if not (home / "s.csv").exists() or (home / ".s.csv.journal").exists():
                code, said = run(*_command(folder, home), seconds_per_batch=pace)
                if code != 3:
                    raise SystemExit(f"the last run failed ({code}): {said}")
            same = _tables(home) == whole
            same = same and sorted(os.listdir(home)) == ["s.csv", "t.csv"]
            done, wrong = done + len(moments), wrong + (not same)
            times = ", ".join(f"{moment:.2f}" for moment in moments)
            say(f"| {len(moments)} | {times} | {', '.join(map(str, rows))} | {'yes' if same else 'NO'} |\n")
            sys.stdout.flush()
    say(f"\n{done} kills, {wrong} tables that differ.\n")
    return wrong


def _command(folder: Path, home: Path) -> list[object]:
    return [
        "rank",
        folder,
        "--question",
        "What?",
        "--batch-size",
        4,
        "--traces",
        home / "t.csv",
        "--out",
        home / "s.csv",
        "-q",
    ]


def _undisturbed(place: Path, folder: Path, pace: float | None) -> tuple[tuple[bytes, bytes], float]:
    (place / "whole").mkdir()
    begun = time.monotonic()
    run(*_command(folder, place / "whole"), seconds_per_batch=pace)
    return _tables(place / "whole"), time.monotonic() - begun


def _tables(home: Path) -> tuple[bytes, bytes]:
    return (home / "s.csv").read_bytes(), (home / "t.csv").read_bytes()


def _kill_after(seconds: float, command: list[object], pace: float | None) -> None:
    process = start(*command, seconds_per_batch=pace)
    time.sleep(seconds)
    process.kill()
    process.communicate()


if __name__ == "__main__":
    sys.exit(main())
