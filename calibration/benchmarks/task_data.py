"""The questions of a benchmark and their images: from the Hugging Face hub, from local copies, from a file.

A TaskSource is a source of collect.py, and knows of every question what its scores are grouped by. Image
bytes are read when their turn comes; texts are held.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from m3score.calibration.benchmarks.tasks import Asked, LeftOut, Task, asked_of, filled, own_question, tasks
from m3score.calibration.predictor.sources import Item
from m3score.common.errors import M3ScoreError, first_line, unreachable
from m3score.data.loader import Opened
from m3score.data.metrics import default_metric
from m3score.data.questions import Question, json_lines, read_questions
from m3score.data.sources.hf_datasets import is_saved
from m3score.images.decode import ImageSource
from m3score.images.sandbox import open_visual
from m3score.tables.io import read_whole

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif")


@dataclass(frozen=True)
class Entry:
    """One image of a task with its questions."""

    name: str
    """What tables call it: TASK and the row of its first question, or its path."""
    asked: tuple[Asked, ...]
    read: Callable[[], ImageSource | None]


@dataclass(frozen=True)
class TaskSource:
    """The images of a task, in the order of their first questions."""

    task: Task
    origin: str
    """Where the data came from."""
    entries: tuple[Entry, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many rows are not asked, by reason."""
    frames: int | None = None
    """Of videos: a grid of tokens for each of so many frames; None for six frames as one picture."""

    @property
    def told(self) -> dict[str, Any]:
        """What a collection is of."""
        asked = [(entry.name, [one.question.to_dict() for one in entry.asked]) for entry in self.entries]
        digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
        frames = {} if self.frames is None else {"frames": self.frames}
        return {"source": self.task.name, "data": self.origin, "questions": digest, **frames}

    def count(self) -> int:
        return len(self.entries)

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        for entry in islice(self.entries, limit):
            if entry.name in done:
                continue
            questions = tuple(one.question for one in entry.asked)
            try:
                source, error = entry.read(), None
            except (M3ScoreError, OSError) as problem:
                source, error = None, str(problem)
            yield Item(entry.name, source, partial(_open, entry.name, source, error, questions, self.frames))


def _open(
    name: str, source: ImageSource | None, error: str | None, questions: Any, frames: int | None
) -> Opened:
    try:
        if source is None:
            raise M3ScoreError(error or "no image in this row")
        return Opened(name, open_visual(source, frames), questions)
    except M3ScoreError as problem:
        return Opened(name, None, questions, error=str(problem))


def load_task(task: Task, data_dir: str | os.PathLike[str] | None = None) -> TaskSource:
    """The questions and images of a declared benchmark.

    Args:
        task: the benchmark.
        data_dir: a folder with a local copy, or with one folder per task. Its format is that of the hub's
            data set, as a snapshot (parquet) or as `Dataset.save_to_disk` writes it (a folder per
            configuration where there are several); or the task's own sheets with its videos beside them.

    Raises:
        M3ScoreError: no such data, or a column is missing.
    """
    folder = _folder(task, data_dir)
    if task.file:
        if folder is None:
            raise M3ScoreError(
                f"{task.name}: is not on the hub; put {', '.join(task.file)} (from {task.origin}) and the "
                f"videos ({task.path}) into a folder, and name it with --data-dir."
            )
        return _from_sheets(task, folder)
    return _from_data_set(task, folder)


def load_own(path: str | os.PathLike[str], metric: str | None, suffix: str | None) -> TaskSource:
    """A user's own task: a questions file (csv or jsonl, see read_questions) with images below its folder."""
    file = Path(path)
    name = re.sub(r"[^\w.-]+", "-", f"{file.resolve().parent.name}-{file.stem}")
    entries, left_out = [], Counter[str]()
    for image, questions in read_questions(file).items():
        where = image if os.path.isabs(image) else os.path.join(file.parent, image)
        asked = tuple(Asked(own_question(one, metric, suffix)) for one in questions if one.answers)
        left_out["no reference answer"] += len(questions) - len(asked)
        if asked:
            entries.append(Entry(where, asked, partial(_plain, where)))
    if not entries:
        raise M3ScoreError(f"{path}: no question has answers, so there is nothing to judge by.")
    task = Task(
        name, title=name, metric=metric or entries[0].asked[0].question.metric or "", max_new_tokens=32
    )
    return TaskSource(task, os.path.abspath(path), tuple(entries), +left_out)


def _plain(path: str) -> str:
    return path


def _metric(question: Question) -> str:
    return question.metric or default_metric(question.answers, question.options)


def _folder(task: Task, data_dir: str | os.PathLike[str] | None) -> Path | None:
    if data_dir is None:
        return None
    root = Path(data_dir)
    if not root.is_dir():
        raise M3ScoreError(f"--data-dir {root}: no such folder.")
    for name in filter(None, (task.name, task.variant_of)):
        if (root / name).is_dir():
            return root / name
    if others := [name for name in tasks() if (root / name).is_dir()]:
        raise M3ScoreError(f"--data-dir {root}: has no folder {task.name}, only {', '.join(others)}.")
    return root


def _entries(
    task: Task, rows: Iterator[tuple[int, Mapping[str, Any]]], read: Callable[..., Any], origin: str
) -> TaskSource:
    """Rows become questions; those about the same image go together."""
    grouped: dict[str, tuple[str, Callable[[], Any], list[Asked]]] = {}
    left_out = Counter[str]()
    for index, row in rows:
        try:
            asked = asked_of(task, row)
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        except M3ScoreError as error:
            raise M3ScoreError(f"{task.name}, row {index} of {origin}: {error}") from None
        key = str(row[task.same_image]) if task.same_image and task.same_image in row else str(index)
        grouped.setdefault(key, (f"{task.name}/{index}", partial(read, index, row), []))[2].append(asked)
    if not grouped:
        raise M3ScoreError(f"{task.name}: {origin} has no question that can be judged ({dict(left_out)}).")
    entries = tuple(Entry(name, tuple(asked), reader) for name, reader, asked in grouped.values())
    return TaskSource(task, origin, entries, left_out)


# ---- sheets of questions, with files beside them --------------------------------------------------------


def _from_sheets(task: Task, folder: Path) -> TaskSource:
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(task.file):
        kind = {"kind": task.kinds[number]} if task.kinds else {}
        path = next((p for p in (folder / name, folder / Path(name).name) if p.is_file()), folder / name)
        rows += [{**row, **kind} for row in _sheet(path)]
    rows = [{**row, "file": filled(task.path, row)} for row in rows]
    together = replace(task, same_image="file")

    def read(index: int, row: Mapping[str, Any]) -> str:
        return _media(folder / str(row["file"]))

    source = _entries(together, iter(enumerate(rows)), read, str(folder.resolve()))
    return TaskSource(task, source.origin, source.entries, source.left_out)


def _media(path: Path) -> str:
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in VIDEO_SUFFIXES)):
        if candidate.is_file():
            return str(candidate)
    raise M3ScoreError(f"{path}: no such file, nor one with a suffix of {', '.join(VIDEO_SUFFIXES)}")


def _sheet(path: Path) -> list[dict[str, Any]]:
    content = read_whole(path).decode("utf-8-sig", errors="replace")
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(content, newline="")))
        if path.suffix == ".jsonl":
            return [row for _, row in json_lines(content, str(path))]
        rows = json.loads(content)
    except (csv.Error, json.JSONDecodeError) as error:
        raise M3ScoreError(f"{path}: not a {path.suffix[1:]} file ({error}).") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise M3ScoreError(f"{path}: has to be a list of objects.")
    return rows


# ---- data sets of the datasets library --------------------------------------------------------------------


def _from_data_set(task: Task, folder: Path | None) -> TaskSource:
    rows, origin = _load(task, folder, task.config)
    if task.image_config:
        images, _ = _load(task, folder, task.image_config)
        images = _undecoded(images, task.image, task)
        places = {str(name): place for place, name in enumerate(_column(images, "id", task))}
        texts = rows

        def read(index: int, row: Mapping[str, Any]) -> ImageSource | None:
            place = places.get(str(row[task.image_id]))
            return None if place is None else _image(images[place][task.image])

    else:
        pictures = _undecoded(rows, task.image, task)
        hidden = {task.image, *task.more_images} & set(rows.column_names)
        texts = rows.remove_columns(sorted(hidden))
        further = {c: _present(rows, c, task) for c in task.more_images if c in rows.column_names}

        def read(index: int, row: Mapping[str, Any]) -> ImageSource | None:
            return _image(pictures[index][task.image])

        return _entries(task, _with(texts, further), read, origin)
    return _entries(task, iter(enumerate(texts)), read, origin)


def _with(texts: Any, further: Mapping[str, Sequence[bool]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, row in enumerate(texts):
        yield index, {**row, **{column: there[index] or None for column, there in further.items()}}


def _present(rows: Any, column: str, task: Task) -> list[bool]:
    """Which rows have an image in a column."""
    return [row[column] is not None for row in _undecoded(rows, column, task)]


def _load(task: Task, folder: Path | None, config: str | None) -> tuple[Any, str]:
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
    """From where the data set is, or was; of two failures the first is told."""
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
    """Parquet files as they lie on the hub, found by the names of configuration and split."""
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


def _column(rows: Any, column: str, task: Task) -> Any:
    if column not in rows.column_names:
        raise M3ScoreError(f"{task.name}: no column {column!r}; there are {', '.join(rows.column_names)}.")
    return rows[column]


def _undecoded(rows: Any, column: str, task: Task) -> Any:
    """The image column alone, as bytes: images are opened, and fail, one by one."""
    import datasets

    if column not in rows.column_names:
        raise M3ScoreError(f"{task.name}: no column {column!r}; there are {', '.join(rows.column_names)}.")
    kind, raw = rows.features[column], datasets.Image(decode=False)
    several = not isinstance(kind, datasets.Image) and hasattr(kind, "feature")
    if isinstance(kind, datasets.Image) or (several and isinstance(kind.feature, datasets.Image)):
        rows = rows.cast_column(column, type(kind)(raw) if several else raw)
    keep = [column, "id"] if "id" in rows.column_names and column != "id" else [column]
    return rows.select_columns(keep)


def _image(value: Any) -> ImageSource | None:
    if isinstance(value, list | tuple):
        value = value[len(value) // 2] if value else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return value
