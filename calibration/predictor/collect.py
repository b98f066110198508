"""Run the oracle over a source and keep what it says, with each image's features: the labels of a predictor.

A collection is a folder: `collection.json` says what it is of, and `traces-NNNNN.parquet` with
`features-NNNNN.parquet` hold some images each. Every file is written whole, the traces of a shard last, so
that a run that was killed goes on where it stopped and loses one shard at most.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from m3score.calibration.predictor.sources import Drawn, Item, Source, VariedDrawings, split_key
from m3score.common.errors import M3ScoreError, image_failure
from m3score.data.loader import Opened, opened_ahead
from m3score.images.given import ImageSource
from m3score.models.base import LadderAnswerer
from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES, image_features
from m3score.scoring.base import BLOCK_BATCHES
from m3score.scoring.scorers.model_stream import RankedImage, images_at_once, rank_opened
from m3score.tables.io import read_traces, read_whole, write_traces, write_whole
from m3score.tables.schema import TRACE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "collection.json"
FORMAT = 1
IMAGES_PER_SHARD = 128
SECONDS_PER_SHARD = 60.0
"""After so long a shard is written even if it is not full: what a killed run loses at most."""
FEATURE_SETS = ("pixels", "vision")


@dataclass(frozen=True)
class Collection:
    """What a folder of labels holds."""

    folder: Path
    model: str
    fingerprint: str
    """Of the model's weights; see m3score.models.fingerprint."""
    feature_set: str
    feature_version: int
    ladder: tuple[int, ...]
    max_new_tokens: int
    told: dict[str, Any]
    """What the source says of itself."""
    feature_names: tuple[str, ...]

    @property
    def frames(self) -> int | None:
        """Of videos: of how many frames each had a grid of tokens; None for six frames as one picture."""
        return self.told.get("frames")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields but for the folder."""
        fields = {name: value for name, value in self.__dict__.items() if name not in ("folder", "told")}
        lists = {"ladder": list(self.ladder), "feature_names": list(self.feature_names)}
        return {"format": FORMAT, **fields, **lists, "source": self.told}

    def traces(self) -> pd.DataFrame:
        """The trace table of all complete shards; an image without a trace is a row with its error."""
        import pandas as pd

        frames = [read_traces(path) for path, _ in self.shards()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=TRACE_COLUMNS)

    def features(self) -> pd.DataFrame:
        """Columns image, key (equal for copies of an image) and values (float32 features, None if failed)."""
        import pandas as pd

        frames = [read_features(path) for _, path in self.shards()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_FEATURE_COLUMNS)

    def done(self) -> set[str]:
        """Names of the images that are in complete shards."""
        return {name for _, path in self.shards() for name in read_features(path)["image"]}

    def answered(self) -> bool:
        """Whether the model has answered about any image."""
        return any(read_traces(path)["tokens"].notna().any() for path, _ in self.shards())

    def shards(self) -> list[tuple[Path, Path]]:
        """Files, (traces, features), of the complete shards: traces are written last."""
        found = sorted(self.folder.glob("traces-*.parquet"))
        return [(path, path.with_name(path.name.replace("traces", "features"))) for path in found]


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
    progress: Callable[[int], None] | None = None,
) -> Collection:
    """Ask the model about every image of a source at every scale, and keep traces and features.

    Args:
        source: what to ask about.
        answerer: the model; for the feature set "vision" it needs `vision_features`.
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
        progress: called with a number of images that are done, those of earlier runs first.

    Returns:
        The collection. An image that can't be read is a row with its error. Interrupted by any exception,
        the images that were answered are kept as a short shard.

    Raises:
        M3ScoreError: a folder that holds labels of something else; a source without an end and no limit; one
            without an image that was answered, which leaves no folder.
    """
    if feature_set not in FEATURE_SETS:
        raise M3ScoreError(f"unknown feature set {feature_set!r}; allowed: {', '.join(FEATURE_SETS)}.")
    if limit is None and isinstance(source, Drawn | VariedDrawings):
        raise M3ScoreError("drawn images have no end: --limit has to say how many.")
    if feature_set == "vision" and not hasattr(answerer, "vision_features"):
        raise M3ScoreError(f"--features vision needs a model with vision features; {answerer.name} has none.")
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
    )
    _begin(run, overwrite, anew)
    done = run.done()
    if progress and done:
        progress(len(done))
    pending = source.items(limit, done)
    size = images_at_once(answerer, batch_size)
    block = BLOCK_BATCHES * size
    threads = workers or min(8, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="m3score-open") as pool,
        closing(_answered(pending, answerer, pool, feature_set, size, threads, max_new_tokens)) as results,
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
                    _write_shard(run, shard)
                    shard, begun = [], time.monotonic()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if shard:
                _write_shard(run, shard)
    if not run.answered():
        raise _taken_back(run, source)
    return run


def _taken_back(run: Collection, source: Source) -> M3ScoreError:
    """Remove a collection without an answer, so that a corrected command can begin; say why it has none."""
    names = source.told["source"]
    named = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    traces = run.traces()
    for path in [path for shard in run.shards() for path in shard]:
        path.unlink(missing_ok=True)
    (run.folder / MANIFEST).unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        run.folder.rmdir()
    if not len(traces):
        return M3ScoreError(f"{named}: no images found.")
    first = traces.iloc[0]
    return M3ScoreError(f"{named}: none of its images was answered ({first['image']}: {first['error']}).")


@dataclass
class _Looked:
    """An item on its way to the model, and what workers found out about it meanwhile."""

    item: Item
    key: str = ""
    values: np.ndarray | None = None
    """Its features; None if they can't be had, or not yet."""

    @property
    def content(self) -> bytes | None:
        """The encoded image, where it is in memory."""
        return self.item.source if isinstance(self.item.source, bytes) else None

    def open(self, prepare: Callable[[Any], Any] | None, pixels: bool) -> Opened:
        """In a worker: the image as the model wants it; with the key and, if wanted, the pixels' features."""
        self.key = split_key(self.item.source, self.item.name)
        opened = self.item.open()
        if opened.image is None:
            return opened
        try:
            if pixels:
                self.values = pixel_features(self.item.source)
            return replace(opened, image=prepare(opened.image)) if prepare else opened
        except Exception as error:
            return replace(opened, image=None, error=image_failure(error, "can't be used").reason)


def _answered(
    pending: Iterator[Item],
    answerer: Any,
    pool: ThreadPoolExecutor,
    feature_set: str,
    size: int,
    threads: int,
    max_new_tokens: int,
) -> Generator[tuple[_Looked, RankedImage], None, None]:
    """Items with their features and what the model said, in order."""
    prepare = getattr(answerer, "tiles", None)  # a model that preprocesses images lets the workers do it
    passed: list[_Looked] = []

    def looked_at() -> Iterator[_Looked]:
        for item in pending:
            passed.append(looked := _Looked(item))
            yield looked

    def open_one(looked: _Looked) -> Opened:
        return looked.open(prepare, feature_set == "pixels")

    opened = opened_ahead(looked_at(), open_one, pool, size + threads)
    for result in rank_opened(opened, answerer, size, max_new_tokens):
        looked = passed.pop(0)
        if feature_set == "vision" and result.error is None and looked.item.source is not None:
            looked.values = answerer.vision_features(looked.item.source)
        yield looked, result


def pixel_features(source: ImageSource | None) -> np.ndarray | None:
    """image_features, or None for an image that can't be read: its trace says why."""
    try:
        return None if source is None else image_features(source)
    except M3ScoreError:
        return None


# ---- files --------------------------------------------------------------------------------------------

_FEATURE_COLUMNS = ["image", "key", "values"]


def _write_shard(run: Collection, shard: list[tuple[_Looked, RankedImage]]) -> None:
    number = 1 + max((int(path.stem.partition("-")[2]) for path, _ in run.shards()), default=-1)
    rows = [
        {
            "image": looked.item.name,
            "key": looked.key,
            "values": looked.values if result.error is None else None,
        }
        for looked, result in shard
    ]
    write_features(run.folder / f"features-{number:05d}.parquet", rows)
    answers = [row for _, result in shard for row in result.trace_rows()]
    write_traces(answers, run.folder / f"traces-{number:05d}.parquet")


def write_features(path: Path, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Write rows of image, key and values (see Collection.features) as a shard's features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "image": pa.array([row["image"] for row in rows], pa.string()),
        "key": pa.array([row["key"] for row in rows], pa.string()),
        "values": pa.array([row["values"] for row in rows], pa.list_(pa.float32())),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    write_whole(path, buffer.getvalue())


def read_features(path: Path) -> pd.DataFrame:
    """The features of one shard; M3ScoreError for a file that is none."""
    import pandas as pd

    try:
        frame = pd.read_parquet(io.BytesIO(read_whole(path)))
    except (OSError, ValueError) as error:
        raise M3ScoreError(f"{path}: not a table of features ({error}).") from None
    if list(frame.columns) != _FEATURE_COLUMNS:
        raise M3ScoreError(f"{path}: features need the columns {', '.join(_FEATURE_COLUMNS)}.")
    return frame


def _begin(run: Collection, overwrite: bool, anew: str) -> None:
    """Make the folder, or check that what is in it is a part of the same collection."""
    path = run.folder / MANIFEST
    if path.is_file() and not overwrite:
        held, wanted = _read_manifest(path), run.to_dict()
        different = [name for name in wanted if held.get(name) != wanted[name]]
        if different and run.answered():  # one that holds no answer is no loss
            raise M3ScoreError(
                f"{run.folder}: holds labels of another run ({', '.join(different)} differ); give another "
                f"--work folder, or {anew}."
            )
        if not different:
            return
        overwrite = True
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M3ScoreError(f"{run.folder}: can't be made ({error.strerror or error}).") from None
    for old in [*run.folder.glob("traces-*.parquet"), *run.folder.glob("features-*.parquet")]:
        if not overwrite:
            raise M3ScoreError(f"{run.folder}: has {old.name} but no {MANIFEST}; give another --work folder.")
        old.unlink()
    write_whole(path, json.dumps(run.to_dict(), indent=2).encode())


def is_collection(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder is one that `collect` made."""
    return (Path(folder) / MANIFEST).is_file()


def open_collection(folder: str | os.PathLike[str]) -> Collection:
    """The collection in a folder, complete or not. M3ScoreError if there is none."""
    path = Path(folder)
    held = _read_manifest(path / MANIFEST)
    try:
        return Collection(
            folder=path,
            model=str(held["model"]),
            fingerprint=str(held["fingerprint"]),
            feature_set=str(held["feature_set"]),
            feature_version=int(held["feature_version"]),
            ladder=tuple(int(tokens) for tokens in held["ladder"]),
            max_new_tokens=int(held["max_new_tokens"]),
            told=dict(held["source"]),
            feature_names=tuple(str(name) for name in held["feature_names"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise M3ScoreError(f"{path / MANIFEST}: not a collection's description ({error}).") from None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(read_whole(path))
    except ValueError as error:
        raise M3ScoreError(f"{path}: not JSON ({error}).") from None
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise M3ScoreError(f"{path}: not a collection of format {FORMAT}; collect it anew.")
    return held
