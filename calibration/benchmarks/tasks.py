"""Benchmarks, declared as data: where their questions are, how they are asked and how answers are judged.

The declarations are in tasks.toml; here is what their fields mean, and how a row of a data set becomes a
question. Knows rows, not files (task_data.py), and no models.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from m3score.common.errors import M3ScoreError
from m3score.data.metrics import normalise
from m3score.data.questions import Question, check_question
from m3score.data.references import is_missing, read_options, read_texts

LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True)
class Task:
    """One benchmark. Names of columns are those of its data set."""

    name: str
    title: str
    metric: str
    """A name in grading.METRICS."""
    variant_of: str = ""
    """A task of which this one is a variant: what is not said here is as there, and so is the data."""
    hub: str = ""
    """Id of the data set on the Hugging Face hub; empty where it has to be fetched by hand from `origin`."""
    hub_before: str = ""
    """Where it was before: tried where `hub` can't be had."""
    config: str | None = None
    split: str = ""
    file: tuple[str, ...] = ()
    """Instead of a data set: sheets (csv, json, jsonl) in the folder --data-dir, or below as named."""
    kinds: tuple[str, ...] = ()
    """One name per sheet; it becomes the category of its questions."""
    origin: str = ""

    image: str = "image"
    """Column of the image, or of a list of images of which the middle one is taken."""
    more_images: tuple[str, ...] = ()
    """Columns of further images: a question that has one of them is left out."""
    image_config: str | None = None
    """The images are a data set of their own: this configuration, with a column id, ..."""
    image_id: str = ""
    """... that this column of the questions names."""
    same_image: str | None = None
    """Column whose equal values mean the same image: its questions are asked together."""
    path: str = ""
    """For videos: the file below the folder, with {fields}; its suffix may be missing."""

    question: str = "{question}"
    lead: str = ""
    """Written before the question where its fields are not empty."""
    capitalise: bool = False
    """Of the column `question`, first letter upper and the rest lower case, as lmms-eval does."""
    options: str | tuple[str, ...] | None = None
    """Column of the list of options, or one column for each."""
    options_lead: str = ""
    """Written between the question and the list of its options."""
    suffix: str = ""
    open_suffix: str | None = None
    """Suffix and metric of the questions without options, where a data set has both kinds."""
    open_metric: str | None = None

    answers: str = "answer"
    answer_is: Literal["text", "index", "option"] = "text"
    """What the column of answers holds: the text or letter, the option's position, or the option's text."""
    lists_as_text: bool = False
    """Lists of options and answers are texts such as "['a', 'b']"; elsewhere such a text is one answer."""
    missing: tuple[str, ...] = ()
    """Texts that the data set writes where a value is missing; no other text stands for a missing value."""
    unanswerable: Literal["answer", "leave out"] = "answer"
    """Questions that most annotators call unanswerable: an answer like any other, or left out."""
    headline: Literal["score", "f1"] = "score"
    """Which figure stands for the task: the metric's mean, or the F1 of answering yes."""
    category: str | None = None
    """Column by which scores are also broken down, where there is one."""
    unit: Literal["question", "all"] = "question"
    """What counts as one: a question, or all questions of a group together, right if each of them is."""
    unit_of: str = ""
    """Column that groups questions, its value taken modulo `unit_modulo`, or as `unit_pattern` finds it."""
    unit_modulo: int | None = None
    unit_pattern: str | None = None
    max_new_tokens: int = 16
    note: str = ""
    """What one has to know beside the figures."""


@dataclass(frozen=True)
class Asked:
    """A question of a task, with what its scores are grouped by."""

    question: Question
    category: str | None = None
    unit: str | None = None
    """Questions with an equal unit count as one; None for one that counts by itself."""


class LeftOut(Exception):
    """A row that is no question to be asked; its text says why, and is counted."""


@cache
def tasks() -> dict[str, Task]:
    """Every declared benchmark by name."""
    held = tomllib.loads(files("m3score.calibration.benchmarks").joinpath("tasks.toml").read_text("utf-8"))
    return {name: _task(name, held.get(entry.get("variant_of"), {}) | entry) for name, entry in held.items()}


def _task(name: str, entry: Mapping[str, Any]) -> Task:
    unknown = set(entry) - {field.name for field in fields(Task)}
    if unknown:
        raise M3ScoreError(f"task {name}: unknown field {', '.join(sorted(unknown))}.")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
    }
    if isinstance(values.get("file"), str):
        values["file"] = (values["file"],)
    return Task(name=name, **values)


def find_task(name: str) -> Task:
    """The benchmark of that name; M3ScoreError that lists the names for any other."""
    try:
        return tasks()[name]
    except KeyError:
        raise M3ScoreError(
            f"unknown task {name!r}; allowed: drawn, {', '.join(tasks())}, or a .csv or .jsonl file of "
            "your own."
        ) from None


# ---- a row becomes a question ---------------------------------------------------------------------------


def asked_of(task: Task, row: Mapping[str, Any]) -> Asked:
    """The question of a row.

    Raises:
        LeftOut: the row has no reference answer, several images, a gap among its options, or is unanswerable
            and to be left out.
        M3ScoreError: it lacks a column, or its answer does not fit its options.
    """
    if any(row.get(column) is not None for column in task.more_images):
        raise LeftOut("several images")
    options = _options(task, row)
    letters = options or (task.options is None and task.metric == "multiple_choice")
    metric = task.metric if letters or task.open_metric is None else task.open_metric
    suffix = task.suffix if letters or task.open_suffix is None else task.open_suffix
    references = _references(task, row, options)
    if task.unanswerable == "leave out" and _is_unanswerable(references):
        raise LeftOut("unanswerable")
    between = task.options_lead if options else ""
    text = f"{_lead(task, row)}{_text(task, row)}{between}{listed(options)}{suffix}"
    if task.more_images:  # there is one image: where it is named again, its name stays
        text = text.replace("<image 1>", "<image>", 1)
    question = Question(text, references, options, metric)
    check_question(question)
    category = row.get(task.category or "kind")
    return Asked(question, None if _is_empty(task, category) else str(category), _unit(task, row))


def own_question(asked: Question, metric: str | None = None, suffix: str | None = None) -> Question:
    """A question of a user's file as it is put to the model.

    Word for word, but for a multiple-choice question that does not name its options (see names_options):
    these are added, with the request for a letter. `suffix` ends the question instead of that request;
    `metric` takes the place of its own.
    """
    text, ending = asked.question, suffix
    if asked.options and not names_options(text, asked.options):
        text += listed(asked.options)
        ending = LETTER_SUFFIX if suffix is None else suffix
    question = replace(asked, question=text + (ending or ""), metric=metric or asked.metric)
    check_question(question)
    return question


_BETWEEN_OPTIONS = r"(?:[^\w]|\b(?:[a-z]|\d|or|and|an|the)\b)*?"
"""What may stand between options that are named one after the other: marks, letters, numbers, "or", "and"."""


def names_options(text: str, options: Sequence[str]) -> bool:
    """Whether a text lists all options one after the other, as whole words, in their order.

    "2013" does not name the options 0 to 3, nor do words that are scattered over a sentence; "a bee or an
    ant?" and "A. bee B. ant" name bee and ant.
    """
    whole = [rf"(?<!\w){re.escape(option.strip())}(?!\w)" for option in options]
    return re.search(_BETWEEN_OPTIONS.join(whole), text, re.IGNORECASE) is not None


def listed(options: Sequence[str]) -> str:
    """The options as lines of "A. text", each after a line break; nothing for none."""
    return "".join(f"\n{chr(65 + i)}. {text}" for i, text in enumerate(options))


def _value(row: Mapping[str, Any], column: str) -> Any:
    try:
        return row[column]
    except KeyError:
        raise M3ScoreError(f"no column {column!r}; there are {', '.join(map(str, row))}.") from None


def _is_empty(task: Task, value: Any) -> bool:
    """Whether a cell holds nothing: missing, an empty text, or what this data set writes for it."""
    return is_missing(value) or (isinstance(value, str) and value.strip() in ("", *task.missing))


def _text(task: Task, row: Mapping[str, Any]) -> str:
    values = dict(row)
    if "question" in values:
        text = str(values["question"]).strip()
        values["question"] = text.capitalize() if task.capitalise else text
    return filled(task.question, values)


def filled(template: str, values: Mapping[str, Any]) -> str:
    """A template with its {columns} filled in; M3ScoreError for one that is not there."""
    return re.sub(r"{([\w-]+)}", lambda found: str(_value(values, found[1])), template)


def _lead(task: Task, row: Mapping[str, Any]) -> str:
    columns = re.findall(r"{([\w-]+)}", task.lead)
    empty = any(_is_empty(task, row.get(column)) for column in columns)
    return "" if empty else filled(task.lead, row)


def _options(task: Task, row: Mapping[str, Any]) -> tuple[str, ...]:
    if task.options is None:
        return ()
    if isinstance(task.options, str):
        return read_options(_listed(task, _value(row, task.options)))
    _value(row, task.options[0])
    cells = [row.get(column) for column in task.options]
    there = [not _is_empty(task, cell) for cell in cells]
    if there != sorted(there, reverse=True):
        raise LeftOut("an option is missing")  # the letters behind the gap would shift
    return read_options(cells[: sum(there)])


def _listed(task: Task, value: Any) -> Any:
    """A list that is written as text (as in MMMU) as a list."""
    if not (task.lists_as_text and isinstance(value, str) and value.startswith("[")):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _references(task: Task, row: Mapping[str, Any], options: Sequence[str]) -> tuple[str, ...]:
    value = _listed(task, _value(row, task.answers))
    texts = () if _is_empty(task, value) else read_texts(value, task.answers)
    if not texts:
        raise LeftOut("no reference answer")
    if task.answer_is == "text":
        return texts
    held = texts[0].strip()
    if task.answer_is == "index":
        if not held.isdecimal() or (options and int(held) >= len(options)):
            raise M3ScoreError(f"the answer {value!r} is no position among {len(options)} options.")
        return (chr(65 + int(held)),)
    stripped = [text.strip() for text in options]
    if held not in stripped:
        raise M3ScoreError(f"the answer {value!r} is none of the options.")
    return (chr(65 + stripped.index(held)),)


def _is_unanswerable(references: Sequence[str]) -> bool:
    said = [normalise(reference) for reference in references]
    return 2 * said.count(UNANSWERABLE) > len(said)


def _unit(task: Task, row: Mapping[str, Any]) -> str | None:
    if task.unit == "question":
        return None
    value = _value(row, task.unit_of)
    if task.unit_modulo:
        return str(int(value) % task.unit_modulo)
    found = re.search(task.unit_pattern, str(value)) if task.unit_pattern else None
    return found[1] if found else str(value)
