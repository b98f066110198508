"""From sources to a predictor: ask about those that have no labels yet, fit, and write what was found.

Knows folders and files; each step has a module of its own. `m3score calibrate` is these calls.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from m3score.calibration.predictor.card import write_card
from m3score.calibration.predictor.fit import Fitted, fit_predictor
from m3score.calibration.predictor.frontier import write_csv, write_png
from m3score.calibration.predictor.judge import Verdict
from m3score.calibration.predictor.labelling.collect import collect
from m3score.calibration.predictor.labelling.collection import Collection, is_collection, open_collection
from m3score.calibration.predictor.labelling.gather import called, labels_of, vision_labels_of
from m3score.calibration.predictor.labelling.sources import ASSORTED, Assorted, Source, find_source
from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.models.base import LadderAnswerer
from m3score.routing.features.image import IMAGE_FEATURES
from m3score.routing.promises.certify import images_needed
from m3score.scoring.scorers.model_stream import check_frames
from m3score.tables.io import write_whole

Watch = Callable[[str, Path, Callable[[], "int | None"]], AbstractContextManager[Callable[[int], None]]]
"""Given what is asked about, where its labels lie and how to count its images: what to call with a number of
images that are done, while it is entered."""


@dataclass(frozen=True)
class CollectOptions:
    """How labels are collected; see collect."""

    limit: int | None = None
    feature_set: str = "pixels"
    max_new_tokens: int = 32
    batch_size: int | Literal["auto"] = "auto"
    workers: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class FitOptions:
    """How a predictor is fitted and certified; see fit_predictor and gather.labels_of."""

    shares: tuple[float, ...] = (0.6, 0.2, 0.2)
    sufficiency: str = "auto"
    max_drop: float = 0.02
    confidence: float = 0.95
    per: str = "image"
    seed: int = 0
    workers: int | None = None


# ---- labels ---------------------------------------------------------------------------------------------


def find_sources(names: Sequence[str], *, seed: int, **asked: Any) -> dict[str, Source | None]:
    """Where labels are to come from, by name; None for a folder of labels. See find_source."""
    return {
        name: None if is_collection(name) else find_source(name, seed=seed, **asked)
        for name in dict.fromkeys(names)
    }


def label_folders(found: Mapping[str, Source | None], work: Path) -> dict[str, Path]:
    """The folder of each source's labels: itself, `work`, or one below it where several are asked about."""
    alone = sum(source is not None for source in found.values()) == 1
    folders = {}
    for i, (name, source) in enumerate(found.items()):
        slug = re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.normpath(name)))
        folders[name] = Path(name) if source is None else work if alone else work / f"{i}-{slug}"
    return folders


def what_a_promise_needs(
    found: Mapping[str, Source | None], limit: int | None, options: FitOptions, *, anyway: bool = False
) -> str:
    """A sentence, before anything is asked: how many images it takes to certify something, and how many there
    are. M3ScoreError where there are too few, unless `anyway`."""
    needed = images_needed(options.max_drop, options.confidence)
    share = options.shares[1] / sum(options.shares)
    counts = {
        name: open_collection(name).traces()["image"].nunique() if source is None else _count(source, limit)
        for name, source in found.items()
        if not _unasked(name, source)
    }
    more = " (more where images have unequal numbers of questions)" if options.per == "question" else ""
    for name, number in counts.items():
        if number == 0:
            raise M3ScoreError(f"{name}: no images found.")
    promise = (
        f"A promise of at most {options.max_drop:.4g} lost per {options.per}, at confidence "
        f"{options.confidence:.4g}, needs at least {needed:,} calibration images{more}; with {share:.0%} of "
        f"the images for calibration that is {math.ceil(needed / share - 1e-9):,} in all."
    )
    known = [count for count in counts.values() if count is not None]
    if len(known) < len(counts):
        return f"{promise} How many there are shows when all are read."
    there = f"There are {sum(known):,}."
    if sum(known) * share >= needed:
        return f"{promise} {there}"
    if anyway:
        return f"{promise} {there} Nothing will be certified."
    least = -math.expm1(math.log1p(-options.confidence) / max(1, int(sum(known) * share)))
    raise M3ScoreError(
        f"{promise} {there} Give more images, or --max-drop {math.ceil(1000 * least) / 1000:g} or more; "
        "--anyway fits a predictor that promises nothing."
    )


def _unasked(name: str, source: Source | None) -> bool:
    """Whether nothing is asked about a source, or was about a folder of labels: assorted drawings."""
    if source is None:
        return bool(open_collection(name).told.get("source") == ASSORTED)
    return isinstance(source, Assorted)


def collect_labels(
    found: Mapping[str, Source | None],
    folders: Mapping[str, Path],
    answerer: LadderAnswerer,
    fingerprint: str,
    options: CollectOptions,
    watch: Watch,
) -> None:
    """Ask the model about the sources that have no labels yet. Interrupted, what was answered is kept."""
    pending = {name: source for name, source in found.items() if source is not None}
    for source in pending.values():
        check_frames(source.told.get("frames"), answerer)
    for name, source in pending.items():
        with watch(name, folders[name], partial(_count, source, options.limit)) as done:
            collect(
                source, answerer, folders[name], fingerprint=fingerprint, progress=done, **asdict(options)
            )


def _count(source: Source, limit: int | None) -> int | None:
    total = source.count()
    return limit if total is None else min(total, limit or total)


# ---- the predictor --------------------------------------------------------------------------------------


def fit_labels(
    folders: Sequence[Path],
    tests: Sequence[Path],
    options: FitOptions,
    say: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Fit a predictor to the labels in folders, certify it, and judge it on a part of them and on `tests`.

    `say` is called with what is being done. M3ScoreError where the labels do not belong together.
    """
    collections = [open_collection(folder) for folder in [*folders, *tests]]
    first = collections[0]
    for other in collections[1:]:
        _check_alike(first, other)
    labels = labels_of([*folders], sufficiency=options.sufficiency, workers=options.workers)
    further = {str(folder): labels_of([folder], sufficiency=options.sufficiency) for folder in tests}
    facts: dict[str, Any] = {"sufficiency": str(options.sufficiency)}
    if first.frames is not None:
        facts["frames"] = first.frames
    if first.target is not None:
        facts["target"] = first.target
    if seeds := _seeds(collections[: len(folders)]):
        facts["seeds"] = seeds
    return fit_predictor(
        labels,
        fingerprint=first.fingerprint,
        feature_set=first.feature_set,
        image_features=IMAGE_FEATURES if first.feature_set == "pixels" else first.feature_names,
        seed=options.seed,
        shares=options.shares,
        max_drop=options.max_drop,
        confidence=options.confidence,
        per=options.per,
        tests=further,
        vision=vision_labels_of(folders, options.workers),
        facts=facts,
        progress=say,
    )


def _seeds(collections: Sequence[Collection]) -> dict[str, list[int]]:
    """Of which seeds the drawings are, by what they are called."""
    seeds: dict[str, list[int]] = {}
    for one in collections:
        if "seed" in one.told:
            seeds.setdefault(called(one), []).append(one.told["seed"])
    return seeds


def _check_alike(first: Collection, other: Collection) -> None:
    for fact in ("fingerprint", "feature_set", "ladder", "target"):
        if getattr(other, fact) != getattr(first, fact):
            raise M3ScoreError(f"{other.folder} and {first.folder}: labels of another {fact}.")
    if other.frames != first.frames:
        raise M3ScoreError(
            f"{other.folder} and {first.folder}: labels of other --frames "
            f"({other.frames or 'none'} and {first.frames or 'none'})."
        )


def write_predictor(fitted: Fitted, out: Path, folder: Path, options: FitOptions, notes: str = "") -> str:
    """Write the predictor with its card, and a folder with the card, all figures and the frontier.

    Returns:
        What could not be written for want of a package, or "".
    """
    predictor = fitted.predictor
    card = write_card(fitted, options.confidence, options.max_drop, notes)
    replace(predictor, card=card).save(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{folder}: can't be made ({error.strerror or error}).") from None
    write_whole(folder / "card.md", card.encode())
    results = [verdict.to_dict() for verdict in fitted.verdicts]
    write_whole(folder / "results.json", json.dumps(results, indent=1).encode())
    return write_frontiers(fitted.verdicts, folder, f"{predictor.model}: accuracy against visual tokens")


def write_frontiers(verdicts: Sequence[Verdict], folder: Path, title: str) -> str:
    """frontier.csv and frontier.png of the first test set, frontier-2 ... of further ones.

    Returns what stood in the way of the pictures, or "".
    """
    missing = ""
    for number, verdict in enumerate(verdicts, start=1):
        stem = "frontier" if number == 1 else f"frontier-{number}"
        write_csv(verdict.curves, folder / f"{stem}.csv")
        try:
            named = f"{title} ({verdict.name})"
            write_png(verdict.curves, folder / f"{stem}.png", named, verdict.marks(), kept=not verdict.weak)
        except MissingExtraError as error:
            missing = str(error)
    return missing
