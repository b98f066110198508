"""How well does each scorer agree with people? Run: python tests/benchmarks/vision.py DATA [--out tables.md]

DATA holds folders with `images/` and a table: `savoias` and `rated_objects` (ratings.csv: file, category or
set, human_score), `bsds` (segments.csv: file, mean_segments), `sroie` (images.csv: file, text_chars),
`chartqa` and `imagenet` (images.csv: file). Those that are missing are left out. Says Spearman's rank
correlation of every scorer with people per category, what the vision scorer says of documents, photographs,
drawn pages and noise, and (with --robust) how much it moves when a picture is resized, compressed, mirrored,
framed or loses its colour.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.stats import spearmanr

from m3score.images.decode import open_image
from m3score.models.loading import load_model
from m3score.models.vision.complexity import VisionScore
from m3score.models.vision.meter import VisionMeter

SETS = ("imagenet", "savoias", "bsds", "chartqa", "sroie")
SCORERS = ("vision", "distinct", "model", "predictor", "jpeg", "edges", "entropy", "alit")
Score = Callable[[Sequence[Any]], list[float]]


# ---- scorers --------------------------------------------------------------------------------------------


def scorers(names: Sequence[str], vision: VisionMeter) -> dict[str, Score]:
    """By name: paths -> complexities. `distinct` is vision without reading."""
    return {name: _scorer(name, vision) for name in names}


def _scorer(name: str, vision: Any) -> Score:
    if name == "vision":
        return lambda paths: [one.complexity for one in seen(vision, paths)]
    if name == "distinct":
        return lambda paths: [one.distinct_tokens for one in seen(vision, paths)]
    if name == "model":
        from m3score.data.questions import DESCRIBE
        from m3score.scoring.oracle import score

        return lambda paths: [
            one.complexity for one in score(list(paths), model=vision.model, questions=DESCRIBE)
        ]
    if name == "predictor":
        from m3score.routing.predict import predict_complexity

        return lambda paths: predict_complexity(list(paths))
    if name == "alit":
        from m3score.scoring.scorers.alit_model import load_alit, score_images

        model = load_alit(None)
        threshold = model.settings.threshold
        return lambda paths: [
            one.complexity for path in paths for one in score_images(model, [open_image(path)], threshold)
        ]
    from m3score.scoring.scorers.pixel import baseline

    return lambda paths: [baseline(name, path)[0] for path in paths]


_seen: dict[Any, VisionScore] = {}


def seen(vision: VisionMeter, images: Sequence[Any]) -> list[VisionScore]:
    """Vision scores; those of paths are kept."""
    new = [image for image in images if not isinstance(image, Path) or image not in _seen]
    found = {id(image): one for image, one in zip(new, vision.score(new), strict=True)} if new else {}
    _seen.update({image: found[id(image)] for image in new if isinstance(image, Path)})
    return [found[id(image)] if id(image) in found else _seen[image] for image in images]


# ---- people ---------------------------------------------------------------------------------------------

RATED = (
    ("savoias", "ratings.csv", "category", "human_score"),
    ("rated_objects", "ratings.csv", "set", "human_score"),
    ("bsds", "segments.csv", None, "mean_segments"),
    ("sroie", "images.csv", None, "text_chars"),
)


def agreement(data: Path, by_name: dict[str, Score]) -> Iterator[dict[str, Any]]:
    """Rows of Spearman's correlation: one for each category of each set, and the mean over SAVOIAS's."""
    for folder, table, group, target in RATED:
        if not (data / folder / table).is_file():
            continue
        rows = pd.read_csv(data / folder / table)
        paths = [data / folder / "images" / name for name in rows["file"]]
        scores = pd.DataFrame({name: score(paths) for name, score in by_name.items()}, rows.index)
        parts = rows.groupby(group).groups if group else {target.replace("_", " "): rows.index}
        found = []
        for part, index in parts.items():
            values = {
                name: spearmanr(scores.loc[index, name], rows.loc[index, target])[0] for name in by_name
            }
            found.append(values)
            yield {"set": folder, "part": str(part).replace("_", " "), "pictures": len(index), **values}
        if len(found) > 1:
            mean = {str(name): value for name, value in pd.DataFrame(found).mean().items()}
            yield {"set": folder, "part": "mean", "pictures": len(rows), **mean}


# ---- what is known without people -----------------------------------------------------------------------


def levels(data: Path, vision: VisionMeter) -> Iterator[dict[str, Any]]:
    """Rows of medians: sets of real pictures, then drawn ones."""
    for folder in SETS:
        paths = sorted((data / folder / "images").glob("*"))
        if paths:
            yield {"pictures": folder, **_level(seen(vision, paths))}
    for name, image in drawn().items():
        yield {"pictures": name, **_level(vision.score([image]))}


def _level(scores: Sequence[VisionScore]) -> dict[str, float]:
    names = ("effective_tokens", "distinct_tokens", "reading_tokens", "complexity")
    medians = {name: float(np.median([getattr(one, name) for one in scores])) for name in names}
    return {**medians, "mean reading": float(np.mean([one.reading_tokens for one in scores]))}


def drawn(side: int = 672) -> dict[str, Image.Image]:
    """Pictures whose order nobody doubts, and noise."""
    random = np.random.default_rng(0)
    blank = Image.new("RGB", (side, side), (236, 232, 224))
    shape, sign, page = blank.copy(), blank.copy(), blank.copy()
    ImageDraw.Draw(shape).ellipse((side // 3, side // 3, side // 2, side // 2), fill=(200, 30, 30))
    ImageDraw.Draw(sign).rectangle((side // 6, side // 3, side * 5 // 6, side * 2 // 3), fill=(20, 90, 40))
    ImageDraw.Draw(sign).text(
        (side // 4, side * 2 // 5), "EXIT", fill="white", font=ImageFont.load_default(side / 5)
    )
    font = ImageFont.load_default(18)
    for y in range(12, side - 24, 24):
        words = ["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 9))) for _ in range(9)]
        ImageDraw.Draw(page).text((20, y), " ".join(words), fill=(20, 20, 20), font=font)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    coarse = random.integers(0, 256, (side // 8, side // 8, 3)).astype(np.uint8)
    return {
        "blank": blank,
        "gradient": Image.fromarray(np.repeat(np.tile(ramp, (side, 1))[..., None], 3, axis=2)),
        "one shape": shape,
        "sign": sign,
        "page of small print": page,
        "white noise": Image.fromarray(random.integers(0, 256, (side, side, 3)).astype(np.uint8)),
        "grey noise": Image.fromarray(random.integers(0, 256, (side, side)).astype(np.uint8)).convert("RGB"),
        "blocky noise": Image.fromarray(coarse).resize((side, side), Image.Resampling.NEAREST),
    }


# ---- robustness -----------------------------------------------------------------------------------------


def _sized(factor: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        return image.resize(size, Image.Resampling.BICUBIC)

    return change


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        content = io.BytesIO()
        image.save(content, "JPEG", quality=quality)
        return Image.open(content).convert("RGB")

    return change


CHANGES: dict[str, Callable[[Image.Image], Any]] = {
    "as an array": np.asarray,
    **{f"{factor} times the size": _sized(factor) for factor in (0.5, 0.75, 1.5, 2, 3)},
    **{f"JPEG of quality {quality}": _jpeg(quality) for quality in (40, 60, 80, 95)},
    "mirrored": ImageOps.mirror,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "white border of 5%": lambda image: ImageOps.expand(image, round(0.05 * max(image.size)), "white"),
    "black border of 5%": lambda image: ImageOps.expand(image, round(0.05 * max(image.size)), "black"),
}


def robustness(data: Path, vision: VisionMeter, count: int) -> Iterator[dict[str, Any]]:
    """Rows: how much complexity moves, over pictures of all sets in turn."""
    paths = []
    for name in SETS:
        found = sorted((data / name / "images").glob("*"))
        paths += found[:: max(1, len(found) * len(SETS) // count)][: count // len(SETS)]
    images = [open_image(path) for path in paths]
    before = np.array([one.complexity for one in vision.score(images)])
    for name, change in CHANGES.items():
        after = np.array([one.complexity for image in images for one in vision.score([change(image)])])
        moved = after - before
        yield {
            "change": name,
            "pictures": len(images),
            "mean move": moved.mean(),
            "mean size of move": np.abs(moved).mean(),
            "90% move less than": np.percentile(np.abs(moved), 90),
            "most": np.abs(moved).max(),
            "Spearman": spearmanr(before, after)[0],
        }


# ---- speaking -------------------------------------------------------------------------------------------


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table; numbers with two digits."""
    names = list(rows[0])
    lines = [" | ".join(names), "|".join("--" if isinstance(rows[0][n], str) else "--:" for n in names)]
    for row in rows:
        cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "--" not in line else f"|{line}|" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="m3-tiny")
    parser.add_argument("--scorers", default=",".join(SCORERS), help="default: %(default)s")
    parser.add_argument("--robust", type=int, default=0, metavar="N", help="measure it on N pictures")
    parser.add_argument("--out", type=Path, help="also write the tables into this file")
    options = parser.parse_args()
    start = time.perf_counter()
    vision = load_model(options.model).vision_meter
    tables = [
        ("Spearman with people", agreement(options.data, scorers(options.scorers.split(","), vision))),
        ("Levels", levels(options.data, vision)),
    ]
    if options.robust:
        tables.append(("The same picture changed", robustness(options.data, vision, options.robust)))
    said = []
    for title, rows in tables:
        said.append(f"## {title}\n\n{markdown(list(rows))}\n")
        sys.stdout.write(f"{said[-1]}\n")
        sys.stdout.flush()
    sys.stderr.write(f"{time.perf_counter() - start:.0f} s\n")
    if options.out:
        options.out.write_text("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
