"""Ray on two machines that are processes here, one CPU each, against this machine with two workers.

    python tests/benchmarks/cluster.py [--images 5000] [--predictor FILE]

Draws small pictures and runs `m3score rank --scorer predictor` over them: here, on the cluster, and on the
cluster while one of its machines is killed at half of the blocks. The bars: the cluster has at least 0.8 of
the throughput, from the first row to the last; its tables are those of this machine, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from m3score.runs.executors.block_store import blocks_folder
from m3score.runs.resume.journal import journal_path
from tests.benchmarks.scale import draw
from tests.support.predictors import small_predictor

_MAIN = "from m3score.cli.main import main; main()"
MACHINE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


def timed(command: list[str], out: Path, at_blocks: Any = None) -> tuple[float, float]:
    """Run the command: seconds in all, and from the first row to the end."""
    begun = time.monotonic()
    first: float | None = None
    process = subprocess.Popen([sys.executable, "-c", _MAIN, *command, "--out", str(out), "-q"])
    while process.poll() is None:
        if first is None and journal_path(out).exists() and journal_path(out).read_bytes().count(b"\n") > 1:
            first = time.monotonic()
        if at_blocks is not None and at_blocks(len(list(blocks_folder(out).glob("*.parquet")))):
            at_blocks = None
        time.sleep(0.05)
    end = time.monotonic()
    return end - begun, end - (first or begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--predictor", help="a name or a file; by default a small one that is made here")
    options = parser.parse_args()
    count, say = options.images, sys.stdout.write
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        draw(count, home / "in")
        predictor = options.predictor or str(home / "made-up.predictor")
        if options.predictor is None:
            small_predictor().save(predictor)
        rank = ["rank", str(home / "in"), "--scorer", "predictor", "--predictor", predictor]
        local = timed([*rank, "--workers", "2"], home / "local.csv")
        cluster = Cluster()
        try:
            cluster.add_node(**MACHINE, include_dashboard=False)
            node = cluster.add_node(**MACHINE)
            there = [*rank, "--engine", "ray", "--address", cluster.address]
            ray = timed(there, home / "ray.csv")

            def kill(blocks: int) -> bool:
                if blocks < count / 256 / 2:
                    return False
                cluster.remove_node(node, allow_graceful=False)
                return True

            timed(there, home / "killed.csv", kill)
        finally:
            cluster.shutdown()
        same = [
            (home / f"{name}.csv").read_bytes() == (home / "local.csv").read_bytes()
            for name in ("ray", "killed")
        ]
    say(f"{count:,} images: {local[0]:.1f} s here, {ray[0]:.1f} s on the cluster (with its start-up).\n\n")
    say("| | | bar |\n|---|--:|--:|\n")
    say(f"| throughput of the cluster / of this machine, whole run | {local[0] / ray[0]:.2f} | |\n")
    say(f"| the same, from the first row on | {local[1] / ray[1]:.2f} | 0.80 |\n")
    say(f"| the same table | {'yes' if same[0] else 'NO'} | yes |\n")
    say(f"| the same table though a machine was killed | {'yes' if same[1] else 'NO'} | yes |\n")


if __name__ == "__main__":
    main()
