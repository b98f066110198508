"""How long until the first answer of predict_scale, against `import sklearn.ensemble` alone; and how long
`m3score --help` takes, against `python -c "import typer"` (the bar is a ratio of 3).

    python tests/benchmarks/import_time.py [--rounds 9] [--predictor my.predictor]

Both run in fresh processes, by turns, so that whatever else the machine does slows both alike; times are the
processes' CPU seconds and wall seconds, the ratio that of the medians. The bar is a ratio of 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

_BASE = "import sklearn.ensemble"
_ANSWER = """
from m3score import predict_scale
predict_scale({image!r}, predictor={predictor!r})
"""
# Measured inside: what Python itself takes to start is in neither.
_TIMED = """
import json, sys, time
wall, cpu = time.perf_counter(), time.process_time()
{code}
sys.stdout.write(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def measure(code: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a piece of code in a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TIMED.format(code=code)],
        capture_output=True,
        text=True,
        check=True,
    )
    wall, cpu = json.loads(ran.stdout)
    return wall, cpu


def whole(*arguments: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a whole Python process, its start and end included."""
    before, wall = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, cpu


def help_times(rounds: int) -> None:
    """Print the medians of --help and of importing typer, by turns, and their ratio."""
    commands = {"typer": ("-c", "import typer"), "help": ("-m", "m3score", "--help")}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(whole(*command))
    for column, kind in enumerate(("wall", "CPU")):
        base, shown = (statistics.median(one[column] for one in times[name]) for name in ("typer", "help"))
        sys.stdout.write(
            f"{kind}: import typer {base:.3f} s, m3score --help {shown:.3f} s, "
            f"ratio {shown / base:.2f} (bar: 3)\n"
        )


def main() -> None:
    """Print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--predictor", default="m3-tiny", help="a bundled name or a file")
    parser.add_argument("--only-help", action="store_true", help="measure m3score --help alone")
    options = parser.parse_args()
    help_times(options.rounds)
    if options.only_help:
        return
    with tempfile.TemporaryDirectory() as folder:
        image = str(Path(folder) / "picture.jpg")
        Image.effect_mandelbrot((640, 480), (-2.0, -1.2, 1.0, 1.2), 60).convert("RGB").save(image)
        pieces = {"sklearn": _BASE, "answer": _ANSWER.format(image=image, predictor=options.predictor)}
        for code in pieces.values():  # file caches
            measure(code)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in pieces}
        for _ in range(options.rounds):
            for name, code in pieces.items():
                times[name].append(measure(code))
    for column, kind in enumerate(("wall", "CPU")):
        base, answer = (statistics.median(t[column] for t in times[name]) for name in ("sklearn", "answer"))
        sys.stdout.write(
            f"{kind}: import sklearn.ensemble {base:.3f} s, from import to answer {answer:.3f} s, "
            f"ratio {answer / base:.2f} (bar: 1.5)\n"
        )


if __name__ == "__main__":
    main()
