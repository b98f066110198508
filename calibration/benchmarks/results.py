"""A benchmark's figures from a trace table: accuracy per scale, oracle, tokens needed, luck, intervals.

Knows traces and tasks, no models and no files. Every figure is a ratio of sums over units (questions, or
groups of questions that count as one). Intervals come from a bootstrap over images: an image is resampled
with all its questions, since these are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from m3score.calibration.benchmarks.chance import luck_of
from m3score.calibration.benchmarks.task_data import TaskSource
from m3score.calibration.benchmarks.tasks import Task, TaskQuestion
from m3score.common.errors import M3ScoreError
from m3score.data.choices import yes_or_no
from m3score.scoring.rules import RULES, is_monotone, required_tokens
from m3score.tables.schema import absent

if TYPE_CHECKING:
    import pandas as pd

UNSOLVED = ("one", "answerable", "finest")
"""How a mean of required tokens counts a question that no scale solves: "one": as a single token, as the M3
authors do (this lowers the mean); "answerable": not at all; "finest": as the finest scale."""
RESAMPLES = 1000
LEVEL = 0.95
WITHIN = 0.01
"""A scale is as good as the best one if its score is lower by at most this: one percentage point."""


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark. Shares are in [0, 1]."""

    measure: str
    value: float
    low: float
    high: float
    """Ends of the 95 % bootstrap interval."""
    tokens: int | None = None
    rule: str | None = None
    unsolved: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class BenchmarkResult:
    """All figures of one model on one benchmark."""

    task: Task
    model: str
    ladder: tuple[int, ...]
    images: int
    questions: int
    units: int
    failed: dict[str, str]
    """Images without answers, with the reason."""
    left_out: Mapping[str, int]
    """Rows that are not asked, by reason."""
    cut: int
    """Questions with an answer that was cut at the task's limit of tokens; it is graded as far as it goes."""
    whole: bool
    """False if only a part of the task was asked."""
    figures: tuple[Figure, ...]
    needed: int
    """The fewest tokens whose score is within a point of the best scale's."""
    needed_between: tuple[int, int]
    best: int
    """The scale with the best score."""

    def get(self, measure: str, **where: Any) -> Figure:
        """The figure with these fields; fields not named must be None. Raises KeyError."""
        wanted = {"tokens": None, "rule": None, "unsolved": None, "category": None, **where}
        for figure in self.figures:
            if figure.measure == measure and all(getattr(figure, k) == v for k, v in wanted.items()):
                return figure
        raise KeyError(measure, where)

    def score(self, tokens: int) -> Figure:
        """The headline at a scale."""
        return self.get("f1" if self.task.headline == "f1" else "score", tokens=tokens)


def benchmark_result(
    traces: pd.DataFrame,
    source: TaskSource,
    *,
    limit: int | None = None,
    keys: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> BenchmarkResult:
    """Compute a benchmark's figures.

    Args:
        traces: a trace table with the source's images; other images are ignored.
        source: the task and its questions.
        limit: only the first images of the source.
        keys: by image name, a key that copies of an image share: copies are resampled together.
        resamples: of the bootstrap.
        seed: of the bootstrap, and of the sampling that luck is estimated with.

    Raises:
        M3ScoreError: no image was answered, or no group of questions as a whole.
    """
    table = _TraceTable(traces, source, limit, keys or {})
    right = np.array([table.right[members].all(axis=0) for members in table.units])
    luck = luck_of(table.questions, table.answers, table.units, right, seed)
    sums = _sums(table, right, luck, source.task)
    clusters = np.unique(table.clusters, return_inverse=True)[1]
    totals = np.zeros((clusters.max() + 1, len(sums)))
    np.add.at(totals, clusters, np.column_stack(list(sums.values())))
    drawn = np.vstack([totals.sum(axis=0), _resampled(totals, resamples, seed)])
    columns = dict(zip(sums, drawn.T, strict=True))
    headline = np.array([_headline(columns, k, source.task) for k in range(len(table.ladder))])
    figures = [figure for make in _FIGURES for figure in make(columns, table.ladder)]
    figures += _categories(table, drawn.shape[0] - 1, seed)
    if source.task.headline == "f1":
        figures += _f1(columns, table.ladder)
    enough = _first_within(headline)
    low, high = np.quantile(enough[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest").astype(int)
    return BenchmarkResult(
        task=source.task,
        model=table.model,
        ladder=table.ladder,
        images=len(set(table.images)),
        questions=len(table.questions),
        units=len(table.units),
        failed=table.failed,
        left_out=source.left_out,
        cut=table.cut,
        whole=limit is None or limit >= source.count(),
        figures=tuple(figures),
        needed=table.ladder[enough[0]],
        needed_between=(table.ladder[low], table.ladder[high]),
        best=table.ladder[int(headline[:, 0].argmax())],
    )


class _TraceTable:
    """Traces as arrays: the answered questions, in the order of the source, and the units they form."""

    def __init__(
        self, traces: pd.DataFrame, source: TaskSource, limit: int | None, keys: Mapping[str, str]
    ) -> None:
        entries = source.entries[:limit]
        names = {entry.name for entry in entries}
        rows = traces[traces["image"].isin(names)]
        broken = rows[rows["tokens"].isna()]
        self.failed = dict(zip(broken["image"], broken["error"].fillna("no answers"), strict=True))
        rows = rows[rows["tokens"].notna()]
        if not len(rows):
            raise M3ScoreError(f"{source.task.name}: none of its images was answered ({_why(self.failed)}).")
        self.ladder = tuple(sorted(int(tokens) for tokens in rows["tokens"].unique()))
        self.model = str(rows["model"].iloc[0])
        answered: dict[tuple[str, int], dict[int, Any]] = {}
        row: Any  # typed as a tuple of anything otherwise
        for row in rows.itertuples(index=False):
            answered.setdefault((row.image, int(row.question_id)), {})[int(row.tokens)] = row
        held: list[tuple[str, TaskQuestion, list[Any]]] = []
        for entry in entries:
            for number, asked in enumerate(entry.questions):
                scales = answered.get((entry.name, number), {})
                if len(scales) == len(self.ladder):
                    held.append((entry.name, asked, [scales[tokens] for tokens in self.ladder]))
        self.images = [name for name, _, _ in held]
        self.questions = [asked.question for _, asked, _ in held]
        self.categories = [asked.category for _, asked, _ in held]
        self.answers = [tuple(str(row.answer) for row in rows) for _, _, rows in held]
        self.scores = np.array([[float(row.metric_score) for row in rows] for _, _, rows in held])
        self.right = np.array([[bool(row.correct) for row in rows] for _, _, rows in held])
        self.cut = sum(any(map(_was_cut, rows)) for _, _, rows in held)
        self.visual = np.array([[float(row.visual_tokens) for row in rows] for _, _, rows in held])
        bounds = np.tile(np.array(self.ladder, float), (len(held), 1))
        # Budgets are bounds: a picture costs what it really has. Tokens per grid are what a router chooses.
        self.spent = self.visual if (self.visual <= bounds).all() else bounds
        grouped: dict[str, list[int]] = {}
        whole: dict[str, int] = {}
        for entry in entries:
            for asked in entry.questions:
                if asked.unit is not None:
                    whole[asked.unit] = whole.get(asked.unit, 0) + 1
        for place, (_, asked, _) in enumerate(held):
            grouped.setdefault(f"\0{place}" if asked.unit is None else asked.unit, []).append(place)
        self.units = [m for unit, m in grouped.items() if whole.get(unit, 1) == len(m)]
        if not self.units:
            raise M3ScoreError(f"{source.task.name}: no group of questions was answered as a whole.")
        self.clusters = np.array([keys.get(self.images[m[0]], self.images[m[0]]) for m in self.units])


def _was_cut(row: Any) -> bool:
    marked = getattr(row, "cut", None)  # traces of older versions do not say
    return not absent(marked) and bool(marked)


def _why(failed: Mapping[str, str]) -> str:
    return next(iter(failed.values()), "nothing was asked")


# ---- sums over units ------------------------------------------------------------------------------------


def _sums(table: _TraceTable, right: np.ndarray, luck: Any, task: Task) -> dict[str, np.ndarray]:
    """The sums that figures are ratios of: by name, a number for each unit."""
    finest = table.ladder[-1]
    single = task.unit == "question"
    score = np.array([table.scores[m[0]] for m in table.units]) if single else right.astype(float)
    sums = {"n": np.ones(len(right))}
    for k in range(len(table.ladder)):
        sums |= {f"score{k}": score[:, k], f"right{k}": right[:, k], f"chance{k}": luck.chance[:, k]}
        sums[f"visual{k}"] = np.array([table.visual[m, k].mean() for m in table.units])
        sums[f"question{k}"] = np.array([table.right[m, k].sum() for m in table.units])
    sums["questions"] = np.array([len(m) for m in table.units])
    spent = np.array([table.spent[m].mean(axis=0) for m in table.units])
    for rule in RULES:
        needed = [required_tokens(list(row), table.ladder, rule) for row in right]
        solved = np.array([tokens is not None for tokens in needed])
        level = np.searchsorted(table.ladder, [tokens or finest for tokens in needed])
        at, tokens = (values[np.arange(len(level)), level] for values in (score, spent))
        sums |= {f"solved_{rule}": solved, f"tokens_{rule}": tokens * solved, f"won_{rule}": at * solved}
        sums[f"finest_{rule}"] = spent[:, -1] * ~solved
        # What is not solved may still score, below the threshold, at the scale that it is charged for.
        sums |= {f"lost_{rule}_{name}": score[:, k] * ~solved for name, k in (("one", 0), ("finest", -1))}
    sums["jumps"] = np.array([not is_monotone(list(row)) for row in right])
    sums |= {"chance_any": luck.chance_any, "gain": luck.gain, "wrong": ~right[:, -1]}
    if task.headline == "f1":
        sums |= _confusion(table)
    return {name: np.asarray(values, float) for name, values in sums.items()}


def _confusion(table: _TraceTable) -> dict[str, np.ndarray]:
    truth = np.array([bool(yes_or_no(table.questions[m[0]].answers[0])) for m in table.units])
    sums = {"yes": truth}
    for k in range(len(table.ladder)):
        said = np.array([yes_or_no(table.answers[m[0]][k]) is True for m in table.units])
        sums |= {f"hit{k}": said & truth, f"false{k}": said & ~truth}
    return sums


def _resampled(totals: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, sums): as many images as there are, drawn with replacement."""
    rng = np.random.default_rng(seed)
    count = len(totals)
    out = np.empty((resamples, totals.shape[1]))
    for i in range(resamples):
        out[i] = np.bincount(rng.integers(0, count, count), minlength=count) @ totals
    return out


# ---- figures --------------------------------------------------------------------------------------------

Columns = Mapping[str, np.ndarray]
"""By name, each sum: over all units first, then over the units of each resample."""


def _figure(measure: str, values: np.ndarray, **where: Any) -> Figure:
    finite = values[1:][np.isfinite(values[1:])]
    ends = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(finite) else (np.nan, np.nan)
    return Figure(measure, float(values[0]), float(ends[0]), float(ends[1]), **where)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=np.asarray(below) != 0)


def _per_scale(c: Columns, ladder: Sequence[int]) -> list[Figure]:
    out = []
    for k, tokens in enumerate(ladder):
        out.append(_figure("score", _ratio(c[f"score{k}"], c["n"]), tokens=tokens))
        out.append(_figure("right", _ratio(c[f"right{k}"], c["n"]), tokens=tokens))
        out.append(_figure("chance", _ratio(c[f"chance{k}"], c["n"]), tokens=tokens))
        out.append(_figure("corrected", _known(c, k), tokens=tokens))
        out.append(_figure("right per question", _ratio(c[f"question{k}"], c["questions"]), tokens=tokens))
        out.append(_figure("visual tokens", _ratio(c[f"visual{k}"], c["n"]), tokens=tokens))
    return out


def _known(c: Columns, k: int) -> np.ndarray:
    """Chance-corrected accuracy at a scale."""
    return _ratio(c[f"right{k}"] - c[f"chance{k}"], c["n"] - c[f"chance{k}"])


def _oracle(c: Columns, ladder: Sequence[int]) -> list[Figure]:
    out = []
    for rule in RULES:
        solved, tokens = c[f"solved_{rule}"], c[f"tokens_{rule}"]
        unsolved = c["n"] - solved
        means = {
            "one": _ratio(tokens + unsolved, c["n"]),
            "answerable": _ratio(tokens, solved),
            "finest": _ratio(tokens + c[f"finest_{rule}"], c["n"]),
        }
        won = c[f"won_{rule}"]
        scores = {
            "one": _ratio(won + c[f"lost_{rule}_one"], c["n"]),
            "answerable": _ratio(won, solved),
            "finest": _ratio(won + c[f"lost_{rule}_finest"], c["n"]),
        }
        out.append(_figure("solved", _ratio(solved, c["n"]), rule=rule))
        for name in UNSOLVED:
            out.append(_figure("oracle", scores[name], rule=rule, unsolved=name))
            out.append(_figure("mean tokens", means[name], rule=rule, unsolved=name))
    known = _known(c, len(ladder) - 1)
    gained = np.nan_to_num(_ratio(c["gain"], c["wrong"]))
    out.append(_figure("oracle by luck", _ratio(c["chance_any"], c["n"]), rule="first"))
    out.append(_figure("oracle corrected", known + (1 - known) * gained, rule="first"))
    out.append(_figure("not monotone", _ratio(c["jumps"], c["n"])))
    return out


_FIGURES: tuple[Callable[[Columns, Sequence[int]], list[Figure]], ...] = (_per_scale, _oracle)


def _f1(c: Columns, ladder: Sequence[int]) -> list[Figure]:
    out = []
    for k, tokens in enumerate(ladder):
        hit, false = c[f"hit{k}"], c[f"false{k}"]
        out.append(_figure("f1", _f1_of(c, k), tokens=tokens))
        out.append(_figure("precision", _ratio(hit, hit + false), tokens=tokens))
        out.append(_figure("recall", _ratio(hit, c["yes"]), tokens=tokens))
        out.append(_figure("says yes", _ratio(hit + false, c["n"]), tokens=tokens))
    return out


def _f1_of(c: Columns, k: int) -> np.ndarray:
    return np.nan_to_num(_ratio(2 * c[f"hit{k}"], c[f"hit{k}"] + c[f"false{k}"] + c["yes"]))


def _headline(c: Columns, k: int, task: Task) -> np.ndarray:
    return _f1_of(c, k) if task.headline == "f1" else _ratio(c[f"score{k}"], c["n"])


def _first_within(headline: np.ndarray) -> np.ndarray:
    """Index of the coarsest scale within a point of the best, for each column of (scales, resamples + 1)."""
    return np.argmax(headline >= headline.max(axis=0) - WITHIN - 1e-12, axis=0)


def _categories(table: _TraceTable, resamples: int, seed: int) -> list[Figure]:
    """The score of each category. A unit is right in a category if all its questions there are."""
    names = sorted({name for name in table.categories if name is not None})
    out = []
    for name in names if len(names) > 1 else []:
        units = [[place for place in m if table.categories[place] == name] for m in table.units]
        kept = [i for i, m in enumerate(units) if m]
        single = all(len(table.units[i]) == 1 for i in kept)
        values = np.array([
            table.scores[units[i][0]] if single else table.right[units[i]].all(axis=0) for i in kept
        ], float)  # fmt: skip
        clusters = np.unique(table.clusters[kept], return_inverse=True)[1]
        totals = np.zeros((clusters.max() + 1, values.shape[1] + 1))
        np.add.at(totals, clusters, np.column_stack([values, np.ones(len(kept))]))
        drawn = np.vstack([totals.sum(axis=0), _resampled(totals, resamples, seed)])
        out += [
            _figure("score", _ratio(drawn[:, k], drawn[:, -1]), tokens=tokens, category=name)
            for k, tokens in enumerate(table.ladder)
        ]
    return out
