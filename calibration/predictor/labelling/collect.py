"""Run the oracle over a source and keep what it says, with each image's features: the labels of a predictor.

Where the model has a vision tower, each image's vision score is kept too. Of a source that asks nothing it is
all that is kept. What a folder of labels looks like stands in collection.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from m3score.calibration.predictor.labelling.collection import VISION_COLUMNS, Collection
from m3score.calibration.predictor.labelling.sources import (
    Assorted,
    Drawn,
    Item,
    Source,
    VariedDrawings,
    split_key,
)
from m3score.common.errors import M3ScoreError, image_failure
from m3score.data.loader import Opened, opened_ahead
from m3score.images.given import ImageSource
from m3score.models.base import LadderAnswerer
from m3score.models.m3.config import M3Config
from m3score.models.vision.prepare import Prepared
from m3score.models.vision.prepare import prepare as prepare_to_look
from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES, image_features
from m3score.routing.target import Target
from m3score.scoring.base import BLOCK_BATCHES, batches_within_blocks
from m3score.scoring.scorers.model_stream import RankedImage, images_at_once, rank_opened

IMAGES_PER_SHARD = 128
SECONDS_PER_SHARD = 60.0
"""After so long a shard is written even if it is not full: what a killed run loses at most."""
FEATURE_SETS = ("pixels", "vision")


def collect(
    source: Source,
    answerer: LadderAnswerer,
    folder: str | os.PathLike[str],
    *,
    fingerprint: str,
    limit: int | None = None,
    feature_set: str = "pixels",
    batch_size: int | Literal["auto"] = "auto",
    max_new_tokens: int = 32,
    per_shard: int = IMAGES_PER_SHARD,
    workers: int | None = None,
    overwrite: bool = False,
    anew: str = "--overwrite",
    vision: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Collection:
    """Ask the model about every image of a source at every scale; keep traces, features and vision scores.

    Args:
        source: what to ask about.
        answerer: the model; for the feature set "vision" it needs `vision_features`, for vision scores a
            `vision_meter`.
        folder: where the collection is, or is to be. One that was begun goes on after its last shard.
        fingerprint: hash of the model's weights.
        limit: stop after so many images of the source, those of earlier runs included.
        feature_set: "pixels" (features.image_features) or "vision" (vision_features.py).
        batch_size, max_new_tokens: as in rank_stream.
        per_shard: images to a shard.
        workers: threads that decode and preprocess images ahead of the model, and take the features of
            their pixels; by default one per CPU, at most 8.
        overwrite: begin anew, whatever is in the folder.
        anew: the option that says so to the command, for messages.
        vision: keep vision scores, where the model has a vision tower.
        progress: called with a number of images that are done, those of earlier runs first.

    Returns:
        The collection. An image that can't be read is a row with its error. Interrupted by any exception,
        the images that were answered are kept as a short shard.

    Raises:
        M3ScoreError: a folder that holds labels of something else; a source without an end and no limit; a
            source that asks nothing, and a model without a vision tower; a source without an image that was
            answered or looked at, which leaves no folder.
    """
    _check(source, answerer, limit, feature_set)
    run = Collection(
        Path(folder),
        answerer.name,
        fingerprint,
        feature_set,
        FEATURE_VERSION,
        tuple(answerer.ladder),
        max_new_tokens,
        source.told,
        tuple(answerer.vision_feature_names if feature_set == "vision" else IMAGE_FEATURES),  # type: ignore[attr-defined]
        None if (target := Target.of(answerer)) is None else target.to_dict(),
    )
    run.begin(overwrite, anew)
    done = run.done()
    if progress and done:
        progress(len(done))
    pending = source.items(limit, done)
    size = images_at_once(answerer, batch_size)
    block = BLOCK_BATCHES * size
    threads = workers or min(8, os.cpu_count() or 1)
    asking = None if isinstance(source, Assorted) else max_new_tokens
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="m3score-open") as pool,
        closing(_looked_at(pending, answerer, pool, feature_set, size, threads, asking, vision)) as results,
    ):
        shard: list[tuple[_Looked, RankedImage]] = []
        begun = time.monotonic()
        try:
            for looked, result in results:
                shard.append((looked, result))
                if progress:
                    progress(1)
                # Whole blocks, so that whoever goes on here puts the same images together.
                late = time.monotonic() - begun > SECONDS_PER_SHARD and len(shard) % block == 0
                if len(shard) == per_shard or late:
                    _write(run, shard)
                    shard, begun = [], time.monotonic()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if shard:
                _write(run, shard)
    if run.empty():
        raise _taken_back(run, source)
    return run


def _taken_back(run: Collection, source: Source) -> M3ScoreError:
    """Remove a collection without an answer, so that a corrected command can begin; say why it has none."""
    names = source.told["source"]
    named = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    traces = run.traces()
    run.take_back()
    if not len(traces):
        return M3ScoreError(f"{named}: no images found.")
    first = traces.iloc[0]
    return M3ScoreError(f"{named}: none of its images was answered ({first['image']}: {first['error']}).")


def _check(source: Source, answerer: LadderAnswerer, limit: int | None, feature_set: str) -> None:
    if feature_set not in FEATURE_SETS:
        raise M3ScoreError(f"unknown feature set {feature_set!r}; allowed: {', '.join(FEATURE_SETS)}.")
    if limit is None and isinstance(source, Drawn | VariedDrawings | Assorted):
        raise M3ScoreError("drawn images have no end: --limit has to say how many.")
    if feature_set == "vision" and not hasattr(answerer, "vision_features"):
        raise M3ScoreError(f"--features vision needs a model with vision features; {answerer.name} has none.")
    if isinstance(source, Assorted) and not hasattr(answerer, "vision_score"):
        raise M3ScoreError(f"assorted drawings are for a vision tower to look at; {answerer.name} has none.")


def _write(run: Collection, shard: list[tuple[_Looked, RankedImage]]) -> None:
    images = [
        {
            "image": looked.item.name,
            "key": looked.key,
            "values": looked.values if result.error is None else None,
            **dict(zip(VISION_COLUMNS, looked.seen, strict=True)),
        }
        for looked, result in shard
    ]
    answers = [
        row for _, result in shard if result.trace or result.error is not None for row in result.trace_rows()
    ]
    run.add(images, answers)


@dataclass
class _Looked:
    """An item on its way to the model, and what was found out about it meanwhile."""

    item: Item
    key: str = ""
    values: np.ndarray | None = None
    """Its features; None if they can't be had, or not yet."""
    prepared: Prepared | None = None
    """The picture as the vision tower wants it, until its score is known."""
    seen: tuple[float | None, float | None] = (None, None)
    """Its distinct tokens and reading tokens, where the tower has looked."""

    @property
    def content(self) -> bytes | None:
        """The encoded image, where it is in memory."""
        return self.item.source if isinstance(self.item.source, bytes) else None

    def open(self, prepare: Callable[[Any], Any] | None, pixels: bool, looks: M3Config | None) -> Opened:
        """In a worker: the image as the model wants it; with the key and, if wanted, the pixels' features and
        what the vision tower of a model so configured looks at."""
        self.key = split_key(self.item.source, self.item.name)
        opened = self.item.open()
        if opened.image is None:
            return opened
        try:
            if pixels:
                self.values = pixel_features(self.item.source)
            if looks is not None and isinstance(opened.image, Image.Image):  # a video has no vision score
                self.prepared = prepare_to_look(opened.image, looks)
            return replace(opened, image=prepare(opened.image)) if prepare else opened
        except Exception as error:
            return replace(opened, image=None, error=image_failure(error, "can't be used").reason)


def _looked_at(
    pending: Iterator[Item],
    answerer: Any,
    pool: ThreadPoolExecutor,
    feature_set: str,
    size: int,
    threads: int,
    max_new_tokens: int | None,
    vision: bool,
) -> Generator[tuple[_Looked, RankedImage], None, None]:
    """Items with their features, their vision score and what the model said, in order; max_new_tokens None:
    nothing is asked."""
    prepare = getattr(answerer, "tiles", None)  # a model that preprocesses images lets the workers do it
    looks = answerer.vision_shape if vision and hasattr(answerer, "vision_score") else None
    passed: list[_Looked] = []

    def started() -> Iterator[_Looked]:
        for item in pending:
            passed.append(looked := _Looked(item))
            yield looked

    def open_one(looked: _Looked) -> Opened:
        return looked.open(prepare, feature_set == "pixels", looks)

    opened = opened_ahead(started(), open_one, pool, size + threads)
    if max_new_tokens is None:
        results: Iterator[RankedImage] = _unasked(opened, size)
    else:
        results = rank_opened(opened, answerer, size, max_new_tokens)
    more = True
    while more:
        group: list[tuple[_Looked, RankedImage]] = []
        stopped: BaseException | None = None
        try:
            for result in islice(results, size):
                group.append((passed.pop(0), result))
        except BaseException as error:  # what was answered before is kept, whatever it is
            stopped = error
        _look(group, answerer, feature_set)
        yield from group
        if stopped is not None:
            raise stopped
        more = len(group) == size


def _look(group: Sequence[tuple[_Looked, RankedImage]], answerer: Any, feature_set: str) -> None:
    """What the vision tower sees in pictures that were answered: several at once."""
    fine = [looked for looked, result in group if result.error is None]
    if feature_set == "vision":
        for looked in fine:
            if looked.item.source is not None:
                looked.values = answerer.vision_features(looked.item.source)
    ready = [(looked, looked.prepared) for looked in fine if looked.prepared is not None]
    if ready:
        scores = answerer.vision_meter.score([prepared for _, prepared in ready])
        for (looked, _), score in zip(ready, scores, strict=True):
            looked.seen = (score.distinct_tokens, score.reading_tokens)
    for looked, _ in group:
        looked.prepared = None


def _unasked(opened: Iterator[Opened], size: int) -> Iterator[RankedImage]:
    """What rank_opened gives, of images that nothing is asked about."""
    for batch in batches_within_blocks(opened, size):
        for one in batch:
            width, height = one.image.size if one.image else (None, None)
            yield RankedImage(one.path, None, (), one.error, width, height)


def pixel_features(source: ImageSource | None) -> np.ndarray | None:
    """image_features, or None for an image that can't be read: its trace says why."""
    try:
        return None if source is None else image_features(source)
    except M3ScoreError:
        return None
