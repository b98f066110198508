"""Labels from what is on disk: collections, or trace tables whose images are found by their names.

Features are those that were kept, or computed anew: for a trace table, and where m3score's features have
changed since the collection was made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np

from m3score.calibration.predictor.labelling.collect import pixel_features
from m3score.calibration.predictor.labelling.collection import (
    VISION_COLUMNS,
    Collection,
    is_collection,
    open_collection,
)
from m3score.calibration.predictor.labelling.sources import (
    ASSORTED,
    DRAWN,
    VARIED,
    image_named,
    questions_named,
    split_key,
)
from m3score.calibration.predictor.labels import Labels, join, label
from m3score.calibration.predictor.vision_score import FEWEST, VisionLabels, join_vision
from m3score.common.errors import M3ScoreError
from m3score.data.extract import Find, folder_of_table, opened_images
from m3score.images.given import ImageSource
from m3score.images.parallel import map_images
from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES
from m3score.tables.io import read_traces

logger = logging.getLogger(__name__)

Features = dict[str, tuple[str, "np.ndarray | None"]]
"""Of each image by name: its key, and its features or None."""


def labels_of(
    folders: Sequence[str | os.PathLike[str]], *, sufficiency: str = "auto", workers: int | None = None
) -> Labels:
    """The labels of one or several collections of the same model, but for those that nothing was asked about.

    Raises M3ScoreError where nothing was collected, or nothing asked.
    """
    parts = []
    for folder in folders:
        collection = open_collection(folder)
        if collection.told.get("source") == ASSORTED:
            continue
        traces = collection.traces()
        if not len(traces):
            raise M3ScoreError(f"{folder}: nothing was collected yet.")
        features = _features_of(collection, workers)
        name = called(collection)
        parts.append(label(traces, features, sufficiency=sufficiency, source=name, ladder=collection.ladder))
    if not parts:
        raise M3ScoreError(f"{folders[0]}: nothing was asked about its images: give labels with answers too.")
    return join(parts)


def vision_labels_of(
    folders: Sequence[str | os.PathLike[str]], workers: int | None = None
) -> VisionLabels | None:
    """The vision scores of the images of one or several collections; None where there are none.

    Drawings that questions are asked about count only where there are too few other pictures to fit to: they
    are of few kinds, and a regressor would learn those.
    """
    collections = [open_collection(folder) for folder in folders]
    others = [one for one in collections if one.told.get("source") not in (DRAWN, VARIED)]
    found = join_vision([_vision_labels(one, workers) for one in others])
    if len(others) == len(collections) or (found is not None and len(found) >= FEWEST):
        return found
    return join_vision([_vision_labels(one, workers) for one in collections])


def _vision_labels(collection: Collection, workers: int | None) -> VisionLabels:
    frame = collection.features()
    tokens = frame[list(VISION_COLUMNS)].astype(float).to_numpy()
    seen = dict(zip(frame["image"], map(tuple, tokens), strict=True))
    features = {
        name: (key, values)
        for name, (key, values) in _features_of(collection, workers).items()
        if values is not None and np.isfinite(seen[name]).all()
    }
    return VisionLabels.of(features, seen, called(collection))


def labels_of_traces(
    path: str | os.PathLike[str],
    feature_set: str,
    *,
    sufficiency: str = "auto",
    workers: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Labels:
    """The labels of a collection, or of a trace table whose images are where its column `image` says.

    Relative paths are looked for as data.extract.finder does, `root` last.

    Raises M3ScoreError for a trace table where the features are the model's own, and for drawn images that
    this version draws otherwise.
    """
    if os.path.isdir(path):
        if not is_collection(path):
            raise M3ScoreError(f"{path}: is a folder, but none that m3score calibrate made.")
        return labels_of([path], sufficiency=sufficiency, workers=workers)
    if feature_set != "pixels":
        raise M3ScoreError(
            f"{path}: a predictor on {feature_set} features needs a folder of labels that m3score calibrate "
            f"--features {feature_set} collected, not a trace table."
        )
    traces = read_traces(path)
    traced = traces[traces["tokens"].notna()]
    asked = traced.groupby("image", sort=False)["question"].agg(lambda texts: list(dict.fromkeys(texts)))
    texts_of = {str(name): list(texts) for name, texts in asked.items()}
    features = recomputed(texts_of, workers, folder_of_table(path), root)
    if features and all(values is None for _, values in features.values()):
        name = next(iter(features))
        raise M3ScoreError(
            f"{path}: none of its images is found, such as {name}; relative paths are looked for in the "
            "table's folder, in the working folder, and in --root."
        )
    return label(traces, features, sufficiency=sufficiency, source=os.fspath(path))


def recomputed(
    asked: dict[str, list[str]],
    workers: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Features:
    """The pixel features of images by their names.

    Args:
        asked: of each image, the questions in its trace: those of drawn images have to be drawn again.
        workers: as in map_images.
        folder, root: where images are; see data.extract.finder.
    """
    for name, questions in asked.items():
        drawn = questions_named(name)
        if drawn is not None and not set(questions) <= set(drawn):
            raise M3ScoreError(
                f"{name}: this version of m3score draws and asks otherwise than the one that made the traces."
            )
    names = list(asked)
    with opened_images(names, folder, root=root) as find:
        sources = [_source(name, find) for name in names]
        values = map_images(pixel_features, sources, workers)
        keys = (split_key(source, name) for source, name in zip(sources, names, strict=True))
        return {name: (key, value) for name, key, value in zip(names, keys, values, strict=True)}


def _source(name: str, find: Find) -> ImageSource:
    """The image that a trace calls `name`: drawn again, or its file or a copy of it, if there is one."""
    try:
        return find(name) if isinstance(drawn := image_named(name), str) else drawn
    except M3ScoreError:  # it lies in something that is gone
        return name


def _features_of(collection: Collection, workers: int | None) -> Features:
    frame = collection.features()
    stale = collection.feature_version != FEATURE_VERSION
    if collection.feature_set == "pixels" and (stale or collection.feature_names != IMAGE_FEATURES):
        logger.warning("%s: features of another version, computed anew", collection.folder)
        traces = collection.traces()
        asked: dict[str, list[str]] = {str(name): [] for name in frame["image"]}
        for name, texts in traces[traces["tokens"].notna()].groupby("image")["question"]:
            asked[str(name)] = list(texts)
        return recomputed(asked, workers)
    rows = zip(frame["image"], frame["key"], frame["values"], strict=True)
    return {
        str(name): (str(key), None if values is None else np.asarray(values, np.float32))
        for name, key, values in rows
    }


_CALLED = {DRAWN: "drawn images", VARIED: "varied drawings", ASSORTED: "assorted drawings"}
"""Collections of several seeds are of one kind."""


def called(collection: Collection) -> str:
    """What a collection's source is called in reports."""
    source = collection.told.get("source")
    if isinstance(source, str) and source in _CALLED:
        return _CALLED[source]
    names = source if isinstance(source, list) else [source]
    return ", ".join(os.path.basename(os.path.normpath(str(name))) for name in names)
