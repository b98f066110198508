"""The report: a score table as one HTML file that needs no network and no server.

The page is m3score/templates/ (jinja2, one style sheet, one script); what it shows is gathered here. Pictures
are bounded in number and size, so the file is too, however long the table.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib import resources
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from m3score.analysis.report.answers import Answers, collect, frontier, question_tables, routed
from m3score.analysis.report.pictures import Thumbnail, as_digits, detail_maps, folder_of_table, thumbnails
from m3score.analysis.report.survey import BINS, Row, Survey, folder_of, survey
from m3score.common.errors import M3ScoreError
from m3score.data.extract import within_reach
from m3score.tables.io import write_whole
from m3score.tables.schema import SCORES, TRACES, printable
from m3score.tables.streaming import stream_rows

if TYPE_CHECKING:
    from m3score.models.m3.model import M3Model
    from m3score.routing.predictor import Predictor
    from m3score.tables.streaming import Table

PICTURES = 400
MOST_PICTURES = 2_000
"""Beyond, thumbnails would be too small to tell anything."""

Progress = Callable[[str], Callable[[], None]]
"""Called with the name of a stage and how many steps it has; what it returns is called once per step."""


@dataclass
class Report:
    """What a page shows. Gather one with `gather`, fill in more, and render it."""

    title: str
    survey: Survey
    answers: Answers | None
    thumbnails: list[Thumbnail] = field(default_factory=list)
    maps: list[dict[str, Any] | None] = field(default_factory=list)
    map_model: str | None = None
    curves: dict[str, Any] | None = None

    @property
    def paths(self) -> list[str]:
        """Of the shown pictures, simplest first."""
        return [row.get("path", "") for row in self.survey.shown]

    @property
    def unreadable(self) -> dict[str, int]:
        """Shown pictures that could not be opened, by reason, the most frequent first."""
        reasons = Counter(one.error for one in self.thumbnails if one.error is not None)
        return dict(reasons.most_common())

    def wanted(self, *, router: bool) -> list[str]:
        """The pictures that are going to be opened."""
        asked = [image for image, _, _ in self.answers.sample] if router and self.answers else []
        return [*self.paths, *asked]


def write_report(
    scores: Table,
    out: str | os.PathLike[str],
    *,
    traces: Table | None = None,
    model: M3Model | None = None,
    predictor: Predictor | None = None,
    pictures: int = PICTURES,
    title: str | None = None,
    seed: int = 0,
    fetch: bool = False,
) -> Report:
    """Write a score table as one HTML file ("-" is stdout) that opens from disk and loads nothing.

    Args:
        scores: a score table: a file, a frame or rows.
        out: the file to write.
        traces: the trace table of the same run, for the answers and for accuracy by tokens.
        model: for maps of the detail that pooling loses; a loaded model, the one that made the scores.
        predictor: a router to draw beside the fixed scales, where the traces know right answers.
        pictures: about how many pictures are shown, drawn evenly from all levels of the ladder.
        title: of the page.
        seed: of the drawing.
        fetch: whether pictures at URLs are fetched.

    Returns:
        The Report, for its numbers.

    Raises:
        M3ScoreError: a table that cannot be read, tables that do not belong together, or a place that cannot
            be written to. A picture that cannot be opened is shown as such.
    """
    report = gather(scores, traces=traces, pictures=pictures, title=title, seed=seed)
    wanted = report.wanted(router=predictor is not None)
    with within_reach(wanted, folder_of_table(scores), fetch=fetch) as find:
        add_pictures(report, find)
        if model is not None:
            add_maps(report, model, find)
        if predictor is not None:
            add_router(report, predictor, find)
    save(report, out)
    return report


def gather(
    scores: Table,
    *,
    traces: Table | None = None,
    pictures: int = PICTURES,
    title: str | None = None,
    seed: int = 0,
    format: str | None = None,
    on_row: Callable[[], None] | None = None,
) -> Report:
    """Read the tables, once and row by row. The arguments are those of write_report.

    `format` is that of the score table's file, whatever its suffix; `on_row` is called once per row of either
    table.
    """
    if not 1 <= pictures <= MOST_PICTURES:
        raise M3ScoreError(f"a report shows 1 to {MOST_PICTURES} pictures, not {pictures}.")
    count = on_row or (lambda: None)

    def rows(table: Table, kind: Any, format: str | None = None) -> Any:
        for row in stream_rows(table, kind, format=format):
            count()
            yield row

    seen = survey(rows(scores, SCORES, format), pictures, seed)
    answers = None
    if traces is not None:
        shown = {row.get("path", "") for row in seen.shown}
        answers = collect(rows(traces, TRACES), shown, seen.ladder, seed)
        if seen.shown and not answers.images:
            raise M3ScoreError("the traces are about none of the pictures in the score table.")
    name = title or (os.path.basename(str(scores)) if folder_of_table(scores) is not None else "scores")
    return Report(printable(name), seen, answers, curves=frontier(answers) if answers else None)


def add_pictures(
    report: Report, find: Callable[[str], str], on_picture: Callable[[], None] = lambda: None
) -> None:
    """Thumbnails of the shown pictures."""
    report.thumbnails = []
    for thumbnail in thumbnails(report.paths, find):
        report.thumbnails.append(thumbnail)
        on_picture()


def add_maps(
    report: Report,
    model: M3Model,
    find: Callable[[str], str],
    on_picture: Callable[[], None] = lambda: None,
) -> None:
    """Maps of the detail that pooling loses, of the shown pictures; costs a pass of the vision tower each."""
    maps = []
    for one in detail_maps(model, report.paths, find):
        maps.append(one)
        on_picture()
    report.maps, report.map_model = as_digits(maps), model.name


def add_router(
    report: Report,
    predictor: Predictor,
    find: Callable[[str], str],
    on_question: Callable[[], None] = lambda: None,
) -> None:
    """The predictor's curve of accuracy against tokens, where the traces know right answers."""
    if report.answers is None or report.curves is None or predictor.feature_set != "pixels":
        return
    if predictor.ladder != report.answers.ladder:
        raise M3ScoreError(
            f"the predictor chooses among {predictor.ladder} tokens, but the traces have the ladder "
            f"{report.answers.ladder}."
        )
    report.curves["router"] = routed(report.answers, predictor, find, on_question)


# ---- the page -----------------------------------------------------------------------------------------


def save(report: Report, out: str | os.PathLike[str]) -> int:
    """Write the page, whole or not at all; its size in bytes."""
    content = render(report).encode("utf-8", "backslashreplace")
    if str(out) == "-":
        import sys

        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_whole(out, content)
    return len(content)


def render(report: Report) -> str:
    """The page as text. What comes from tables gets there escaped (jinja2's autoescape, JSON by tojson)."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from m3score._version import __version__

    environment = Environment(
        loader=PackageLoader("m3score"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style, script = _part("report.css"), _part("report.js")
    seen, most = report.survey, max(report.survey.histogram, default=0)
    return environment.get_template("report.html.j2").render(
        report=report,
        survey=seen,
        levels=_levels(seen),
        bars=[
            {"from": i / BINS, "to": (i + 1) / BINS, "count": count, "height": count / (most or 1)}
            for i, count in enumerate(seen.histogram)
        ],
        models=sorted(report.answers.models) if report.answers else [],
        folders=_folders(seen),
        shown_odd=sum(row.get("monotone") is False for row in seen.shown),
        shown_unsolved=sum(row.get("solved") is False for row in seen.shown),
        curves=report.curves,
        data=_data(report),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        version=__version__,
        today=date.today().isoformat(),
    )


def _part(name: str) -> str:
    return (resources.files("m3score") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's content security policy lets run: this and nothing else."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _levels(seen: Survey) -> list[dict[str, Any]]:
    """Bars of the distribution over the ladder, the unsolved last."""
    rows: list[tuple[str, int, str]] = [(f"{t:,}", count, str(t)) for t, count in seen.levels.items()]
    if seen.unsolved:
        rows.append(("unsolved", seen.unsolved, "unsolved"))
    most, total = max((count for _, count, _ in rows), default=0) or 1, max(1, seen.scored)
    return [
        {"label": label, "count": count, "share": count / total, "width": count / most, "show": show}
        for label, count, show in rows
    ]


def _folders(seen: Survey) -> list[dict[str, Any]]:
    """Folders that a shown picture or a listed error lies in, with what they have in the whole table."""
    used = {_folder_in(seen, row) for row in [*seen.shown, *seen.errors]}
    shared = _shared(sorted(used))
    return [
        {"name": name, "label": name[len(shared) :] or name or "(none)", "count": seen.folders.get(name, 0)}
        for name in sorted(used)
    ]


def _shared(folders: Sequence[str]) -> str:
    """What all folders begin with, up to a slash: it tells nothing."""
    if len(folders) < 2:
        return ""
    parts = [f"{folder}/".split("/") for folder in folders]
    same = takewhile(lambda names: len(set(names)) == 1, zip(*(names[:-1] for names in parts), strict=False))
    return "".join(f"{names[0]}/" for names in same)


def _folder_in(seen: Survey, row: Row) -> str:
    """The row's folder, or the nearest one above it that is told apart."""
    folder = folder_of(row.get("path", ""))
    while folder and folder not in seen.folders:
        folder = folder_of(folder)
    return folder


def _data(report: Report) -> dict[str, Any]:
    """What the page's script works on."""
    seen = report.survey
    pictures = [_picture(report, row, index) for index, row in enumerate(seen.shown)]
    failed = [
        {"path": row.get("path", ""), "folder": _folder_in(seen, row), "error": row.get("error", "no score")}
        for row in seen.errors
    ]
    return {
        "ladder": list(seen.ladder),
        "finest": seen.finest,
        "pictures": pictures,
        "failed": failed,
        "totals": {
            "scored": seen.scored,
            "show": {
                **{str(tokens): count for tokens, count in seen.levels.items()},
                **{"unsolved": seen.unsolved, "odd": seen.non_monotone, "error": seen.failed},
            },
        },
        "curves": report.curves,
        "hasAnswers": report.answers is not None,
    }


def _picture(report: Report, row: Mapping[str, Any], index: int) -> dict[str, Any]:
    thumbnail = _at(report.thumbnails, index)
    agreement = [row.get(f"agreement_{tokens}") for tokens in report.survey.ladder]
    return {
        "path": row.get("path", ""),
        "folder": _folder_in(report.survey, dict(row)),
        "rank": row.get("rank"),
        "complexity": round(row["complexity"], 4),
        "effective": _rounded(row.get("effective_tokens")),
        "needed": row.get("required_tokens", row.get("predicted_tokens")),
        "foretold": "required_tokens" not in row and "predicted_tokens" in row,
        "solved": row.get("solved"),
        "monotone": row.get("monotone"),
        "agreement": [_rounded(value) for value in agreement] if None not in agreement else [],
        "width": row.get("width") or (thumbnail and thumbnail.width),
        "height": row.get("height") or (thumbnail and thumbnail.height),
        "thumbnail": thumbnail and thumbnail.data,
        "missing": thumbnail and thumbnail.error,
        "map": _at(report.maps, index),
        "questions": question_tables(report.answers, row.get("path", "")) if report.answers else [],
    }


def _at(items: Sequence[Any], index: int) -> Any:
    return items[index] if index < len(items) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 3)
