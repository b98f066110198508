"""Benchmarks' figures as tables, sentences, rows and a picture, beside what the M3 paper reports.

Knows figures (judged.py) and the paper's (published.toml), no models and no traces.
"""

from __future__ import annotations

import io
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from m3score.calibration.benchmarks.judged import Figure, Judged, metric_is_soft
from m3score.common.errors import MissingExtraError
from m3score.scoring.summary import UNSOLVED
from m3score.tables.io import write_whole
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
"""Columns of the table that --out writes; `value`, its interval and `paper` in percent or tokens (`unit`)."""

_IN_TOKENS = ("mean tokens", "visual tokens", "needed")
_WORDS = {"one": "unsolved as 1", "answerable": "answerable only", "finest": "unsolved as {finest}"}


@dataclass(frozen=True)
class Published:
    """What the paper reports of a task, in percent and tokens."""

    title: str
    source: str
    same_model: bool
    """Of the model that was judged, and not of another one."""
    accuracy: dict[int, float]
    oracle_accuracy: float | None
    oracle_tokens: float | None


@cache
def _published() -> dict[str, Any]:
    text = files("m3score.calibration.benchmarks").joinpath("published.toml").read_text("utf-8")
    return tomllib.loads(text)


def published(judged: Judged) -> Published | None:
    """The paper's figures of a task: for the same model where there are any, else for LLaVA-NeXT or 1.5."""
    name = judged.model.rstrip("/").rpartition("/")[2].lower().replace("v1.5", "v1_5")
    held = {key: entry for key, entry in _published().items() if judged.task.name in entry["accuracy"]}
    if not held:
        return None
    key = name if name in held else next(iter(held))
    entry = held[key]
    return Published(
        title=entry["title"],
        source=entry["source"],
        same_model=key == name,
        accuracy=dict(zip(entry["ladder"], entry["accuracy"][judged.task.name], strict=True)),
        oracle_accuracy=entry.get("oracle_accuracy", {}).get(judged.task.name),
        oracle_tokens=entry.get("oracle_tokens", {}).get(judged.task.name),
    )


def _paper(judged: Judged, figure: Figure) -> float | None:
    """The paper's figure that this one stands beside."""
    paper = published(judged)
    if paper is None or figure.category is not None:
        return None
    headline = judged.score(judged.best).measure
    if figure.measure == headline and figure.tokens is not None:
        return paper.accuracy.get(figure.tokens)
    if figure.rule == "first" and figure.measure == "oracle" and figure.unsolved == "one":
        return paper.oracle_accuracy
    if figure.rule == "first" and figure.measure == "mean tokens" and figure.unsolved == "one":
        return paper.oracle_tokens
    return None


def rows(judged: Judged) -> list[dict[str, Any]]:
    """One row for every figure: the columns of FIGURES."""
    needed = Figure("needed", judged.needed, *judged.needed_between)
    paper = published(judged)
    out = []
    for figure in (*judged.figures, needed):
        scale = 1.0 if figure.measure in _IN_TOKENS else 100.0
        value, beside = scale * figure.value, _paper(judged, figure)
        known = beside is not None and paper is not None
        out.append(
            {
                "task": judged.task.name,
                "model": judged.model,
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
class Grid:
    """A table of texts."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(judged: Judged) -> list[Grid]:
    """Score by scale, and the oracle under both rules."""
    paper = published(judged)
    header: tuple[str, ...] = ("tokens per grid", "visual tokens", _headline(judged), "95% interval")
    header += ("right by luck", "chance-corrected")
    beside = (paper.title, "difference") if paper else ()
    body = []
    for tokens in reversed(judged.ladder):
        score = judged.score(tokens)
        cells = [str(tokens), f"{judged.get('visual tokens', tokens=tokens).value:.0f}", _share(score.value)]
        cells += [f"{_share(score.low)} to {_share(score.high)}"]
        cells += [_share(judged.get(name, tokens=tokens).value) for name in ("chance", "corrected")]
        if paper:
            theirs = paper.accuracy.get(tokens)
            cells += [_number(theirs), _number(theirs and 100 * score.value - theirs, "+")]
        body.append(tuple(cells))
    words = [_WORDS[name].format(finest=judged.ladder[-1]) for name in UNSOLVED]
    oracle = []
    for rule, said in (("stays", "stays right at finer scales"), ("first", "first right answer (paper)")):
        means = [judged.get("mean tokens", rule=rule, unsolved=name).value for name in UNSOLVED]
        scores = [judged.get("oracle", rule=rule, unsolved=name).value for name in UNSOLVED]
        cells = [f"{_share(score)} at {_mean(mean)}" for score, mean in zip(scores, means, strict=True)]
        oracle.append((said, _share(judged.get("solved", rule=rule).value), *cells))
    if paper and paper.oracle_accuracy is not None:
        named = f"{paper.title} in the paper"
        oracle.append((named, "", f"{paper.oracle_accuracy:.1f} at {paper.oracle_tokens:.1f}", "", ""))
    return [
        Grid(f"{judged.task.title}: {_headline(judged)} by scale", (*header, *beside), tuple(body)),
        Grid(
            "Oracle: each question at the fewest tokens that are enough",
            ("rule", "solved", *(f"score at mean tokens, {word}" for word in words)),
            tuple(oracle),
        ),
    ]


def _headline(judged: Judged) -> str:
    if judged.task.headline == "f1":
        return "F1 of yes"
    return judged.task.metric or "score"


def sentences(judged: Judged) -> list[str]:
    """What the tables do not say."""
    task, finest = judged.task, judged.ladder[-1]
    units = "" if judged.units == judged.questions else f" in {judged.units:,} groups that count as one"
    luck, corrected = (judged.get(name, rule="first") for name in ("oracle by luck", "oracle corrected"))
    known = judged.get("corrected", tokens=finest)
    jumps = judged.get("not monotone")
    out = [
        f"{judged.model} on {judged.questions:,} questions{units} about {judged.images:,} images"
        f"{'' if judged.whole else ', a part of the task'}.",
        needs(judged),
        f"Luck: with the same answers, drawn for other questions of the same type, the oracle (first) would "
        f"be right on {_share(luck.value)}% of them. Corrected for chance it knows {_interval(corrected)}, "
        f"the finest scale alone {_interval(known)}.",
        f"Not monotone (right with fewer tokens, wrong with more): {_interval(jumps)}.",
    ]
    if metric_is_soft(task):
        out.append("A question counts as solved where its score reaches the metric's threshold.")
    if task.unit == "all":
        flat = ", ".join(
            f"{_share(judged.get('right per question', tokens=t).value)}% at {t}" for t in judged.ladder
        )
        out.append(f"Question by question: {flat}.")
    out += _by_category(judged)
    if judged.cut:
        out.append(
            f"Cut: {judged.cut:,} questions have an answer that reached the most tokens it may have; it is "
            "judged as far as it goes."
        )
    for reason, count in judged.left_out.items():
        out.append(f"Left out: {count:,} rows ({reason}).")
    if judged.failed:
        image, why = next(iter(judged.failed.items()))
        out.append(f"Failed: {len(judged.failed):,} images, such as {image}: {why}.")
    if (paper := published(judged)) is not None:
        other = "" if paper.same_model else " It is another model than the one judged here."
        out.append(f"Paper: {paper.title}, {paper.source}.{other}")
    if task.note:
        out.append(task.note)
    return out


def needs(judged: Judged) -> str:
    """How many tokens the data set needs, in one line."""
    low, high = judged.needed_between
    best = judged.best
    top, unit = _share(judged.score(best).value), "token" if judged.needed == 1 else "tokens"
    said = (
        f"{judged.task.title} needs {judged.needed} {unit} per grid (95% interval {low} to {high}): the "
        f"fewest whose score is within 1 point of the best scale's (at {best}: {top}%)."
    )
    if judged.get("corrected", tokens=best).low <= 0:
        said += " But no scale is surely better than luck, so this says nothing about the data set."
    return said


def _by_category(judged: Judged) -> list[str]:
    finest = judged.ladder[-1]
    found = [f for f in judged.figures if f.category is not None and f.tokens == finest]
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


def overview(all_judged: Sequence[Judged]) -> Grid:
    """Tasks across, scales down, the oracle (first, unsolved as 1 token) last: as the paper's table."""
    ladder = sorted({tokens for judged in all_judged for tokens in judged.ladder}, reverse=True)
    body = [
        (str(t), *(_share(j.score(t).value) if t in j.ladder else "" for j in all_judged)) for t in ladder
    ]
    oracle = (
        "oracle score",
        *(_share(j.get("oracle", rule="first", unsolved="one").value) for j in all_judged),
    )
    means = [j.get("mean tokens", rule="first", unsolved="one").value for j in all_judged]
    needed = ("needs", *(str(j.needed) for j in all_judged))
    return Grid(
        "All tasks",
        ("tokens per grid", *(j.task.title for j in all_judged)),
        (*body, oracle, ("oracle tokens", *map(_mean, means)), needed),
    )


def to_markdown(all_judged: Sequence[Judged]) -> str:
    """Every task's tables and sentences; an overview first where there are several."""
    blocks = []
    if len(all_judged) > 1:
        blocks.append(f"## All tasks\n\n{_table(overview(all_judged))}")
    for judged in all_judged:
        tables = "\n\n".join(f"{grid.title}:\n\n{_table(grid)}" for grid in grids(judged))
        said = "\n".join(f"- {sentence}" for sentence in sentences(judged))
        blocks.append(f"## {judged.task.title}\n\n{tables}\n\n{said}")
    return "\n\n".join(blocks) + "\n"


def _table(grid: Grid) -> str:
    lines = [" | ".join(grid.header), "|".join(["---", *["--:"] * (len(grid.header) - 1)])]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in row) for row in grid.rows]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


# ---- picture --------------------------------------------------------------------------------------------


def write_png(all_judged: Sequence[Judged], path: Path) -> None:
    """Score against tokens on a log axis, with its interval and the oracle: one panel per task.

    Raises MissingExtraError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        raise MissingExtraError("The picture of accuracy against tokens", "plot") from None
    across = min(4, len(all_judged))
    down = math.ceil(len(all_judged) / across)
    size = (max(5.2, 3.9 * across), 3.9 * down)
    drawing = Drawing(figsize=size, dpi=140, layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(down, across, squeeze=False).ravel()
    for axes, judged in zip(panels, all_judged, strict=False):
        _panel(axes, judged)
    for axes in panels[len(all_judged) :]:
        axes.set_axis_off()
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    write_whole(path, buffer.getvalue())


def _panel(axes: Any, judged: Judged) -> None:
    scores = [judged.score(tokens) for tokens in judged.ladder]
    axes.fill_between(
        judged.ladder, [100 * s.low for s in scores], [100 * s.high for s in scores], alpha=0.18, lw=0
    )
    axes.plot(judged.ladder, [100 * s.value for s in scores], "o-", ms=5, label=judged.model)
    for unsolved, marker in (("one", "*"), ("finest", "P")):
        mean = judged.get("mean tokens", rule="first", unsolved=unsolved).value
        oracle = 100 * judged.get("oracle", rule="first", unsolved=unsolved).value
        label = f"oracle, {_WORDS[unsolved].format(finest=judged.ladder[-1])}"
        axes.plot([mean], [oracle], marker, ms=11, color="tab:red", label=label)
    paper = published(judged)
    if paper:
        theirs = {t: v for t, v in paper.accuracy.items() if t in judged.ladder}
        axes.plot(
            list(theirs), list(theirs.values()), "s--", ms=4, color="0.5", label=f"{paper.title} (paper)"
        )
        if paper.oracle_accuracy is not None:
            axes.plot([paper.oracle_tokens], [paper.oracle_accuracy], "*", ms=11, color="0.5")
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), max(high, 5.0))
    axes.set_xscale("log", subs=[])
    axes.set_xticks(judged.ladder, [str(tokens) for tokens in judged.ladder])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens per grid")
    axes.set_ylabel(f"{_headline(judged)}, %")
    axes.set_title(judged.task.title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="best", framealpha=0.6)
