"""Data sets of the `datasets` library: on the Hugging Face hub, saved on disk, folders of parquet files.

Images are not decoded here (and so not twice): rows give the bytes of the encoded image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError, first_line
from m3score.common.limits import MAX_EMBEDDED_BYTES
from m3score.data.item import Columns, ImageItem, ToFetch
from m3score.data.sources.parquet import chosen_columns, row_image
from m3score.data.sources.remote import placed

_SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
"""Files that lie together in a saved data set with splits, and in one without. (One of them alone may be
anybody's.)"""


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder that `save_to_disk` of the datasets library wrote."""
    return any(all((Path(path) / name).is_file() for name in names) for names in _SAVED)


@dataclass(frozen=True)
class DataSet:
    """One split of a data set. Nothing is loaded before it is needed.

    Args:
        name: a hub id, a folder that save_to_disk wrote, or a folder that load_dataset understands.
        split: needed where there are several.
        columns: which hold the image, and maybe questions and answers; see rows.chosen_columns.
        streaming: read rows from where they lie, without a copy in the library's cache.
        config: which configuration of a hub data set, where there are several.
        max_bytes: an encoded image of more bytes is an error.
    """

    name: str
    split: str | None = None
    columns: Columns = field(default_factory=Columns)
    streaming: bool = False
    config: str | None = None
    max_bytes: int = MAX_EMBEDDED_BYTES

    def check(self) -> None:
        """M3ScoreError, with what is allowed, if there is no such data set, split or column."""
        self._loaded  # noqa: B018

    @property
    def told(self) -> dict[str, Any]:
        """What identifies the rows, ready for JSON."""
        chosen = self._loaded[2]
        columns = {"image": chosen.image, "question": chosen.question, "answers": chosen.answers}
        return {"source": self._loaded[1], "columns": columns}

    def count(self) -> int | None:
        """How many rows there are; None if that is not known before they were read."""
        rows, _, _ = self._loaded
        if hasattr(rows, "__len__"):
            return len(rows)
        splits = getattr(rows.info, "splits", None) or {}
        known = splits.get(str(rows.split)) if rows.split is not None else None
        return getattr(known, "num_examples", None) or None

    def images(self) -> Iterator[ImageItem | ToFetch]:
        """Rows as inputs called NAME/INDEX, or NAME/SPLIT/INDEX where there are splits."""
        rows, name, columns = self._loaded
        index = 0
        try:
            for row in rows:
                yield self._placed(name, index, row, columns)
                index += 1
        except Exception as error:  # the library, the hub and the network raise dozens of kinds
            reason = f"the data set can't be read from this row on ({first_line(error)})"
            yield ImageItem(f"{name}/{index}", str(index), reason)

    def holds(self, path: str) -> bool:
        """Whether a row of this data set may be called so."""
        name = self._loaded[1]
        return path.startswith(f"{name}/") and path[len(name) + 1 :].isdecimal()

    def some(self, paths: Iterable[str], *, called: str | None = None) -> Iterator[ImageItem | ToFetch]:
        """The rows of these names, in the data set's order.

        Args:
            paths: as images() calls them; of others there may be none, or some too many.
            called: what a table calls this data set, if not by its name.

        Raises:
            M3ScoreError: the data set comes over the network row by row: it would all be fetched again.
        """
        rows, name, columns = self._loaded
        if called is not None:
            name = f"{called}{name.removeprefix(self.name)}"
        wanted = sorted({int(path[len(name) + 1 :]) for path in paths})
        if hasattr(rows, "__len__"):
            chosen = ((index, rows[index]) for index in wanted if index < len(rows))
        elif os.path.exists(self.name):
            places = set(wanted)
            chosen = ((i, row) for i, row in enumerate(islice(rows, wanted[-1] + 1)) if i in places)
        else:
            raise M3ScoreError("in a data set that is streamed, and is not fetched a second time")
        for index, row in chosen:
            yield self._placed(name, index, row, columns)

    def _placed(self, name: str, index: int, row: Mapping[str, Any], columns: Columns) -> ImageItem | ToFetch:
        found, where = row_image(f"{name}/{index}", str(index), row, columns, self.max_bytes)
        return placed(found, where, max_bytes=self.max_bytes)

    @cached_property
    def _loaded(self) -> tuple[Any, str, Columns]:
        """(rows, what they are called, the columns to read)."""
        try:
            rows = self._load()
        except M3ScoreError:
            raise
        except Exception as error:  # as in images
            raise M3ScoreError(f"{self.name}: can't be loaded as a data set ({first_line(error)}).") from None
        name = self.name
        if isinstance(rows, Mapping):
            split = self.split
            if split is None and len(rows) == 1:
                split = next(iter(rows))
            if split not in rows:
                other = "" if split is None else f", not {split!r}"
                raise M3ScoreError(f"{name}: --split has to be one of {', '.join(rows)}{other}.")
            rows, name = rows[split], f"{name}/{split}"
        elif self.split is not None:
            raise M3ScoreError(f"{name}: has no splits, so --split {self.split} makes no sense.")
        return _prepared(rows, name, self.columns)

    def _load(self) -> Any:
        import datasets

        if is_saved(self.name):
            return datasets.load_from_disk(self.name)
        # What lies on this machine is read where it lies: the library's cache would be a second copy of it.
        streaming = self.streaming or os.path.exists(self.name)
        return datasets.load_dataset(self.name, self.config, streaming=streaming)


def _prepared(rows: Any, name: str, wanted: Columns) -> tuple[Any, str, Columns]:
    """Rows with the columns that are needed, their images left as they are."""
    import datasets

    if rows.features is None and hasattr(rows, "_resolve_features"):  # a stream's are known by its first rows
        rows = rows._resolve_features()
    features = rows.features or {}
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    images += [c for c, kind in features.items() if getattr(kind, "dtype", "") in ("binary", "large_binary")]
    chosen = chosen_columns(name, list(features), images, wanted)
    rows = rows.select_columns([column for column in vars(chosen).values() if column is not None])
    if isinstance(features[chosen.image], datasets.Image):
        rows = rows.cast_column(chosen.image, datasets.Image(decode=False))
    return rows, name, chosen
