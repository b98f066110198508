"""Select rows of a score table: by range, from either end, by levels of the ladder, within a token budget.

Knows tables, no files and no images. Random choices depend only on the seed and each row's path: the order of
the table and additional rows do not change them, and a larger sample contains the smaller one.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from m3score.analysis.alike import check_alike
from m3score.analysis.judged import is_unsolved
from m3score.common.errors import M3ScoreError

if TYPE_CHECKING:
    import pandas as pd

SHORT = {"required": "required_tokens", "effective": "effective_tokens", "predicted": "predicted_tokens"}
"""Short names of columns."""
LEVEL_COLUMNS = ("required_tokens", "predicted_tokens")
"""Columns of a row's level of the ladder and its cost; the first one with any value is used."""
MOST_LEVELS = 64
"""A column with more distinct values than this is not a ladder."""


class Unsolved(StrEnum):
    """What becomes of rows that no scale solves: the model does not know, which is not complex."""

    exclude = "exclude"
    include = "include"
    """They count as the finest scale where tokens matter."""
    only = "only"


@dataclass(frozen=True)
class Selection:
    """Which rows were selected, and why others were left out."""

    positions: np.ndarray
    """int64: the rows' positions in the table. With top and bottom the most extreme row comes first, else the
    rows are in the order of the table."""
    by: str
    counted: str | None
    """The column of levels or costs; None if neither was needed."""
    without_value: int
    """Rows left out because they have no number: images that could not be scored."""
    unsolved: int
    """Rows left out because no scale solves them."""
    tokens: float | None
    """Total cost of the selected rows; None without a budget."""
    per_level: dict[int, int] = field(default_factory=dict)
    """Selected rows by level, if levels were asked for."""


def select(
    table: pd.DataFrame,
    *,
    by: str = "complexity",
    min: float | None = None,
    max: float | None = None,
    top: int | str | None = None,
    bottom: int | str | None = None,
    sample: int | str | None = None,
    per_level: int | None = None,
    token_budget: float | None = None,
    level: str | None = None,
    unsolved: Unsolved | str = Unsolved.exclude,
    seed: int = 0,
) -> pd.DataFrame:
    """The rows of a score table that meet the criteria, with their index and all columns.

    `min` and `max` filter first. Then `top`, `bottom`, `sample` or `per_level` (at most one of them) selects,
    and `token_budget` keeps as many rows as fit. Without criteria: every row that has a score.

    Args:
        table: what m3score.rank returns or m3score.tables.io.read_scores reads.
        by: the column that min, max, top and bottom use; "required", "effective" and "predicted" are short
            for the columns of tokens.
        min: least value, inclusive.
        max: greatest value, inclusive.
        top: this many rows with the greatest values, or a share of the rows in range, such as "10%".
        bottom: the same with the least values.
        sample: this many rows, or a share of them, at random.
        per_level: this many rows of every level of the ladder at random, or all if there are fewer.
        token_budget: most visual tokens of the selected rows in total: each counts those that it has at its
            level, where the table says so (visual_tokens), and else its level. The cheapest rows come first,
            which gives the most rows; with per_level, one of each level in turn; with top, bottom and sample,
            in their order.
        level: the column of levels and costs; by default the first of LEVEL_COLUMNS that has a value.
        unsolved: rows that no scale solves are left out ("exclude"): the model does not know, which is not
            complex. "include" takes them, as the finest scale where tokens matter; "only" takes nothing else.
        seed: of all random choices.

    Raises:
        M3ScoreError: a column is missing or holds no numbers, or the criteria can't be used.
    """
    chosen = select_rows(
        table,
        by=by,
        min=min,
        max=max,
        top=top,
        bottom=bottom,
        sample=sample,
        per_level=per_level,
        token_budget=token_budget,
        level=level,
        unsolved=unsolved,
        seed=seed,
    )
    return table.iloc[chosen.positions]


def select_rows(
    table: pd.DataFrame,
    *,
    by: str = "complexity",
    min: float | None = None,
    max: float | None = None,
    top: int | str | None = None,
    bottom: int | str | None = None,
    sample: int | str | None = None,
    per_level: int | None = None,
    token_budget: float | None = None,
    level: str | None = None,
    unsolved: Unsolved | str = Unsolved.exclude,
    seed: int = 0,
) -> Selection:
    """As `select`, but returns the rows' positions and what was left out."""
    _check(top=top, bottom=bottom, sample=sample, per_level=per_level)
    if token_budget is not None and not token_budget > 0:
        raise M3ScoreError(f"a token budget must be more than 0, not {token_budget}.")
    check_alike({"the table": table}, "are not selected from together")
    by, kind = SHORT.get(by, by), _unsolved(unsolved)
    scored, without_answer = _scored(table), _is_unsolved(table)
    values = _filled(table, by, kind)
    counted = costs = levels = None
    if per_level is not None or token_budget is not None:
        counted = SHORT.get(level, level) if level else _level_column(table)
        levels = _filled(table, counted, kind)
        costs = _exact(table, counted, levels)
    wanted = without_answer if kind is Unsolved.only else np.ones(len(table), bool)
    left_out = scored & without_answer if kind is Unsolved.exclude else np.zeros(len(table), bool)
    usable = scored & wanted & ~left_out & np.isfinite(values)
    if costs is not None:
        usable &= np.isfinite(costs)
    lost = wanted & ~usable & ~left_out
    kept = np.flatnonzero(usable & _within(values, min, max))

    keys = None
    if sample is not None or per_level is not None or token_budget is not None:
        keys = draw_keys(table, kept, seed)
    if top is not None:
        kept = kept[np.argsort(-values[kept], kind="stable")][: how_many(top, len(kept), "top")]
    elif bottom is not None:
        kept = kept[np.argsort(values[kept], kind="stable")][: how_many(bottom, len(kept), "bottom")]
    elif sample is not None and keys is not None:
        kept = kept[np.argsort(keys, kind="stable")][: how_many(sample, len(kept), "sample")]
    elif per_level is not None and levels is not None and keys is not None:
        kept = _of_each_level(kept, levels[kept], keys, per_level, counted)
    elif costs is not None and keys is not None:
        kept = kept[np.lexsort((keys, costs[kept]))]
    if token_budget is not None and costs is not None:
        kept = kept[_fitting(costs[kept], token_budget)]
    ordered = kept if top is not None or bottom is not None else np.sort(kept)
    return Selection(
        positions=ordered,
        by=by,
        counted=counted,
        without_value=int(lost.sum()),
        unsolved=int(left_out.sum()),
        tokens=float(costs[ordered].sum()) if token_budget is not None and costs is not None else None,
        per_level=_level_counts(levels, ordered, usable)
        if per_level is not None and levels is not None
        else {},
    )


def how_many(wanted: int | str, total: int, option: str) -> int:
    """The number of rows that 20, "20" or "10%" (of `total`, rounded up) stands for."""
    text = str(wanted).strip()
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if not 0 < share <= 100:
                raise ValueError
            return math.ceil(round(share * total / 100, 9))
        if int(text) < 1:
            raise ValueError
        return int(text)
    except ValueError:
        raise M3ScoreError(
            f"{option} needs a number such as 100, or a share such as 10%, not {text!r}."
        ) from None


def numbers(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as float64 with NaN where there is no number; M3ScoreError for a column of text, or none."""
    import pandas as pd

    if column not in table.columns:
        some = ", ".join(str(name) for name in table.columns if name not in ("path", "error"))
        raise M3ScoreError(f"the table has no column {column!r}; it has {some}.")
    try:
        return pd.to_numeric(table[column]).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError):
        raise M3ScoreError(f"the column {column!r} holds no numbers.") from None


def draw_keys(table: pd.DataFrame, positions: np.ndarray, seed: int) -> np.ndarray:
    """uint64 (len(positions),): random numbers that depend on the seed and the path alone."""
    names = table["path"] if "path" in table.columns else table.index.to_series()
    start = hashlib.blake2b(f"{seed}\0".encode(), digest_size=8)
    keys = np.empty(len(positions), np.uint64)
    for index, name in enumerate(names.iloc[positions]):
        drawn = start.copy()
        drawn.update(str(name).encode(errors="surrogatepass"))
        keys[index] = int.from_bytes(drawn.digest(), "big")
    return keys


def _check(**ways: Any) -> None:
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise M3ScoreError(f"{' and '.join(given)} exclude each other: give one of {', '.join(ways)}.")
    if ways["per_level"] is not None and int(ways["per_level"]) < 1:
        raise M3ScoreError(f"per_level must be at least 1, not {ways['per_level']}.")


def _scored(table: pd.DataFrame) -> np.ndarray:
    """bool (rows,): which rows have no error."""
    if "error" not in table.columns:
        return np.ones(len(table), bool)
    return (table["error"].isna() | (table["error"] == "").fillna(False)).to_numpy(bool)


def _unsolved(given: Unsolved | str) -> Unsolved:
    try:
        return Unsolved(given)
    except ValueError:
        raise M3ScoreError(f"unsolved is one of {', '.join(Unsolved)}, not {given!r}.") from None


def _is_unsolved(table: pd.DataFrame) -> np.ndarray:
    if "solved" not in table.columns:
        return np.zeros(len(table), bool)
    return np.array([is_unsolved({"solved": one}) for one in table["solved"]], bool)


def _filled(table: pd.DataFrame, column: str, unsolved: Unsolved) -> np.ndarray:
    """The column's numbers, with the finest scale where no scale solves a row; none where these are out."""
    values = numbers(table, column)
    if unsolved is Unsolved.exclude or column != "required_tokens":
        return values
    scales = [float(name[10:]) for name in map(str, table.columns) if re.fullmatch(r"agreement_\d+", name)]
    finest = max(scales or values[np.isfinite(values)], default=math.nan)
    return np.where(np.isnan(values) & _is_unsolved(table), finest, values)


def _exact(table: pd.DataFrame, column: str, levels: np.ndarray) -> np.ndarray:
    """What rows cost: the visual tokens that an image has at its level, where the table knows them."""
    if column != "required_tokens" or "visual_tokens" not in table.columns:
        return levels
    known = numbers(table, "visual_tokens")
    return np.where(np.isfinite(known), known, levels)


def _level_column(table: pd.DataFrame) -> str:
    there = [column for column in LEVEL_COLUMNS if column in table.columns]
    for column in there:
        if np.isfinite(numbers(table, column)).any():
            return column
    if there and (_is_unsolved(table).any() or not _scored(table).any()):
        return there[0]
    raise M3ScoreError(
        f"levels and budgets need a column with tokens ({' or '.join(LEVEL_COLUMNS)}), of which this table "
        "has none: name another one with level (--level)."
    )


def _within(values: np.ndarray, least: float | None, most: float | None) -> np.ndarray:
    inside = np.ones(len(values), bool)
    if least is not None:
        inside &= values >= least
    if most is not None:
        inside &= values <= most
    return inside


def _of_each_level(
    kept: np.ndarray, levels: np.ndarray, keys: np.ndarray, per_level: int, column: str | None
) -> np.ndarray:
    """`per_level` rows of each level; the first of every level come before the second of any."""
    different, which = np.unique(levels, return_inverse=True)
    if len(different) > MOST_LEVELS:
        raise M3ScoreError(f"the column {column!r} has {len(different):,} different values: it is no ladder.")
    order = np.lexsort((keys, which))
    turn = np.empty(len(kept), np.int64)
    starts = np.searchsorted(which[order], np.arange(len(different)))
    turn[order] = np.arange(len(kept)) - starts[which[order]]
    chosen = np.flatnonzero(turn < per_level)
    return kept[chosen[np.lexsort((which[chosen], turn[chosen]))]]


def _fitting(costs: Sequence[float] | np.ndarray, budget: float) -> np.ndarray:
    """bool (rows,): which rows fit into the budget, taken in order."""
    left = budget
    fits = np.zeros(len(costs), bool)
    for index, cost in enumerate(costs):
        if cost <= left:
            fits[index] = True
            left -= cost
    return fits


def _level_counts(levels: np.ndarray, chosen: np.ndarray, usable: np.ndarray) -> dict[int, int]:
    """Selected rows of every level in the table."""
    return {int(one): int((levels[chosen] == one).sum()) for one in np.unique(levels[usable])}
