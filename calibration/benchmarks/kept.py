"""Answers of earlier runs: where those about a file of questions lie, and what of them is still of use.

A model's answers cost hours, a mended reference costs nothing: answers to questions that are still asked are
kept and judged anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection as Several
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from m3score.calibration.benchmarks.task_data import TaskSource
from m3score.calibration.predictor.labelling.collection import (
    MANIFEST,
    is_collection,
    open_collection,
    read_features,
    write_features,
)
from m3score.data.metrics import default_metric, grade
from m3score.data.questions import Question
from m3score.scoring.traces import TraceRow, rows_of
from m3score.tables.io import read_traces, write_traces, write_whole

logger = logging.getLogger(__name__)


def place_for(source: TaskSource, parent: Path, taken: Several[Path], ending: str = "") -> Path:
    """The folder below `parent` for the answers to a file of questions.

    It is called like the task. Where the answers to another file lie there, or the folder is `taken` in this
    run, the name gets a number: files of one name in folders of one name are told apart by their paths.
    """
    for number in count(1):
        name = source.task.name if number == 1 else f"{source.task.name}-{number}"
        folder = parent / f"{name}{ending}"
        if folder in taken:
            continue
        if not is_collection(folder) or open_collection(folder).told.get("data") == source.origin:
            return folder
    raise AssertionError("numbers have no end")


def judge_anew(source: TaskSource, folder: Path, fingerprint: str) -> None:
    """Bring kept answers up to date with the questions as they are now, before a run goes on with them.

    Nothing happens unless the folder holds answers of this model to an earlier version of the same source.
    Then every image that is still asked the same texts keeps its answers, which are judged by the present
    references, options and metrics; the others are forgotten, so that they are asked again. Each file is
    written whole and the manifest last: an interrupted call is made good by the next.
    """
    if not is_collection(folder):
        return
    held = open_collection(folder)
    others = {name: value for name, value in source.told.items() if name != "questions"}
    if held.told == source.told or held.fingerprint != fingerprint:
        return
    if {name: value for name, value in held.told.items() if name != "questions"} != others:
        return
    asked = {entry.name: [one.question for one in entry.questions] for entry in source.entries}
    kept = again = 0
    for traces, features in held.shards():
        fit, lost = _judged_shard(traces, features, asked)
        kept, again = kept + fit, again + lost
    now = replace(held, told=source.told)
    write_whole(folder / MANIFEST, json.dumps(now.to_dict(), indent=2).encode())
    forgotten = f"; {again:,} images with other questions are asked again" if again else ""
    logger.warning(
        "%s: the questions have changed since. The answers about %s images are kept and judged anew%s.",
        folder, f"{kept:,}", forgotten,
    )  # fmt: skip


def _judged_shard(traces: Path, features: Path, asked: Mapping[str, Sequence[Question]]) -> tuple[int, int]:
    """Judge the answers in a shard anew: how many images it keeps, and how many it loses."""
    rows, failed = rows_of(read_traces(traces))
    texts: dict[str, dict[int, str]] = {}
    for row in rows:
        texts.setdefault(row.image, {})[row.question_id] = row.question
    fit = {
        name for name, own in texts.items()
        if name in asked and own == dict(enumerate(one.question for one in asked[name]))
    }  # fmt: skip
    if fit:
        frame = read_features(features)
        write_features(features, frame[frame["image"].isin(fit)].to_dict("records"))
        judged = [_judged(row, asked[row.image][row.question_id]) for row in rows if row.image in fit]
        write_traces([row.to_dict() for row in judged], traces)
    else:
        traces.unlink()
        features.unlink(missing_ok=True)
    return len(fit), len(texts) + len(failed) - len(fit)


def _judged(row: TraceRow, asked: Question) -> TraceRow:
    """The row with the verdict on its answer by the question's present references, options and metric."""
    metric = (asked.metric or default_metric(asked.answers, asked.options)) if asked.answers else None
    verdict = grade(metric, row.answer, asked.answers, asked.options) if metric else None
    return replace(
        row,
        metric=metric,
        metric_score=verdict.score if verdict else None,
        correct=verdict.correct if verdict else None,
        references=asked.answers,
        options=asked.options,
    )
