"""A table of any length in a few numbers: what the closing summary shows."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from m3score.analysis.judged import is_unsolved, judge_of
from m3score.common.statistics import Spread
from m3score.routing.decision import BUDGET, NO_PROMISE
from m3score.tables.schema import absent

SHOWN = 5
"""Rows of each sort that are kept to be shown."""


@dataclass
class Tally:
    """Counts, sums and a few examples of the rows of a score or prediction table, taken in one by one."""

    ladder: tuple[int, ...]
    """The model's scales, coarsest first."""
    images: int = 0
    failed: int = 0
    tokens: Counter[int | None] = field(default_factory=Counter)
    """Images by required_tokens; None: unsolved (or scored by a predictor)."""
    predicted: Counter[int] = field(default_factory=Counter)
    """Images by predicted_tokens, where there are such."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Images that got the finest scale because nothing can be promised of another, by why (decision.py)."""
    complexity_sum: float = 0.0
    not_monotone: int = 0
    judges: Counter[str | None] = field(default_factory=Counter)
    """Images by what judged them, see judge_of."""
    unsolved: int = 0
    """Images with questions that no scale answers rightly: the model does not know, which is not complex."""
    complexity: Spread = field(default_factory=Spread)
    """Complexities of the images that are not unsolved."""
    cut: int = 0
    """Images with an answer that was cut at max_new_tokens."""
    first: list[dict[str, Any]] = field(default_factory=list)
    """The first SHOWN scored rows that are not unsolved: in a score table's order the most complex."""
    last: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=SHOWN))
    """The last SHOWN of them: of a score table the simplest, the simplest of all last."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first SHOWN rows that failed."""

    @property
    def scored(self) -> int:
        """Images that did not fail."""
        return self.images - self.failed

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row; call it in the table's order."""
        self.images += 1
        complexity = row.get("complexity")
        if absent(complexity):
            self.failed += 1
            if len(self.failures) < SHOWN:
                self.failures.append(dict(row))
            return
        required, predicted = (_value(row, name) for name in ("required_tokens", "predicted_tokens"))
        self.tokens[None if required is None else int(required)] += 1
        if predicted is not None:
            self.predicted[int(predicted)] += 1
            reason, finest = _value(row, "reason"), self.ladder and predicted == self.ladder[-1]
            if finest and reason not in (None, NO_PROMISE, BUDGET):
                self.reasons[str(reason).partition(" (")[0]] += 1
        self.complexity_sum += float(complexity or 0)
        monotone = row.get("monotone")
        self.not_monotone += not absent(monotone) and not monotone
        self.cut += bool(_value(row, "cut_questions"))
        self.judges[judge_of(row)] += 1
        if is_unsolved(row):
            self.unsolved += 1
            return
        self.complexity.add(float(complexity or 0))
        if len(self.first) < SHOWN:
            self.first.append(dict(row))
        self.last.append(dict(row))

    def count(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in rows, in the table's order."""
        for row in rows:
            self.add(row)

    def passing(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows, taken in as they pass."""
        for row in rows:
            self.add(row)
            yield row


def _value(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    return None if absent(value) else value
