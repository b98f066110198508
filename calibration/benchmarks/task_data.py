"""The questions of a benchmark and their images: from the Hugging Face hub, from local copies, from a file.

A TaskSource is a source for collect.py, and knows the groups that each question's score belongs to. Texts are
held in memory; the bytes of an image are read when it is asked about.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from m3score.calibration.benchmarks.hf_data import (
    column_of,
    image_of,
    load_rows,
    present,
    undecoded_images,
    with_presence,
)
from m3score.calibration.benchmarks.tasks import (
    LeftOut,
    Task,
    TaskQuestion,
    filled,
    own_question,
    task_question,
    tasks,
)
from m3score.calibration.predictor.labelling.sources import Item
from m3score.common.errors import M3ScoreError
from m3score.data.loader import Opened
from m3score.data.metrics import default_metric
from m3score.data.questions import Question, read_questions
from m3score.images.given import ImageSource
from m3score.images.sandbox import open_visual
from m3score.tables.io import read_whole
from m3score.tables.json_lines import json_lines

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif")


@dataclass(frozen=True)
class Entry:
    """One image of a task with its questions."""

    name: str
    """Its name in tables: TASK/ROW of its first question, or its path."""
    questions: tuple[TaskQuestion, ...]
    read: Callable[[], ImageSource | None]


@dataclass(frozen=True)
class TaskSource:
    """The images of a task, in the order of their first questions."""

    task: Task
    origin: str
    """Where the data is from."""
    entries: tuple[Entry, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Rows that are not asked, by reason."""
    frames: int | None = None
    """For videos: this many frames with a grid of tokens each; None: six frames as one picture."""
    own: bool = False
    """Whether it is a user's file of questions, not a declared benchmark."""

    @property
    def told(self) -> dict[str, Any]:
        """What a collection of this source was made from."""
        asked = [(entry.name, [one.question.to_dict() for one in entry.questions]) for entry in self.entries]
        digest = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
        frames = {} if self.frames is None else {"frames": self.frames}
        return {"source": self.task.name, "data": self.origin, "questions": digest, **frames}

    def count(self) -> int:
        return len(self.entries)

    def items(self, limit: int | None = None, done: Container[str] = ()) -> Iterator[Item]:
        for entry in islice(self.entries, limit):
            if entry.name in done:
                continue
            questions = tuple(one.question for one in entry.questions)
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
        data_dir: a folder with a local copy, or with one folder per task. The format is that of the hub's
            data set, as a snapshot (parquet) or as written by `Dataset.save_to_disk` (a folder per
            configuration if there are several); or the task's own sheets, with its videos beside them.

    Raises:
        M3ScoreError: there is no such data, or a column is missing.
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
    """A user's own task: a questions file (see read_questions), with images relative to its folder."""
    file = Path(path)
    name = re.sub(r"[^\w.-]+", "-", f"{file.resolve().parent.name}-{file.stem}")
    entries, left_out = [], Counter[str]()
    for image, questions in read_questions(file).items():
        where = image if os.path.isabs(image) else os.path.join(file.parent, image)
        asked = tuple(TaskQuestion(own_question(one, metric, suffix)) for one in questions if one.answers)
        left_out["no reference answer"] += len(questions) - len(asked)
        if asked:
            entries.append(Entry(where, asked, partial(_plain, where)))
    if not entries:
        raise M3ScoreError(f"{path}: no question has answers, so there is nothing to judge by.")
    task = Task(
        name, title=name, metric=metric or entries[0].questions[0].question.metric or "", max_new_tokens=32
    )
    return TaskSource(task, os.path.abspath(path), tuple(entries), +left_out, own=True)


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
    """Turn rows into questions, and group those about the same image."""
    grouped: dict[str, tuple[str, Callable[[], Any], list[TaskQuestion]]] = {}
    left_out = Counter[str]()
    for index, row in rows:
        try:
            asked = task_question(task, row)
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


# ---- sheets of questions, with media files beside them -----------------------------------------------------


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
    rows, origin = load_rows(task, folder, task.config)
    if task.image_config:
        images, _ = load_rows(task, folder, task.image_config)
        images = undecoded_images(images, task.image, task)
        places = {str(name): place for place, name in enumerate(column_of(images, "id", task))}
        texts = rows

        def read(index: int, row: Mapping[str, Any]) -> ImageSource | None:
            place = places.get(str(row[task.image_id]))
            return None if place is None else image_of(images[place][task.image])

    else:
        pictures = undecoded_images(rows, task.image, task)
        hidden = {task.image, *task.more_images} & set(rows.column_names)
        texts = rows.remove_columns(sorted(hidden))
        further = {c: present(rows, c, task) for c in task.more_images if c in rows.column_names}

        def read(index: int, row: Mapping[str, Any]) -> ImageSource | None:
            return image_of(pictures[index][task.image])

        return _entries(task, with_presence(texts, further), read, origin)
    return _entries(task, iter(enumerate(texts)), read, origin)
