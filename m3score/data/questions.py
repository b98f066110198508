"""Questions about images: what is asked, how the answer is judged, and the file that holds many of them."""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.common.files import open_regular
from m3score.data.metrics import find_metric, grade
from m3score.data.references import read_options, read_texts
from m3score.tables.formats import delimiter_of
from m3score.tables.json_lines import json_lines

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 20_000
"""Of a question, an answer or an option: more than any of the models can take in."""

MAX_QUESTIONS_BYTES = 2**29
"""Of a questions file, which is read as a whole: some two million questions."""


DESCRIBE = "Describe the image."
"""What a model is asked about an image that comes without a question."""

Answers = str | Sequence[str] | None
"""One question's references: one, several, or none."""


@dataclass(frozen=True)
class Question:
    """A question about an image and, where it is known, how its answer is to be judged."""

    question: str
    """Asked word for word: a multiple-choice question has to list its options itself."""
    answers: tuple[str, ...] = ()
    """Reference answers (for vqa_accuracy one per annotator); empty = no ground truth."""
    options: tuple[str, ...] = ()
    """The texts of options A, B, C ...: used for judging only."""
    metric: str | None = None
    """A name in grading.METRICS; None = grading.default_metric()."""

    def __post_init__(self) -> None:
        """Answers and options may be given in any form that references.read_texts takes."""
        object.__setattr__(self, "answers", read_texts(self.answers))
        object.__setattr__(self, "options", read_options(self.options))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {**asdict(self), "answers": list(self.answers), "options": list(self.options)}


def default_questions() -> tuple[Question, ...]:
    """What a model is asked about an image that comes without a question. No ground truth."""
    return (Question(DESCRIBE),)


def as_question(question: str | Question, answers: Answers = None, metric: str | None = None) -> Question:
    """A Question of a text or a Question; `answers` and `metric`, where given, take the place of its own."""
    asked = Question(question) if isinstance(question, str) else question
    if answers is not None:
        asked = replace(asked, answers=read_texts(answers))
    return replace(asked, metric=metric) if metric else asked


def check_question(question: Question) -> None:
    """M3ScoreError if it is no text to ask, its metric is unknown, or that cannot use the references."""
    if not question.question.strip():
        raise M3ScoreError("the question is empty.")
    _check_text(question.question, "a question")
    for text in (*question.answers, *question.options):
        _check_text(text, "an answer or option")
    if question.metric is not None:
        find_metric(question.metric)
    if question.answers:
        grade(question.metric, "", question.answers, question.options)


def _check_text(text: str, what: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise M3ScoreError(f"{what} of {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed.")
    if "\0" in text:
        raise M3ScoreError(f"{what} with a NUL character.")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can hold halves of characters
        raise M3ScoreError(f"{what} that is not valid Unicode.") from None


_COLUMNS = ("image", "question", "answers", "options", "metric")
_NUMBERS = {"images": "image", "questions": "question", "answer": "answers", "option": "options",
            "metrics": "metric"}  # fmt: skip


def read_questions(path: str | os.PathLike[str]) -> dict[str, list[Question]]:
    """Read a questions file: the questions of each image, both in the order of the file.

    A csv file has the columns `image` and `question` and may have `answers`, `options` and `metric`; a jsonl
    file has objects with these keys. Answers and options are a JSON list, or one text, in which csv takes "|"
    as a separator. Columns are taken in any case, in the singular or plural, and with spaces around them; in
    csv, semicolons or tabs may stand between them: a warning says so. Other columns are ignored, unless they
    look like a misspelling. A row that repeats an
    earlier one is left out with a warning; one that repeats only its image and question adds its answers,
    with a warning at the first: tables with a row per annotator look like this, and so do mistakes.

    Raises:
        M3ScoreError: names the file and line, and what is allowed there.
    """
    source = Path(path)
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows}
    if source.suffix.lower() not in readers:
        raise M3ScoreError(
            f"{source}: unknown suffix {source.suffix!r} of questions; allowed: {', '.join(readers)}."
        )
    text = _text_of(source)
    found: dict[str, dict[str, Question]] = {}
    added = 0
    for line, row in readers[source.suffix.lower()](text, str(source)):
        try:
            if _add(found, row.get("image"), question_of(row), line, source):
                added += 1
                if added == 1:
                    logger.warning(
                        "%s, line %d asks again what was asked about this image, with other answers: all of "
                        "them are taken as right",
                        source,
                        line,
                    )
        except M3ScoreError as error:
            raise M3ScoreError(f"{source}, line {line}: {error}") from None
    if not found:
        raise M3ScoreError(f"{source}: holds no question.")
    if added > 1:
        logger.warning("%s: so do %d more lines", source, added - 1)
    return {image: list(questions.values()) for image, questions in found.items()}


def _text_of(source: Path) -> str:
    try:
        with open_regular(source, MAX_QUESTIONS_BYTES, "a questions file") as file:
            content = file.read()
    except M3ScoreError as error:
        raise M3ScoreError(f"{error.reason}.", subject=error.subject) from None
    except OSError as error:
        raise M3ScoreError(f"{source}: cannot read ({error.strerror or error}).") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise M3ScoreError(f"{source}, line {line}: not UTF-8 text (byte {error.start}).") from None


def _add(found: dict[str, dict[str, Question]], image: Any, new: Question, line: int, source: Path) -> bool:
    """Whether the row added answers to an earlier one."""
    if not isinstance(image, str) or not image:
        raise M3ScoreError("no image given.")
    _check_text(image, "an image's name")
    old = found.setdefault(image, {}).setdefault(new.question, new)
    if old is new:
        return False
    if old == new:
        logger.warning("%s, line %d repeats an earlier row and is left out", source, line)
    elif (old.options, old.metric) != (new.options, new.metric):
        raise M3ScoreError(
            "repeats an earlier question about this image with other options or another metric."
        )
    else:
        found[image][new.question] = replace(old, answers=old.answers + new.answers)
        return True
    return False


def question_of(row: dict[str, Any]) -> Question:
    """The question in a row of a questions file; M3ScoreError if there is none, or it makes no sense."""
    text, metric = row.get("question"), row.get("metric")
    if not isinstance(text, str) or not text.strip():
        raise M3ScoreError("no question given.")
    given: tuple[Any, Any] = row.get("answers"), row.get("options")
    asked = Question(text, *given, str(metric) if metric else None)
    check_question(asked)
    return asked


def _taken_columns(columns: Sequence[str], where: str) -> list[str]:
    """What each column is taken for: one of _COLUMNS, or its own name where it is none of them."""
    taken = [_taken(column) for column in columns]
    for i, name in enumerate(taken):
        if name in taken[:i]:
            other = columns[taken.index(name)]
            both = f"the columns {other!r} and {columns[i]!r} are both taken for {name!r}; leave one out."
            raise M3ScoreError(f"{where}: {f'the column {name!r} appears twice.' if other == name else both}")
        meant = difflib.get_close_matches(name.lower(), _COLUMNS, n=1, cutoff=0.8)
        if name not in _COLUMNS and meant:
            raise M3ScoreError(f"{where}: unknown column {name[:100]!r}, did you mean {meant[0]!r}?")
    missing = [column for column in ("image", "question") if column not in taken]
    if missing:
        raise M3ScoreError(
            f"{where}: missing column {', '.join(missing)}; needed are image and question, "
            f"allowed are {', '.join(_COLUMNS)}."
        )
    return taken


def _taken(column: str) -> str:
    plain = column.strip().lower()
    name = _NUMBERS.get(plain, plain)
    return name if name in _COLUMNS else column


def _say_taken(columns: Sequence[str], taken: Sequence[str], name: str) -> None:
    if others := [f"{old!r} for {new}" for old, new in zip(columns, taken, strict=True) if old != new]:
        logger.warning("%s: takes the column %s", name, ", ".join(others))


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    delimiter = delimiter_of(text.partition("\n")[0], ("image", "question"), name, _taken)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        columns = next(reader, [])
        header = _taken_columns(columns, f"{name}, line 1")
        _say_taken(columns, header, name)
        for cells in filter(None, reader):
            if len(cells) != len(header):
                where = f"{name}, line {reader.line_num}"
                raise M3ScoreError(f"{where}: {len(cells)} cells under {len(header)} columns.")
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            for column in ("answers", "options"):
                row[column] = _split(row.get(column, ""), column, f"{name}, line {reader.line_num}")
            yield reader.line_num, row
    except csv.Error as error:
        raise M3ScoreError(f"{name}, line {reader.line_num}: {error}.") from None


def _split(cell: str, column: str, where: str) -> Any:
    if not cell.startswith("["):
        return [part.strip() for part in cell.split("|")] if cell else None
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise M3ScoreError(f"{where}: {column!r} begins like a JSON list but is none ({error}).") from None


def _jsonl_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    said: set[tuple[str, ...]] = set()
    for number, row in json_lines(text, name, unique=True):
        columns = tuple(row)
        taken = _taken_columns(columns, f"{name}, line {number}")
        if columns not in said:
            _say_taken(columns, taken, name)
            said.add(columns)
        yield number, dict(zip(taken, row.values(), strict=True))
