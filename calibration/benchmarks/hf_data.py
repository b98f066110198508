"""Rows and images of a benchmark's data set, by the datasets library: from the hub or from a local copy.

Knows the layouts of data sets; does not know what a row becomes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m3score.calibration.benchmarks.tasks import Task
from m3score.common.errors import M3ScoreError, first_line, unreachable
from m3score.data.sources.hf_datasets import is_saved
from m3score.images.given import ImageSource


def with_presence(
    texts: Any, further: Mapping[str, Sequence[bool]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number the rows, and add to each which further images it has (True or None), by column."""
    for index, row in enumerate(texts):
        yield index, {**row, **{column: there[index] or None for column, there in further.items()}}


def present(rows: Any, column: str, task: Task) -> list[bool]:
    """Which rows have an image in a column."""
    return [row[column] is not None for row in undecoded_images(rows, column, task)]


def load_rows(task: Task, folder: Path | None, config: str | None) -> tuple[Any, str]:
    """The rows of a task's split, and where they are from.

    Args:
        task: the benchmark.
        folder: a local copy; None: the hub.
        config: the configuration of the data set.

    Raises:
        M3ScoreError: the data set can't be loaded, or lacks the split.
    """
    import datasets

    where = str(folder) if folder else task.hub
    try:
        if folder is None:
            return _from_hub(task, config)
        saved = next((p for p in (folder / str(config), folder) if is_saved(str(p))), None)
        if saved is not None:
            where = str(saved)
            loaded = datasets.load_from_disk(where)
        else:
            loaded = _snapshot(folder, config, task.split)
        if isinstance(loaded, Mapping):
            if task.split not in loaded:
                raise M3ScoreError(f"{where}: has no split {task.split!r}, only {', '.join(loaded)}.")
            loaded = loaded[task.split]
        return loaded, str(Path(where).resolve())
    except M3ScoreError:
        raise
    except Exception as error:  # the library and the hub raise a dozen kinds
        if folder is None and unreachable(error):
            raise M3ScoreError(
                f"{task.name}: the Hugging Face hub, where {where} is, can't be reached; put a copy of the "
                f"data set into FOLDER/{task.name} and give --data-dir FOLDER."
            ) from None
        reason = first_line(error)
        raise M3ScoreError(f"{task.name}: {where} can't be loaded as a data set ({reason}).") from None


def _from_hub(task: Task, config: str | None) -> tuple[Any, str]:
    """Load from the current or the former id; if both fail, raise the first failure."""
    import datasets

    first: Exception | None = None
    for hub in filter(None, (task.hub, task.hub_before)):
        try:
            return datasets.load_dataset(hub, config, split=task.split), f"{task.hub}:{task.split}"
        except Exception as error:  # as in _load
            first = first or error
            if unreachable(error):
                break
    raise first or M3ScoreError(f"{task.name}: is not on the hub.")


def _snapshot(folder: Path, config: str | None, split: str) -> Any:
    """Parquet files laid out as on the hub, found by the names of configuration and split."""
    import datasets

    found = sorted(folder.rglob("*.parquet"))
    named = [path for path in found if config and config in path.relative_to(folder).parts] or found
    chosen = [str(path) for path in named if path.name.startswith(f"{split}-") or path.stem == split]
    if not chosen:
        others = ", ".join(path.name for path in found[:3])
        raise M3ScoreError(
            f"{folder}: has neither a saved data set nor parquet files of the split {split!r} "
            f"({split}-*.parquet){f', but {others}' if others else ''}."
        )
    return datasets.Dataset.from_parquet(chosen)


def column_of(rows: Any, column: str, task: Task) -> Any:
    """A column; M3ScoreError, with the columns there are, if it is missing."""
    if column not in rows.column_names:
        raise M3ScoreError(f"{task.name}: no column {column!r}; there are {', '.join(rows.column_names)}.")
    return rows[column]


def undecoded_images(rows: Any, column: str, task: Task) -> Any:
    """The image column alone, as bytes, so that images are opened (and fail) one by one."""
    import datasets

    if column not in rows.column_names:
        raise M3ScoreError(f"{task.name}: no column {column!r}; there are {', '.join(rows.column_names)}.")
    kind, raw = rows.features[column], datasets.Image(decode=False)
    several = not isinstance(kind, datasets.Image) and hasattr(kind, "feature")
    if isinstance(kind, datasets.Image) or (several and isinstance(kind.feature, datasets.Image)):
        rows = rows.cast_column(column, type(kind)(raw) if several else raw)
    keep = [column, "id"] if "id" in rows.column_names and column != "id" else [column]
    return rows.select_columns(keep)


def image_of(value: Any) -> ImageSource | None:
    """The image in a cell: its bytes or path; of several images, the middle one."""
    if isinstance(value, list | tuple):
        value = value[len(value) // 2] if value else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return value
