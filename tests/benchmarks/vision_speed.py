"""How fast is `rank` by vision?

    python tests/benchmarks/vision_speed.py FOLDER [--images 500] [--rounds 3]

In turns, over the same pictures: the bare tower's forward passes over preprocessed batches as transformers
runs it (eager float32) and as m3score does, and all of `m3score.rank`, from files to table. The bars: rank at most
1.25 times the bare tower; the bare tower at least 1.4 times as fast as transformers', with numbers equal to
1e-4; peak memory of a ranking process below 700 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import median

import torch

import m3score
from m3score.data.discover import find_images
from m3score.images.decode import open_image
from m3score.models.m3.model import M3Model
from m3score.models.m3.tower import patch_features
from m3score.models.vision.prepare import stretched_tiles

BATCH = 8
_RANK = """
import m3score, resource, sys
m3score.rank(sys.argv[1:], device="cpu")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 1024)
"""


def theirs(model: M3Model, pixels: torch.Tensor) -> torch.Tensor:
    """Features as transformers makes them."""
    tower = model.hf_model.model.vision_tower
    states = tower(pixels, output_hidden_states=True).hidden_states
    return states[model.hf_model.config.vision_feature_layer][:, 1:]


def seconds(work: object) -> float:
    begun = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = m3score.load_model("m3-tiny", device="cpu", dtype="float32")
    paths, tiles = [], []
    for item in find_images([str(options.folder)]):
        try:
            tiles.append(stretched_tiles(open_image(item.source), model.config))
        except m3score.M3ScoreError:
            continue
        paths.append(item.path)
        if len(paths) == options.images:
            break
    batches = [tiles[start : start + BATCH] for start in range(0, len(tiles), BATCH)]
    pixels = [torch.cat([torch.from_numpy(one.pixel_values) for one in batch]) for batch in batches]
    with torch.inference_mode():
        apart = max(
            float((theirs(model, values) - torch.cat(patch_features(model, batch))).abs().max())
            for values, batch in islice(zip(pixels, batches, strict=True), 8)
        )
        m3score.rank(paths[:16], model=model)
        times: dict[str, list[float]] = {"transformers": [], "tower": [], "rank": []}
        for _ in range(options.rounds):
            times["transformers"].append(seconds(lambda: [theirs(model, values) for values in pixels]))
            times["tower"].append(seconds(lambda: [patch_features(model, batch) for batch in batches]))
            times["rank"].append(seconds(lambda: m3score.rank(paths, model=model)))
    done = subprocess.run([sys.executable, "-c", _RANK, *paths], capture_output=True, text=True, check=True)
    middle = {name: median(values) for name, values in times.items()}
    sys.stdout.write(
        f"{len(paths)} pictures, {options.rounds} rounds, {torch.get_num_threads()} threads\n\n"
        "| | seen | bar |\n|---|--:|--:|\n"
        f"| rank / bare tower | {middle['rank'] / middle['tower']:.2f} | <= 1.25 |\n"
        f"| transformers / bare tower | {middle['transformers'] / middle['tower']:.2f} | >= 1.40 |\n"
        f"| largest difference of features | {apart:.1e} | <= 1e-4 |\n"
        f"| peak memory of a ranking process, MB | {float(done.stdout):.0f} | < 700 |\n\n"
        f"Seconds: {', '.join(f'{name} {value:.1f}' for name, value in middle.items())}; "
        f"rank {len(paths) / middle['rank']:.1f} images/s.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
