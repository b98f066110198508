"""What a report shows: gathered from the tables, the pictures, a model and a predictor.

Knows tables and pictures, not how the page looks (page.py). Pictures are bounded in number and size, so the
report is too, however long the table.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m3score.analysis.report.pictures import (
    Thumbnail,
    as_digits,
    detail_maps,
    thumbnails,
    where_digits,
    where_maps,
)
from m3score.analysis.report.score_summary import ScoreSummary, summarise_scores
from m3score.analysis.report.trace_summary import Answers, collect, frontier, routed
from m3score.common.errors import M3ScoreError
from m3score.data.extract import folder_of_table
from m3score.tables.schema import SCORES, TRACES, printable
from m3score.tables.streaming import stream_rows

if TYPE_CHECKING:
    from m3score.models.m3.model import M3Model
    from m3score.routing.predictor import Predictor
    from m3score.tables.streaming import Table

PICTURES = 400
MOST_PICTURES = 2_000
"""With more pictures, thumbnails would be too small to be useful."""

Progress = Callable[[str], Callable[[], None]]
"""Called with the name of a stage; what it returns is called once per step."""


@dataclass
class Report:
    """What a page shows. `gather` makes one, the `add_` functions complete it, page.render renders it."""

    title: str
    summary: ScoreSummary
    answers: Answers | None
    thumbnails: list[Thumbnail] = field(default_factory=list)
    maps: list[dict[str, Any] | None] = field(default_factory=list)
    map_model: str | None = None
    where_missing: int = 0
    """Shown pictures judged by vision that got no map because the model gives them another score."""
    curves: dict[str, Any] | None = None

    @property
    def paths(self) -> list[str]:
        """Paths of the shown pictures, simplest first."""
        return [row.get("path", "") for row in self.summary.shown]

    @property
    def looked(self) -> list[int]:
        """Positions of the shown pictures that were judged by vision."""
        return [place for place, row in enumerate(self.summary.shown) if row.get("judged_by") == "vision"]

    @property
    def map_note(self) -> str:
        """Why pictures judged by vision have no map of where their complexity is; "" where all have one."""
        looked = len(self.looked)
        if not looked:
            return ""
        if self.map_model is None:
            return (
                "Maps of where the complexity is are left out: they take the model of the scores (--model)."
            )
        if self.where_missing == looked:
            return (
                f"Maps of where the complexity is are left out: {self.map_model} gives these pictures other "
                "scores than the table has. Name the model that made it (--model)."
            )
        if self.where_missing:
            return (
                f"{self.where_missing:,} of {looked:,} pictures have no map of where the complexity is: they "
                "have changed since they were scored, or can’t be opened."
            )
        return ""

    @property
    def unreadable(self) -> dict[str, int]:
        """Shown pictures that could not be opened: how many by reason, most frequent first."""
        reasons = Counter(one.error for one in self.thumbnails if one.error is not None)
        return dict(reasons.most_common())

    def wanted(self, *, router: bool) -> list[str]:
        """The pictures that have to be opened; with `router`, those of its questions too."""
        asked = [image for image, _, _ in self.answers.sample] if router and self.answers else []
        return [*self.paths, *asked]


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
    """Read the tables, once and row by row.

    Args:
        scores, traces, pictures, title, seed: as in page.write_report.
        format: of the score table's file; by default by its suffix.
        on_row: called once per row of either table.

    Raises:
        M3ScoreError: a table can't be read, or the two do not belong together.
    """
    if not 1 <= pictures <= MOST_PICTURES:
        raise M3ScoreError(f"a report shows 1 to {MOST_PICTURES} pictures, not {pictures}.")
    count = on_row or (lambda: None)

    def rows(table: Table, kind: Any, format: str | None = None) -> Any:
        for row in stream_rows(table, kind, format=format):
            count()
            yield row

    seen = summarise_scores(rows(scores, SCORES, format), pictures, seed)
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
    """Add thumbnails of the shown pictures; `find` gives the file of a path."""
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
    """Add maps: of where the complexity is to pictures judged by vision, of the detail that pooling loses to
    others. Runs the vision tower once per shown picture."""
    looked = set(report.looked)
    others = [place for place in range(len(report.paths)) if place not in looked]
    details = []
    for one in detail_maps(model, [report.paths[place] for place in others], find):
        details.append(one)
        on_picture()
    report.maps = [None] * len(report.paths)
    for place, digits in zip(others, as_digits(details), strict=True):
        report.maps[place] = digits
    places = report.looked
    for place, found in zip(
        places, where_maps(model, [report.summary.shown[i] for i in places], find), strict=False
    ):
        report.maps[place] = where_digits(found)
        on_picture()
    report.where_missing = sum(report.maps[place] is None for place in places)
    report.map_model = model.name


def add_router(
    report: Report,
    predictor: Predictor,
    find: Callable[[str], str],
    on_question: Callable[[], None] = lambda: None,
) -> None:
    """Add the predictor's curve of accuracy against tokens, if the traces know right answers."""
    if report.answers is None or report.curves is None or predictor.feature_set != "pixels":
        return
    if predictor.ladder != report.answers.ladder:
        raise M3ScoreError(
            f"the predictor chooses among {predictor.ladder} tokens, but the traces have the ladder "
            f"{report.answers.ladder}."
        )
    report.curves["router"] = routed(report.answers, predictor, find, on_question)
