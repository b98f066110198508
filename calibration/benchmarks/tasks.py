"""Benchmarks, declared as data: where their questions are, how they are asked, how answers are graded.

The declarations are in tasks.toml. This module defines their fields, and makes a question of a row of a data
set. Knows rows, no files (task_data.py) and no models.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from m3score.common.errors import M3ScoreError
from m3score.common.schema import STRICT, List, checked
from m3score.data.normal_form import normalise
from m3score.data.questions import Question, check_question
from m3score.data.references import is_missing, read_options, read_texts

LETTER_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True, config=STRICT)
class Task:
    """One benchmark. Names of columns are those of its data set."""

    name: str
    title: str
    metric: str
    """A name in data.metrics.METRICS."""
    variant_of: str = ""
    """The task that this is a variant of: same data, and same values for fields that are not given."""
    hub: str = ""
    """Id of the data set on the Hugging Face hub; empty if it has to be downloaded by hand from `origin`."""
    hub_before: str = ""
    """Its former id, tried if `hub` can't be loaded."""
    config: str | None = None
    split: str = ""
    file: List[str] = ()
    """Instead of a data set: sheets (csv, json, jsonl), as paths relative to --data-dir."""
    kinds: List[str] = ()
    """One name per sheet: the category of the sheet's questions."""
    origin: str = ""

    image: str = "image"
    """Column of the image, or of a list of images, of which the middle one is used."""
    more_images: List[str] = ()
    """Columns of further images; a question with any of them is left out."""
    image_config: str | None = None
    """If the images are a data set of their own: its configuration, with a column `id`, ..."""
    image_id: str = ""
    """... and the column of the questions that holds such an id."""
    same_image: str | None = None
    """Column that is equal for questions about the same image; these are asked together."""
    path: str = ""
    """For videos: the file, relative to the folder, with {columns}; its suffix may be missing."""

    question: str = "{question}"
    lead: str = ""
    """Written before the question if none of its columns is empty."""
    capitalise: bool = False
    """Capitalise the column `question` (first letter upper, the rest lower case), as lmms-eval does."""
    options: str | List[str] | None = None
    """Column with the list of options, or one column per option."""
    options_lead: str = ""
    """Written between the question and the list of its options."""
    suffix: str = ""
    open_suffix: str | None = None
    """Suffix and metric of questions without options, if a data set has both kinds."""
    open_metric: str | None = None

    answers: str = "answer"
    answer_is: Literal["text", "index", "option"] = "text"
    """What the column of answers holds: text or a letter, the option's position, or the option's text."""
    lists_as_text: bool = False
    """Whether lists of options and answers are written as text, "['a', 'b']"; else that is one answer."""
    missing: List[str] = ()
    """Texts that the data set writes for a missing value; no other text counts as missing."""
    unanswerable: Literal["answer", "leave out"] = "answer"
    """What happens if most annotators say "unanswerable": it is an answer, or the row is left out."""
    headline: Literal["score", "f1"] = "score"
    """The task's main figure: the metric's mean, or the F1 of answering yes."""
    category: str | None = None
    """Column by which scores are broken down as well."""
    unit: Literal["question", "all"] = "question"
    """What counts as one unit: a question, or a group of questions, which is right if all of them are."""
    unit_of: str = ""
    """Column that groups questions: its value, modulo `unit_modulo`, or what `unit_pattern` finds in it."""
    unit_modulo: int | None = None
    unit_pattern: str | None = None
    max_new_tokens: int = 16
    note: str = ""
    """What readers of the figures have to know."""


@dataclasses.dataclass(frozen=True)
class TaskQuestion:
    """A question of a benchmark, with the groups that its score belongs to."""

    question: Question
    category: str | None = None
    unit: str | None = None
    """Questions with the same unit count as one; None: the question is a unit by itself."""


class LeftOut(Exception):
    """Raised for a row that is not asked; the message is the reason, under which such rows are counted."""


@cache
def tasks() -> dict[str, Task]:
    """Every declared benchmark by name."""
    held = tomllib.loads(files("m3score.calibration.benchmarks").joinpath("tasks.toml").read_text("utf-8"))
    return {name: _task(name, held.get(entry.get("variant_of"), {}) | entry) for name, entry in held.items()}


def _task(name: str, entry: Mapping[str, Any]) -> Task:
    values: dict[str, Any] = {"name": name, **entry}
    if isinstance(values.get("file"), str):
        values["file"] = [values["file"]]
    return checked(Task, values, f"task {name}")


def find_task(name: str) -> Task:
    """The benchmark of that name; M3ScoreError, with all names, if there is none."""
    try:
        return tasks()[name]
    except KeyError:
        raise M3ScoreError(
            f"unknown task {name!r}; allowed: drawn, {', '.join(tasks())}, or a .csv or .jsonl file of "
            "your own."
        ) from None


# ---- from a row to a question ---------------------------------------------------------------------------


def task_question(task: Task, row: Mapping[str, Any]) -> TaskQuestion:
    """The question of a row.

    Raises:
        LeftOut: the row has no reference answer, several images or a gap among its options, or is
            unanswerable and to be left out.
        M3ScoreError: a column is missing, or the answer is not among the options.
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
    return TaskQuestion(question, None if _is_empty(task, category) else str(category), _unit(task, row))


def own_question(asked: Question, metric: str | None = None, suffix: str | None = None) -> Question:
    """A question of a user's file, as the model is asked it.

    The wording stays. Only a multiple-choice question that does not name its options (see names_options) gets
    them appended, with a request for the letter. `suffix` replaces that request; `metric` replaces the
    question's own.
    """
    text, ending = asked.question, suffix
    if asked.options and not names_options(text, asked.options):
        text += listed(asked.options)
        ending = LETTER_SUFFIX if suffix is None else suffix
    question = dataclasses.replace(asked, question=text + (ending or ""), metric=metric or asked.metric)
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
    """The options as lines "A. text", each after a line break."""
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
    """A template with its {columns} filled in; M3ScoreError for a missing column."""
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
