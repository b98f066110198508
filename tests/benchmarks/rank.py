"""Does ranking stream? Run: python tests/benchmarks/rank.py FOLDER

Ranks pictures of a folder with m3-tiny in fresh processes, few and many of them, and says how much of the
time is spent outside the model (bar: 15%), the most memory that each process had (bar: many take at most 1.1
times what few take) and the speed in the first and in the last quarter of the many (bar: within 10%).
Pictures are mixed, so that both quarters have the like, and taken again from the start where the folder has
fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

QUESTION = "What color is at the middle?"


def child(model: str, listing: str) -> dict[str, Any]:
    """Rank what is listed, write both tables; what it took."""
    import resource

    from m3score import load_model
    from m3score.common.profiling import profiled, stage
    from m3score.data.discover import find_images
    from m3score.data.loader import QuestionBook
    from m3score.runs.ranking import score_table
    from m3score.scoring.scorers.model_stream import rank_stream
    from m3score.tables.io import write_scores

    paths = json.loads(Path(listing).read_text())
    m3 = load_model(model, device="cpu")
    rows, times = [], []
    with profiled() as profile:
        # One listing per path: a path that is listed twice would be found once.
        found = (item for path in paths for item in find_images(path))
        for result in rank_stream(found, m3, QuestionBook(QUESTION)):
            rows.append(result.to_row())
            times.append(time.perf_counter())
        with stage("write"), tempfile.TemporaryDirectory() as folder:
            write_scores(score_table(rows), Path(folder) / "scores.csv")
    quarter = len(times) // 4
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "images": len(rows),
        "failed": sum(row["error"] is not None for row in rows),
        "seconds": profile.wall,
        "outside": profile.outside / profile.wall,
        "stages": profile.seconds,
        "megabytes": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "first": quarter / (times[quarter] - times[0]),
        "last": quarter / (times[-1] - times[-1 - quarter]),
    }


def measure(model: str, paths: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "paths.json"
        listing.write_text(json.dumps(paths))
        command = [sys.executable, __file__, "--child", str(listing), "--model", model]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Streaming, memory and overhead of ranking.")
    parser.add_argument("folder", nargs="?", help="pictures, with all below")
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--model", default="m3-tiny")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        say(json.dumps(child(chosen.model, chosen.child)))
        return
    from m3score.data.discover import find_images

    paths = [item.path for item in find_images(chosen.folder) if not item.error]
    # Neighbours in a folder are alike: every so manieth, so that few are a fair sample of many.
    step = max(1, len(paths) // chosen.few)
    mixed = [path for start in range(step) for path in paths[start::step]]
    say(f"{len(paths)} pictures, {os.cpu_count()} processors, {chosen.model}")
    say("| images | images/s | first quarter | last quarter | outside the model | peak memory |")
    say("|-------:|---------:|--------------:|-------------:|------------------:|------------:|")
    peaks = []
    for count in (chosen.few, chosen.many):
        got = measure(chosen.model, list(islice(cycle(mixed), count)))
        peaks.append(got["megabytes"])
        say(
            f"| {got['images']:>6} | {got['images'] / got['seconds']:8.1f} | {got['first']:13.1f} "
            f"| {got['last']:12.1f} | {got['outside']:17.1%} | {got['megabytes']:8.0f} MB |"
        )
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(got["stages"].items()))
        say(f"Seconds: {stages}; failed: {got['failed']}.")
    say(f"Memory of many against few: {peaks[1] / peaks[0]:.2f} (bar 1.1).")


if __name__ == "__main__":
    main()
