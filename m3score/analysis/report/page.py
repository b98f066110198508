"""The report: a score table as one HTML file that needs no network and no server.

Fills in the template m3score/templates/report.html.j2 with its style sheet and its script.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from m3score.analysis.judged import (
    Mode,
    explain,
    explain_complexity,
    is_unsolved,
    judge_of,
    letters_text,
    tokens_text,
)
from m3score.analysis.report.content import PICTURES, Report, add_maps, add_pictures, add_router, gather
from m3score.analysis.report.score_summary import BINS, Row, ScoreSummary, folder_of
from m3score.analysis.report.trace_summary import question_tables
from m3score.analysis.templates import environment, template_text
from m3score.data.extract import folder_of_table, opened_images
from m3score.tables.io import write_whole

if TYPE_CHECKING:
    from m3score.models.m3.model import M3Model
    from m3score.routing.predictor import Predictor
    from m3score.tables.streaming import Table


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
    root: str | os.PathLike[str] | None = None,
) -> Report:
    """Write a score table as one HTML file that opens from disk and loads nothing.

    Args:
        scores: a score table: a file, a frame or rows.
        out: the file to write; "-" is stdout.
        traces: the trace table of the same run, for the answers and the accuracy by tokens.
        model: the model that made the scores, for maps: of where the complexity is, if it was judged by
            vision, else of the detail that pooling loses.
        predictor: a router to plot beside the fixed scales, if the traces know right answers.
        pictures: about how many pictures to show, sampled evenly from all levels of the ladder.
        title: of the page.
        seed: of the sampling.
        fetch: fetch pictures at URLs.
        root: where relative paths are looked for last, after the table's folder and the working folder.

    Returns:
        The Report, for its numbers.

    Raises:
        M3ScoreError: a table can't be read, the tables do not belong together, or `out` can't be written. A
            picture that can't be opened is shown as such.
    """
    report = gather(scores, traces=traces, pictures=pictures, title=title, seed=seed)
    wanted = report.wanted(router=predictor is not None)
    with opened_images(wanted, folder_of_table(scores), fetch=fetch, root=root) as find:
        add_pictures(report, find)
        if model is not None:
            add_maps(report, model, find)
        if predictor is not None:
            add_router(report, predictor, find)
    save(report, out)
    return report


def save(report: Report, out: str | os.PathLike[str]) -> int:
    """Write the page atomically; returns its size in bytes."""
    content = render(report).encode("utf-8", "backslashreplace")
    if str(out) == "-":
        import sys

        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_whole(out, content)
    return len(content)


def render(report: Report) -> str:
    """The page as text. Everything from tables is escaped (by jinja2's autoescape and tojson)."""
    from m3score._version import __version__

    style = template_text("report.css")
    script = template_text("report.js") + template_text("report_detail.js")
    seen, most = report.summary, max(report.summary.histogram, default=0)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            summary=seen,
            words=_words(seen),
            levels=_levels(seen),
            bars=[
                {"from": i / BINS, "to": (i + 1) / BINS, "count": count, "height": count / (most or 1)}
                for i, count in enumerate(seen.histogram)
            ],
            models=sorted(report.answers.models) if report.answers else [],
            folders=_folders(seen),
            shown_odd=sum(row.get("monotone") is False for row in seen.shown),
            shown_unsolved=sum(map(is_unsolved, seen.shown)),
            curves=report.curves,
            data=_data(report),
            style=style,
            script=script,
            style_hash=_hash(style),
            script_hash=_hash(script),
            version=__version__,
            today=date.today().isoformat(),
        )
    )


def _words(seen: ScoreSummary) -> dict[str, Any]:
    """What the table's leading number is called, and what was measured."""
    judges, finest = seen.judges, seen.finest
    held = "by the smallest scale, in tokens per grid, that holds their effective tokens"
    names = {
        Mode.vision: ("effective tokens", "Scale", f"Pictures {held}.", "held by"),
        Mode.predicted: (
            "tokens predicted",
            "Tokens predicted",
            "Pictures by predicted tokens per grid.",
            "gets",
        ),
        Mode.several: ("tokens", "Scale", "Pictures by scale, whatever judged them.", "at"),
    }
    enough = "Pictures by the fewest tokens per grid that are enough."
    number, heading, bars, option = names.get(seen.mode, ("tokens needed", "Tokens needed", enough, "needs"))
    middle = seen.complexity.median if seen.mode is Mode.vision else seen.complexity.mean
    several = seen.mode is Mode.several
    return {
        "number": number,
        "heading": heading,
        "bars": bars,
        "option": option,
        "explained": explain(judges, finest),
        "complexity": explain_complexity(judges, finest),
        "middle": "median" if seen.mode is Mode.vision else "mean",
        "middle_complexity": None if several else middle,
        "median": None if several or seen.median_tokens is None else tokens_text(seen.median_tokens),
        "mean": seen.mean_tokens if seen.mode in (Mode.answers, Mode.predicted) else None,
        "several": several,
    }


def _hash(text: str) -> str:
    """The hash by which the page's content security policy allows this text and nothing else."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _levels(seen: ScoreSummary) -> list[dict[str, Any]]:
    """Bars of the distribution over the ladder, unsolved last."""
    rows: list[tuple[str, int, str]] = [(f"{t:,}", count, str(t)) for t, count in seen.levels.items()]
    if seen.unsolved:
        rows.append(("unsolved", seen.unsolved, "unsolved"))
    most, total = max((count for _, count, _ in rows), default=0) or 1, max(1, seen.scored)
    return [
        {"label": label, "count": count, "share": count / total, "width": count / most, "show": show}
        for label, count, show in rows
    ]


def _folders(seen: ScoreSummary) -> list[dict[str, Any]]:
    """Folders of the shown pictures and listed errors, with their counts in the whole table."""
    used = {_folder_in(seen, row) for row in [*seen.shown, *seen.errors]}
    shared = _shared(sorted(used))
    return [
        {"name": name, "label": name[len(shared) :] or name or "(none)", "count": seen.folders.get(name, 0)}
        for name in sorted(used)
    ]


def _shared(folders: Sequence[str]) -> str:
    """The common beginning of all folders, up to a slash. Labels leave it out."""
    if len(folders) < 2:
        return ""
    parts = [f"{folder}/".split("/") for folder in folders]
    same = takewhile(lambda names: len(set(names)) == 1, zip(*(names[:-1] for names in parts), strict=False))
    return "".join(f"{names[0]}/" for names in same)


def _folder_in(seen: ScoreSummary, row: Row) -> str:
    """The row's folder, or the nearest folder above it that is counted separately."""
    folder = folder_of(row.get("path", ""))
    while folder and folder not in seen.folders:
        folder = folder_of(folder)
    return folder


def _data(report: Report) -> dict[str, Any]:
    """The data of the page's script."""
    seen = report.summary
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
            "scored": seen.scored - seen.unsolved,
            "show": {
                **{str(tokens): count for tokens, count in seen.levels.items()},
                **{"unsolved": seen.unsolved, "odd": seen.non_monotone, "error": seen.failed},
            },
        },
        "mode": seen.mode,
        "complexity": explain_complexity(seen.judges, seen.finest),
        "curves": report.curves,
        "hasAnswers": report.answers is not None,
    }


def _picture(report: Report, row: Mapping[str, Any], index: int) -> dict[str, Any]:
    thumbnail = _at(report.thumbnails, index)
    agreement = [row.get(f"agreement_{tokens}") for tokens in report.summary.ladder]
    return {
        "path": row.get("path", ""),
        "folder": _folder_in(report.summary, dict(row)),
        "rank": row.get("rank"),
        "complexity": round(row["complexity"], 4),
        "effective": _rounded(row.get("effective_tokens")),
        "needed": row.get("required_tokens", row.get("predicted_tokens")),
        "predicted": "required_tokens" not in row and "predicted_tokens" in row,
        "judge": judge_of(row),
        **_looked(row, report.summary.ladder),
        "solved": False if is_unsolved(row) else row.get("solved"),
        "monotone": row.get("monotone"),
        "agreement": [_rounded(value) for value in agreement] if None not in agreement else [],
        "width": row.get("width") or (thumbnail and thumbnail.width),
        "height": row.get("height") or (thumbnail and thumbnail.height),
        "thumbnail": thumbnail and thumbnail.data,
        "missing": thumbnail and thumbnail.error,
        "map": _at(report.maps, index),
        "questions": question_tables(report.answers, row.get("path", "")) if report.answers else [],
    }


def _looked(row: Mapping[str, Any], ladder: Sequence[int]) -> dict[str, Any]:
    """What only a picture judged by vision has."""
    if row.get("judged_by") != "vision":
        return {}
    reading = row.get("reading_tokens", 0.0)
    return {
        "distinct": _rounded(row.get("distinct_tokens")),
        "reading": _rounded(reading),
        "letters": letters_text(row.get("letter_height"), reading),
        "kept": [_rounded(row.get(f"kept_{tokens}", 1.0)) for tokens in ladder],
    }


def _at(items: Sequence[Any], index: int) -> Any:
    return items[index] if index < len(items) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 3)
