"""A score table in numbers, and a sample of its rows to show.

Makes one pass over a table of any length, with counts and a stratified reservoir sample. Opens no image.
"""

from __future__ import annotations

import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from m3score.analysis.alike import Alike
from m3score.analysis.judged import Mode, is_unsolved, judge_of, mode_of
from m3score.common.statistics import Spread

BINS = 40
"""Bars of the histogram over complexity."""
ENDS = 12
"""This many of the simplest and of the most complex pictures are always shown."""
ODD = 24
"""Up to this many pictures that are not monotone are shown."""
ERRORS = 500
"""Failed inputs that are listed; all are counted."""
FOLDERS = 5_000
"""Folders that are counted separately. If there are more, deep ones count as the folder above them."""
REASONS = 1_000

_SCALE = re.compile(r"(?:agreement|kept)_(\d+)")

_TELLING = 0.1
"""From this complexity on it is exact enough to tell the finest scale."""

Row = dict[str, Any]
"""A row of a score table, without absent values."""


class Reservoir:
    """A uniform sample of at most `size` items of a stream of unknown length."""

    def __init__(self, size: int, seed: str) -> None:
        self.size, self.seen = size, 0
        self.items: list[Any] = []
        self._draw = random.Random(seed)

    def add(self, item: Any) -> None:
        self.seen += 1
        if len(self.items) < self.size:
            self.items.append(item)
        elif (place := self._draw.randrange(self.seen)) < self.size:
            self.items[place] = item


@dataclass
class ScoreSummary:
    """All rows in numbers, and the rows to show."""

    rows: int = 0
    failed: int = 0
    unsolved: int = 0
    non_monotone: int = 0
    ladder: tuple[int, ...] = ()
    """Scales of the table's columns for each scale; () if it has none, as a predictor's table."""
    judges: Counter[str | None] = field(default_factory=Counter)
    """Pictures by what judged them, see judged.judge_of."""
    column: str | None = None
    """required_tokens, else predicted_tokens; None if the table has neither."""
    levels: dict[int, int] = field(default_factory=dict)
    """By required tokens, ascending: the number of pictures."""
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)
    """Number of pictures, but unsolved ones, in BINS equal ranges of complexity from 0 to 1."""
    complexity: Spread = field(default_factory=Spread)
    """Of all pictures but unsolved ones: those are not complex, the model does not know."""
    folders: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    """Number of errors by reason, most frequent first."""
    shown: list[Row] = field(default_factory=list)
    """The sample: simplest first, by the leading number and then complexity; unsolved ones last."""
    errors: list[Row] = field(default_factory=list)

    @property
    def scored(self) -> int:
        return self.rows - self.failed

    @property
    def mode(self) -> Mode:
        """What the table's leading number is."""
        return mode_of(self.judges)

    @property
    def median_tokens(self) -> float | None:
        """The leading number in the middle: effective tokens, or tokens needed or predicted."""
        middle = self.complexity.median
        if self.mode is Mode.vision:
            return None if middle is None or self.finest is None else self.finest**middle
        every, seen = sum(self.levels.values()), 0
        for tokens, count in sorted(self.levels.items()):
            seen += count
            if count and 2 * seen >= every:
                return tokens
        return None

    @property
    def mean_tokens(self) -> float | None:
        """Mean over `levels`."""
        every = sum(self.levels.values())
        return sum(tokens * count for tokens, count in self.levels.items()) / every if every else None

    @property
    def finest(self) -> int | None:
        """Tokens of the finest scale that occurs in the table."""
        return max([*self.ladder, *self.levels], default=None)


def summarise_scores(rows: Iterable[Row], pictures: int, seed: int = 0) -> ScoreSummary:
    """Count all rows, and sample about `pictures` of them evenly from all levels of the ladder.

    The sample always has the ENDS simplest and most complex rows, and some that are not monotone. It depends
    on the seed and the order of the rows only.
    """
    counting = _Counting(pictures, seed)
    for row in rows:
        counting.add(row)
    return counting.result()


class _Counting:
    def __init__(self, pictures: int, seed: int) -> None:
        self.pictures, self.seed = pictures, seed
        self.out = ScoreSummary()
        self.strata: dict[Any, Reservoir] = {}
        self.odd = Reservoir(min(ODD, pictures), f"{seed}/odd")
        self.errors: list[Row] = []
        self.scales: set[int] = set()
        self.alike = Alike()
        self.columns: set[tuple[str, ...]] = set()
        self.folders, self.reasons = _Folders(), Counter[str]()
        self.simplest: list[tuple[float, int, Row]] = []
        self.hardest: list[tuple[float, int, Row]] = []

    def add(self, row: Row) -> None:
        out, number = self.out, self.out.rows
        out.rows += 1
        if (columns := tuple(row)) not in self.columns:
            self.columns.add(columns)
            self.scales |= {int(match[1]) for match in map(_SCALE.fullmatch, columns) if match}
        self.folders.add(row.get("path", ""))
        complexity = row.get("complexity")
        if complexity is None or math.isnan(complexity):
            self._failed(row)
            return
        out.judges[judge_of(row)] += 1
        self.alike.add(row, "the table")
        unsolved = is_unsolved(row)
        if not unsolved:
            out.complexity.add(complexity)
            out.histogram[max(0, min(BINS - 1, int(complexity * BINS)))] += 1
        if finest := _finest(row):
            self.scales.add(finest)
        tokens = row.get("required_tokens", row.get("predicted_tokens"))
        if out.column is None and tokens is not None:
            out.column = "required_tokens" if "required_tokens" in row else "predicted_tokens"
        if unsolved:
            out.unsolved += 1
            stratum: Any = "unsolved"
        elif tokens is not None:
            out.levels[tokens] = out.levels.get(tokens, 0) + 1
            stratum = tokens
        else:
            stratum = f"{complexity:.1f}"
        if row.get("monotone") is False:
            out.non_monotone += 1
            self.odd.add((number, row))
        if stratum not in self.strata:
            self.strata[stratum] = Reservoir(self.pictures, f"{self.seed}/{stratum}")
        self.strata[stratum].add((number, row))
        if not unsolved:
            self._ends(complexity, number, row)

    def _ends(self, complexity: float, number: int, row: Row) -> None:
        for heap, sign in ((self.simplest, -1.0), (self.hardest, 1.0)):
            entry = (sign * complexity, -number, row)
            if len(heap) < min(ENDS, self.pictures // 2):
                heapq.heappush(heap, entry)
            elif heap and entry[:2] > heap[0][:2]:
                heapq.heapreplace(heap, entry)

    def _failed(self, row: Row) -> None:
        self.out.failed += 1
        reason = _reason(row)
        if reason in self.reasons or len(self.reasons) < REASONS:
            self.reasons[reason] += 1
        else:
            self.reasons["other reasons"] += 1
        if len(self.errors) < ERRORS:
            self.errors.append(row)

    def result(self) -> ScoreSummary:
        self.alike.check("do not make one report")
        out = self.out
        out.ladder = tuple(sorted(self.scales))
        scales = sorted({*out.ladder, *out.levels})
        out.levels = {tokens: out.levels.get(tokens, 0) for tokens in scales} if out.column else {}
        out.folders = self.folders.result()
        out.reasons = dict(self.reasons.most_common())
        out.errors = self.errors
        out.shown = self._sample()
        return out

    def _sample(self) -> list[Row]:
        chosen: dict[int, Row] = {-number: row for _, number, row in [*self.simplest, *self.hardest]}
        others = [item for item in self.odd.items if item[0] not in chosen]
        chosen |= dict(others[: max(0, self.pictures - len(chosen))])
        left, draw = max(0, self.pictures - len(chosen)), random.Random(f"{self.seed}/shares")
        pools = [[item for item in r.items if item[0] not in chosen] for r in self.strata.values()]
        for pool in sorted(pools, key=len):  # small strata leave their share to large ones
            share = left // max(1, sum(1 for other in pools if other))
            taken = draw.sample(pool, share) if len(pool) > share else list(pool)
            chosen |= dict(taken)
            left -= len(taken)
            pool.clear()
        return sorted(chosen.values(), key=partial(_place, self.out.mode))


def _place(mode: Mode, row: Row) -> tuple[Any, ...]:
    """Where a row stands among the shown ones."""
    by_tokens = mode in (Mode.answers, Mode.predicted)  # effective tokens have the order of complexity
    tokens = row.get("required_tokens", row.get("predicted_tokens", 0)) if by_tokens else 0
    return is_unsolved(row), tokens, row["complexity"], -row.get("rank", 0), row.get("path", "")


def _finest(row: Mapping[str, Any]) -> int | None:
    """The finest scale of a row judged by vision: it has no column, but effective_tokens is its power of
    complexity. None where the table was rounded."""
    complexity, tokens = row["complexity"], row.get("effective_tokens")
    if row.get("judged_by") != "vision" or tokens is None or complexity < _TELLING:
        return None
    finest = round(tokens ** (1 / complexity))
    return finest if math.isclose(finest**complexity, tokens, rel_tol=1e-6) else None


def _reason(row: Mapping[str, Any]) -> str:
    """A row's error without the file name that it may begin with, so that equal reasons count together."""
    error = str(row.get("error") or "no score")
    return error.removeprefix(f"{row.get('path', '')}: ")[:200]


def folder_of(path: str, depth: int | None = None) -> str:
    """The folder of a path, "" for none, cut after `depth` parts."""
    parts = path.rpartition("/")[0].split("/")
    return "/".join(parts if depth is None else parts[:depth])


class _Folders:
    """Counts per folder, in bounded memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.depth: int | None = None

    def add(self, path: str) -> None:
        name = folder_of(path, self.depth)
        full = self.depth == 1 and len(self.counts) >= FOLDERS and name not in self.counts
        self.counts["" if full else name] += 1
        while len(self.counts) > FOLDERS and self.depth != 1:
            deepest = max(name.count("/") + 1 for name in self.counts)
            self.depth = max(1, deepest - 1)
            merged: Counter[str] = Counter()
            for name, count in self.counts.items():
                merged["/".join(name.split("/")[: self.depth])] += count
            self.counts = merged

    def result(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))
