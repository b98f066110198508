"""A collection: a folder with what a model said about images, with their features. The labels of a predictor.

`collection.json` says what it is of; `traces-NNNNN.parquet` with `features-NNNNN.parquet` hold some images
each. Every file is written whole, the traces of a shard last, so that a run that was killed goes on where it
stopped and loses one shard at most. Knows files, no models; collect.py fills it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError
from m3score.tables.io import read_traces, read_whole, write_traces, write_whole
from m3score.tables.schema import TRACE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "collection.json"
FORMAT = 1


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
    target: dict[str, Any] | None = None
    """How the model is told its budgets, see routing.target; None for an M3 model."""

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
        """Columns image, key (equal for copies of an image), values (float32 features, None if failed),
        distinct_tokens and reading_tokens (of the scorer `vision`; NaN where the tower did not look)."""
        import pandas as pd

        frames = [read_features(path) for _, path in self.shards()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_FEATURE_COLUMNS)

    def done(self) -> set[str]:
        """Names of the images that are in complete shards."""
        return {name for _, path in self.shards() for name in read_features(path)["image"]}

    def add(self, images: Sequence[Mapping[str, Any]], traces: Sequence[Mapping[str, Any]]) -> None:
        """Write a shard: rows of the columns of `features`, and rows of a trace table."""
        number = 1 + max((int(path.stem.partition("-")[2]) for path, _ in self.shards()), default=-1)
        write_features(self.folder / f"features-{number:05d}.parquet", images)
        write_traces(traces, self.folder / f"traces-{number:05d}.parquet")

    def begin(self, overwrite: bool, anew: str = "--overwrite") -> None:
        """Make the folder, or check that what is in it is a part of the same collection.

        Args:
            overwrite: begin anew, whatever is in the folder.
            anew: the option that says so to the command, for messages.
        """
        path = self.folder / MANIFEST
        if path.is_file() and not overwrite:
            held, wanted = _read_manifest(path), self.to_dict()
            different = [name for name in wanted if held.get(name) != wanted[name]]
            if different and not self.empty():  # one that holds nothing is no loss
                raise M3ScoreError(
                    f"{self.folder}: holds labels of another run ({', '.join(different)} differ); give "
                    f"another --work folder, or {anew}."
                )
            if not different:
                return
            overwrite = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise M3ScoreError(f"{self.folder}: can't be made ({error.strerror or error}).") from None
        for old in [*self.folder.glob("traces-*.parquet"), *self.folder.glob("features-*.parquet")]:
            if not overwrite:
                raise M3ScoreError(
                    f"{self.folder}: has {old.name} but no {MANIFEST}; give another --work folder."
                )
            old.unlink()
        write_whole(path, json.dumps(self.to_dict(), indent=2).encode())

    def empty(self) -> bool:
        """Whether the model has neither answered about any image nor looked at one."""
        return not any(
            read_traces(path)["tokens"].notna().any()
            or read_features(features)[VISION_COLUMNS[0]].notna().any()
            for path, features in self.shards()
        )

    def take_back(self) -> None:
        """Remove what the collection wrote, and its folder if nothing else is in it."""
        for path in [path for shard in self.shards() for path in shard]:
            path.unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        with suppress(OSError):  # something else is in it
            self.folder.rmdir()

    def shards(self) -> list[tuple[Path, Path]]:
        """(traces, features) of the complete shards: traces are written last."""
        found = sorted(self.folder.glob("traces-*.parquet"))
        return [(path, path.with_name(path.name.replace("traces", "features"))) for path in found]


# ---- files ----------------------------------------------------------------------------------------------

VISION_COLUMNS = ("distinct_tokens", "reading_tokens")
"""What the scorer `vision` says; older collections lack them."""
_FEATURE_COLUMNS = ["image", "key", "values", *VISION_COLUMNS]


def write_features(path: Path, rows: Sequence[Mapping[Any, Any]]) -> None:
    """Write rows of the columns of Collection.features as the features of one shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.string(), pa.list_(pa.float32()), pa.float64(), pa.float64())
    columns = {
        name: pa.array([row[name] for row in rows], kind)
        for name, kind in zip(_FEATURE_COLUMNS, kinds, strict=True)
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
    if list(frame.columns) == _FEATURE_COLUMNS[: -len(VISION_COLUMNS)]:
        frame[list(VISION_COLUMNS)] = float("nan")
    if list(frame.columns) != _FEATURE_COLUMNS:
        raise M3ScoreError(f"{path}: features need the columns {', '.join(_FEATURE_COLUMNS)}.")
    return frame


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
            target=held.get("target"),
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
