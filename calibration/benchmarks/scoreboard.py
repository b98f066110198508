"""Benchmark results as tables, sentences and rows, beside the M3 paper's figures.

Knows results (results.py) and published figures (published.toml), no models and no traces.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from m3score.calibration.benchmarks.results import UNSOLVED, BenchmarkResult, Figure
from m3score.calibration.benchmarks.tasks import Task
from m3score.data.metrics import find_metric
from m3score.tables.schema import TableKind

FIGURES = TableKind(
    "table of figures",
    {
        "task": "text",
        "model": "text",
        "measure": "text",
        "tokens": "int",
        "rule": "text?",
        "unsolved": "text?",
        "category": "text?",
        "value": "float",
        "low": "float",
        "high": "float",
        "unit": "text",
        "paper": "float",
        "difference": "float",
        "paper_model": "text?",
        "paper_source": "text?",
    },
    ("task", "measure", "value"),
)
"""Columns of the table that --out writes; `unit` is the unit of `value`, `low`, `high` and `paper`."""

_IN_TOKENS = ("mean tokens", "visual tokens", "needed")
UNSOLVED_WORDS = {"one": "unsolved as 1", "answerable": "answerable only", "finest": "unsolved as {finest}"}


@dataclass(frozen=True)
class Published:
    """What the M3 paper reports for a task, in percent and tokens."""

    title: str
    source: str
    same_model: bool
    """Whether the figures are of the evaluated model itself."""
    accuracy: dict[int, float]
    oracle_accuracy: float | None
    oracle_tokens: float | None


@cache
def _published() -> dict[str, Any]:
    text = files("m3score.calibration.benchmarks").joinpath("published.toml").read_text("utf-8")
    return tomllib.loads(text)


def published(result: BenchmarkResult) -> Published | None:
    """The paper's figures for a task: of the same model where there are any, else of LLaVA-NeXT or 1.5."""
    name = result.model.rstrip("/").rpartition("/")[2].lower().replace("v1.5", "v1_5")
    held = {key: entry for key, entry in _published().items() if result.task.name in entry["accuracy"]}
    if not held:
        return None
    key = name if name in held else next(iter(held))
    entry = held[key]
    return Published(
        title=entry["title"],
        source=entry["source"],
        same_model=key == name,
        accuracy=dict(zip(entry["ladder"], entry["accuracy"][result.task.name], strict=True)),
        oracle_accuracy=entry.get("oracle_accuracy", {}).get(result.task.name),
        oracle_tokens=entry.get("oracle_tokens", {}).get(result.task.name),
    )


def _paper(result: BenchmarkResult, figure: Figure) -> float | None:
    """The paper's figure to compare this one with."""
    paper = published(result)
    if paper is None or figure.category is not None:
        return None
    headline = result.score(result.best).measure
    if figure.measure == headline and figure.tokens is not None:
        return paper.accuracy.get(figure.tokens)
    if figure.rule == "first" and figure.measure == "oracle" and figure.unsolved == "one":
        return paper.oracle_accuracy
    if figure.rule == "first" and figure.measure == "mean tokens" and figure.unsolved == "one":
        return paper.oracle_tokens
    return None


def rows(result: BenchmarkResult) -> list[dict[str, Any]]:
    """One row per figure, with the columns of FIGURES."""
    needed = Figure("needed", result.needed, *result.needed_between)
    paper = published(result)
    out = []
    for figure in (*result.figures, needed):
        scale = 1.0 if figure.measure in _IN_TOKENS else 100.0
        value, beside = scale * figure.value, _paper(result, figure)
        known = beside is not None and paper is not None
        out.append(
            {
                "task": result.task.name,
                "model": result.model,
                "measure": figure.measure,
                "tokens": figure.tokens,
                "rule": figure.rule,
                "unsolved": figure.unsolved,
                "category": figure.category,
                "value": value,
                "low": scale * figure.low,
                "high": scale * figure.high,
                "unit": "tokens" if scale == 1 else "%",
                "paper": beside,
                "difference": value - beside if beside is not None else None,
                "paper_model": paper.title if known and paper else None,
                "paper_source": paper.source if known and paper else None,
            }
        )
    return out


# ---- tables and sentences -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextTable:
    """A table of text cells."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(result: BenchmarkResult) -> list[TextTable]:
    """Two tables: the score by scale, and the oracle under both rules."""
    paper = published(result)
    header: tuple[str, ...] = ("tokens per grid", "visual tokens", headline(result), "95% interval")
    header += ("right by luck", "chance-corrected")
    beside = (paper.title, "difference") if paper else ()
    body = []
    for tokens in reversed(result.ladder):
        score = result.score(tokens)
        cells = [str(tokens), f"{result.get('visual tokens', tokens=tokens).value:.0f}", _share(score.value)]
        cells += [f"{_share(score.low)} to {_share(score.high)}"]
        cells += [_share(result.get(name, tokens=tokens).value) for name in ("chance", "corrected")]
        if paper:
            theirs = paper.accuracy.get(tokens)
            cells += [_number(theirs), _number(theirs and 100 * score.value - theirs, "+")]
        body.append(tuple(cells))
    words = [UNSOLVED_WORDS[name].format(finest=result.ladder[-1]) for name in UNSOLVED]
    oracle = []
    for rule, text in (("stays", "stays right at finer scales"), ("first", "first right answer (paper)")):
        means = [result.get("mean tokens", rule=rule, unsolved=name).value for name in UNSOLVED]
        scores = [result.get("oracle", rule=rule, unsolved=name).value for name in UNSOLVED]
        cells = [f"{_share(score)} at {_mean(mean)}" for score, mean in zip(scores, means, strict=True)]
        oracle.append((text, _share(result.get("solved", rule=rule).value), *cells))
    if paper and paper.oracle_accuracy is not None:
        named = f"{paper.title} in the paper"
        oracle.append((named, "", f"{paper.oracle_accuracy:.1f} at {paper.oracle_tokens:.1f}", "", ""))
    return [
        TextTable(f"{result.task.title}: {headline(result)} by scale", (*header, *beside), tuple(body)),
        TextTable(
            "Oracle: each question at the fewest tokens that are enough",
            ("rule", "solved", *(f"score at mean tokens, {word}" for word in words)),
            tuple(oracle),
        ),
    ]


def headline(result: BenchmarkResult) -> str:
    """The name of the task's main figure."""
    if result.task.headline == "f1":
        return "F1 of yes"
    return result.task.metric or "score"


def sentences(result: BenchmarkResult) -> list[str]:
    """Facts that are not in the tables."""
    task, finest = result.task, result.ladder[-1]
    units = "" if result.units == result.questions else f" in {result.units:,} groups that count as one"
    luck, corrected = (result.get(name, rule="first") for name in ("oracle by luck", "oracle corrected"))
    known = result.get("corrected", tokens=finest)
    jumps = result.get("not monotone")
    out = [
        f"{result.model} on {result.questions:,} questions{units} about {result.images:,} images"
        f"{'' if result.whole else ', a part of the task'}.",
        needs(result),
        f"Luck: with the same answers, drawn for other questions of the same type, the oracle (first) would "
        f"be right on {_share(luck.value)}% of them. Corrected for chance it knows {_interval(corrected)}, "
        f"the finest scale alone {_interval(known)}.",
        f"Not monotone (right with fewer tokens, wrong with more): {_interval(jumps)}.",
    ]
    if _metric_is_soft(task):
        out.append("A question counts as solved where its score reaches the metric's threshold.")
    if task.unit == "all":
        flat = ", ".join(
            f"{_share(result.get('right per question', tokens=t).value)}% at {t}" for t in result.ladder
        )
        out.append(f"Question by question: {flat}.")
    out += _by_category(result)
    if result.cut:
        out.append(
            f"Cut: {result.cut:,} questions have an answer that reached the most tokens it may have; it is "
            "judged as far as it goes."
        )
    for reason, count in result.left_out.items():
        out.append(f"Left out: {count:,} rows ({reason}).")
    if result.failed:
        image, why = next(iter(result.failed.items()))
        out.append(f"Failed: {len(result.failed):,} images, such as {image}: {why}.")
    if (paper := published(result)) is not None:
        other = "" if paper.same_model else " It is another model than the one judged here."
        out.append(f"Paper: {paper.title}, {paper.source}.{other}")
    if task.note:
        out.append(task.note)
    return out


def _metric_is_soft(task: Task) -> bool:
    """Whether scores may lie between 0 and 1, so that "right" means reaching the metric's threshold."""
    return bool(task.metric) and find_metric(task.metric).threshold < 1


def needs(result: BenchmarkResult) -> str:
    """How many tokens the data set needs, in one sentence."""
    low, high = result.needed_between
    best = result.best
    top, unit = _share(result.score(best).value), "token" if result.needed == 1 else "tokens"
    text = (
        f"{result.task.title} needs {result.needed} {unit} per grid (95% interval {low} to {high}): the "
        f"fewest whose score is within 1 point of the best scale's (at {best}: {top}%)."
    )
    if result.get("corrected", tokens=best).low <= 0:
        text += " But no scale is surely better than luck, so this says nothing about the data set."
    return text


def _by_category(result: BenchmarkResult) -> list[str]:
    finest = result.ladder[-1]
    found = [f for f in result.figures if f.category is not None and f.tokens == finest]
    parts = ", ".join(f"{figure.category} {_share(figure.value)}%" for figure in found)
    return [f"By category at {finest} tokens: {parts}."] if found else []


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _mean(tokens: float) -> str:
    return "-" if math.isnan(tokens) else f"{tokens:.1f}"


def _interval(figure: Figure) -> str:
    return f"{_share(figure.value)}% ({_share(figure.low)} to {_share(figure.high)})"


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def overview(results: Sequence[BenchmarkResult]) -> TextTable:
    """Tasks across, scales down, the oracle (first, unsolved as 1 token) last, as in the paper's table."""
    ladder = sorted({tokens for result in results for tokens in result.ladder}, reverse=True)
    body = [(str(t), *(_share(j.score(t).value) if t in j.ladder else "" for j in results)) for t in ladder]
    scores = [j.get("oracle", rule="first", unsolved="one").value for j in results]
    oracle = ("oracle score", *map(_share, scores))
    means = [j.get("mean tokens", rule="first", unsolved="one").value for j in results]
    needed = ("needs", *(str(j.needed) for j in results))
    return TextTable(
        "All tasks",
        ("tokens per grid", *(j.task.title for j in results)),
        (*body, oracle, ("oracle tokens", *map(_mean, means)), needed),
    )


def to_markdown(results: Sequence[BenchmarkResult]) -> str:
    """Every task's tables and sentences; first an overview, if there are several tasks."""
    blocks = []
    if len(results) > 1:
        blocks.append(f"## All tasks\n\n{_table(overview(results))}")
    for result in results:
        tables = "\n\n".join(f"{grid.title}:\n\n{_table(grid)}" for grid in grids(result))
        text = "\n".join(f"- {sentence}" for sentence in sentences(result))
        blocks.append(f"## {result.task.title}\n\n{tables}\n\n{text}")
    return "\n\n".join(blocks) + "\n"


def _table(grid: TextTable) -> str:
    lines = [" | ".join(grid.header), "|".join(["---", *["--:"] * (len(grid.header) - 1)])]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in grid.rows]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)
