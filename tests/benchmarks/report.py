"""How long does the report of a long table take? Run: python tests/benchmarks/report.py [--rows 100000]

Writes a made-up score table whose paths lead to drawn pictures of 640x480 (and with --traces a trace table of
one question per picture), makes its report in a process of its own, and opens that in Chromium where there is
one. Bars: 100,000 rows in under 60 s, in memory that does not grow with the rows; a million rows below 15 MB,
usable within 2 s. Compare `processor s` on a machine that has other work to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from PIL import Image

from m3score.tables.io import write_rows
from m3score.tables.schema import SCORES, TRACES
from tests.support.reports import LADDER, score_rows, trace_rows

PICTURES = 500
REPORT = """
import json, resource, sys, time
from m3score.cli.main import app
begun = time.monotonic()
try:
    app(sys.argv[1:], prog_name="m3score")
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor = used.ru_utime + used.ru_stime
    told = {"exit": end.code or 0, "seconds": time.monotonic() - begun, "processor s": processor}
    # Not ru_maxrss, which begins at what the parent had when it started this process.
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    sys.stdout.write(json.dumps(told | {"peak MB": int(peak.split()[1]) / 1024}))
"""


def draw_pictures(folder: Path) -> list[str]:
    """Noisy pictures, which hardly compress: the worst for the size of the page."""
    names = []
    for i in range(PICTURES):
        noise = np.random.default_rng(i).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        names.append(f"{i:03}.jpg")
        Image.fromarray(noise).resize((640, 480)).save(folder / names[-1])
    return names


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--traces", action="store_true")
    wanted = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = draw_pictures(folder)
        paths = [f"./{'./' * (i // PICTURES % 50)}{drawn[i % PICTURES]}" for i in range(wanted.rows)]
        columns = [f"agreement_{tokens}" for tokens in LADDER]
        rows = score_rows(wanted.rows, paths)
        write_rows(rows, folder / "scores.csv", SCORES, columns)
        command = ["report", str(folder / "scores.csv"), "--out", str(folder / "report.html")]
        if wanted.traces:
            write_rows(trace_rows(rows), folder / "traces.parquet", TRACES)
            command += ["--traces", str(folder / "traces.parquet")]
        said = subprocess.run([sys.executable, "-c", REPORT, *command], capture_output=True, text=True)
        told = json.loads(said.stdout) | {"page MB": (folder / "report.html").stat().st_size / 1e6}
        told |= loaded(folder / "report.html")
    sys.stdout.write(" | ".join(f"{k} {v:.4g}" for k, v in told.items()) + "\n")


def loaded(page: Path) -> dict[str, float]:
    """Seconds until the first pictures are decoded, and until a filter has been applied."""
    from tests.support.browser import chromium, open_page

    try:
        with chromium() as browser:
            begun = time.monotonic()
            open_page(browser, page)
            browser.execute_script("return document.querySelector('#gallery img').decode().then(() => true)")
            shown = time.monotonic()
            browser.execute_script(
                "const o = document.getElementById('order'); o.value = 'complex';"
                "o.dispatchEvent(new Event('input', {bubbles: true}))"
            )
            return {"usable s": shown - begun, "sort s": time.monotonic() - shown}
    except BaseException as reason:  # pytest's skip
        sys.stderr.write(f"not opened in a browser: {reason}\n")
        return {}


if __name__ == "__main__":
    main()
