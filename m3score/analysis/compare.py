"""Compare how several scores rank the same images: two runs, several scorers, people's ratings.

Rank correlations with intervals, what moved most, what only some tables have. Knows tables, no files.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from m3score.analysis.alike import check_alike
from m3score.analysis.judged import is_unsolved, judge_of, mode_of
from m3score.analysis.select import SHORT, numbers
from m3score.common.errors import M3ScoreError
from m3score.common.statistics import spearman

if TYPE_CHECKING:
    import pandas as pd

MOST_RESAMPLED = 5_000
"""Up to this many images intervals are bootstrapped; for more, the formula of Fieller, Hartley and Pearson
(1957) gives the same in no time."""
RESAMPLES = 1_000
ALL = "all"
"""The category that contains all images."""
RESERVED = ("path", "rating", "category", "moved")
"""Columns of a comparison's table that no score table may be named after."""


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its interval; None if undefined (too few images, or all values equal)."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Pair:
    """How similarly two columns of scores rank the images that both have."""

    first: str
    second: str
    category: str
    """ALL, or a category of the ratings."""
    images: int
    spearman: Correlation
    kendall: Correlation
    """Tau-b, which handles ties."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    names: tuple[str, ...]
    by: str
    pairs: tuple[Pair, ...]
    """Every table against every other."""
    rated: tuple[Pair, ...]
    """Every table against the ratings: per category, then ALL. Ratings compare only within a category."""
    table: pd.DataFrame
    """One row per image of any table: path, the score in each table (its name), the share of the common
    images that are simpler (`NAME_rank`, 0 to 1), `moved` (of that share from the first to the second table,
    or for more than two the widest distance between any), and `rating` and `category` where there are
    ratings (of several categories the mean, and their names with "; " between). Those that moved most come
    first.
    """
    only: dict[str, int]
    """By table: images that no other table has."""
    without: dict[str, int]
    """By table: images without a score, such as unreadable files."""
    ratings: pd.DataFrame | None = None
    """One row per image and category: path, category, rating."""
    judged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By table: what judged its rows, see judged.judge_of; () of measures."""
    unsolved: dict[str, int] = field(default_factory=dict)
    """By table: images that no scale solves. Their complexity is high, but the model does not know."""

    @property
    def unlike(self) -> bool:
        """Whether tables were judged by different things: ranks compare, single values do not."""
        return len({mode_of(judges) for judges in self.judged.values()}) > 1

    def label(self, name: str) -> str:
        """A table's name with what judged it."""
        judges = self.judged.get(name)
        return f"{name} ({', '.join(judges)})" if judges else name

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, without the table."""
        return {
            "tables": list(self.names),
            "by": self.by,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "ratings": [pair.to_dict() for pair in self.rated],
            "only": self.only,
            "without_score": self.without,
            "judged_by": {name: list(judges) for name, judges in self.judged.items()},
            "unsolved": self.unsolved,
        }


def compare(
    tables: Mapping[str, pd.DataFrame],
    ratings: pd.DataFrame | None = None,
    *,
    by: str = "complexity",
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    anyway: bool = False,
) -> Comparison:
    """Compare score tables image by image.

    Images are matched by path. A path that only one table has is matched by its end ("photos/a.jpg" and
    "/data/photos/a.jpg") if exactly one path fits.

    Args:
        tables: score tables by name; one is enough if there are ratings.
        ratings: with the columns path (or image), rating and, optionally, category; higher is more complex.
            Several ratings of an image in one category count with their mean. An image that is rated in two
            categories counts in each with its rating there, and among all images with the mean of the two.
        by: the column of numbers to compare, or a short name of one.
        confidence: of the intervals, in (0, 1).
        resamples: of the bootstrap over images.
        seed: of the bootstrap.
        anyway: compare ranks of tables of different models, ladders or sources of agreement too.

    Raises:
        M3ScoreError: too few tables, a missing column, no image in common, or tables that are relative to
            different ladders.
    """
    if len(tables) + (ratings is not None) < 2:
        raise M3ScoreError("a comparison needs two tables, or one and ratings.")
    if taken := [name for name in tables if name in RESERVED]:
        raise M3ScoreError(f"no table may be named {' or '.join(taken)}.")
    if not 0 < confidence < 1:
        raise M3ScoreError(f"confidence must be between 0 and 1, not {confidence}.")
    if not anyway:
        hint = ": their values mean different things; --anyway compares their ranks"
        check_alike(tables, "are not compared", hint)
    by = SHORT.get(by, by)
    columns, without, judged, unsolved = {}, {}, {}, {}
    for name, table in tables.items():
        scores = _scores(table, by, name)
        judged[name], unsolved[name] = _judged(table)
        without[name] = int(scores.isna().sum())
        columns[name] = scores.dropna()
    joined = _joined(columns)
    rated = None if ratings is None else _ratings(joined, ratings)
    if rated is not None:
        joined = joined.join(_per_image(rated), how="left")
    settings = (confidence, resamples, seed)
    names = tuple(tables)
    pairs = tuple(_pair(joined, first, second, ALL, settings) for first, second in combinations(names, 2))
    if pairs and not any(pair.images for pair in pairs):
        raise M3ScoreError("the tables have no image with a score in common.")
    present = joined[list(names)].notna()
    alone = present.sum(axis=1) == 1
    return Comparison(
        names=names,
        by=by,
        pairs=pairs,
        rated=() if rated is None else tuple(_rated(joined, rated, names, settings)),
        table=_moved(joined, names),
        only={name: int((present[name] & alone).sum()) for name in names} if len(names) > 1 else {},
        without=without,
        ratings=rated,
        judged=judged,
        unsolved=unsolved,
    )


def _judged(table: pd.DataFrame) -> tuple[tuple[str, ...], int]:
    """What judged the rows of a table that have a score, and how many of them are unsolved."""
    telling = ["judged_by", "required_tokens", "solved", "predicted_tokens"]
    there = table.loc[table["complexity"].notna(), [name for name in telling if name in table.columns]]
    judges = {judge_of(row) for row in there.drop_duplicates().to_dict("records")}  # few: levels and judges
    unsolved = sum(is_unsolved({"solved": one}) for one in there.get("solved", ()))
    return tuple(sorted(filter(None, judges))), unsolved


def _scores(table: pd.DataFrame, by: str, name: str) -> pd.Series[Any]:
    """Scores by path; NaN if there is none. An image that occurs twice has the mean."""
    import pandas as pd

    try:
        values = numbers(table, by)
    except M3ScoreError as error:
        raise M3ScoreError(f"{name}: {error}") from None
    scores = pd.Series(values, index=table["path"].astype(str).to_numpy(object))
    if "error" in table.columns:
        failed = table["error"].notna() & (table["error"] != "").fillna(False)
        scores[failed.to_numpy(bool)] = math.nan
    return scores if scores.index.is_unique else scores.groupby(level=0, sort=False).mean()


def _joined(columns: Mapping[str, pd.Series[Any]]) -> pd.DataFrame:
    """Paths down, tables across."""
    import pandas as pd

    renamed: dict[str, pd.Series[Any]] = {}
    known: list[str] = []
    for name, scores in columns.items():
        matches = match_paths([str(path) for path in scores.index], known)
        renamed[name] = scores.rename(index=matches)
        known = list(dict.fromkeys([*known, *map(str, renamed[name].index)]))
    return pd.DataFrame(renamed, index=pd.Index(known, name="path"))


def match_paths(paths: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """For each path that is not in `known`: the one known path that it may mean, by its end."""
    there = set(known)
    here = set(paths)
    free = [path for path in known if path not in here]
    strange = [path for path in paths if path not in there]
    if not free or not strange:
        return {}
    found: dict[str, str] = {}
    ends: dict[tuple[str, ...], list[str]] = {}
    for path in free:
        ends.setdefault(_parts(path)[-1:], []).append(path)
    for path in strange:
        parts = _parts(path)
        fitting = [other for other in ends.get(parts[-1:], ()) if _fits(parts, _parts(other))]
        if len(fitting) == 1:
            found[path] = fitting[0]
    meant = Counter(found.values())
    return {path: other for path, other in found.items() if meant[other] == 1}


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in PurePath(path).parts if part not in ("/", "."))


def _fits(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    shorter = min(len(one), len(other))
    return one[-shorter:] == other[-shorter:]


def _ratings(joined: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """path, category, rating: one row for each image and category, the paths as the tables have them."""
    path = next((name for name in ("path", "image") if name in ratings.columns), None)
    if path is None or "rating" not in ratings.columns:
        raise M3ScoreError(
            "ratings need the columns path (or image) and rating, and may have category; they have "
            f"{', '.join(map(str, ratings.columns))}."
        )
    rated = ratings.assign(rating=numbers(ratings, "rating"), path=ratings[path].astype(str))
    matches = match_paths(rated["path"].tolist(), [str(one) for one in joined.index])
    rated = rated.assign(path=rated["path"].map(lambda one: matches.get(one, one)))
    if "category" not in rated.columns:
        rated = rated.assign(category=ALL)
    rated = rated.assign(category=rated["category"].astype(object).where(rated["category"].notna(), ALL))
    rated = rated.dropna(subset=["rating"])[["path", "category", "rating"]].astype({"category": str})
    if not rated["path"].isin(joined.index).any():
        raise M3ScoreError("none of the rated images is in the tables.")
    return rated.groupby(["path", "category"], sort=False)["rating"].mean().reset_index()


def _per_image(rated: pd.DataFrame) -> pd.DataFrame:
    """Ratings with one row per image."""
    return rated.groupby("path").agg({"rating": "mean", "category": "; ".join})


def _rated(
    joined: pd.DataFrame, rated: pd.DataFrame, names: Sequence[str], settings: tuple[float, int, int]
) -> Iterator[Pair]:
    here = rated[rated["path"].isin(joined.index)]
    categories = sorted(set(here["category"]) - {ALL})
    for name in names:
        for category in categories:
            inside = here[here["category"] == category].set_index("path")["rating"]
            yield _pair(joined.assign(rating=inside), name, "rating", category, settings)
        yield _pair(joined, name, "rating", ALL, settings)


def _pair(
    joined: pd.DataFrame, first: str, second: str, category: str, settings: tuple[float, int, int]
) -> Pair:
    both = joined[[first, second]].dropna().to_numpy(np.float64)
    return Pair(first, second, category, len(both), *_correlations(both[:, 0], both[:, 1], *settings))


def _correlations(
    x: np.ndarray, y: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[Correlation, Correlation]:
    from scipy.stats import kendalltau, norm

    n = len(x)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        nothing = Correlation(None, None, None)
        return nothing, nothing
    values = float(spearman(x, y)), float(kendalltau(x, y).statistic)
    if n > MOST_RESAMPLED:
        z = norm.ppf(0.5 + confidence / 2)
        spreads = math.sqrt(1.06 / (n - 3)), math.sqrt(0.437 / (n - 4))
        pairs = [
            Correlation(
                value,
                *(
                    math.tanh(math.atanh(min(abs(value), 1 - 1e-12)) * np.sign(value) + side * z * s)
                    for side in (-1, 1)
                ),
            )
            for value, s in zip(values, spreads, strict=True)
        ]
        return pairs[0], pairs[1]
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    spearmans = np.concatenate(
        [spearman(x[rows], y[rows]) for rows in np.array_split(drawn, max(1, n // 50))]
    )
    kendalls = np.array([kendalltau(x[row], y[row]).statistic for row in drawn])
    tails = (0.5 - confidence / 2, 0.5 + confidence / 2)
    return _interval(values[0], spearmans, tails), _interval(values[1], kendalls, tails)


def _interval(value: float, resampled: np.ndarray, tails: tuple[float, float]) -> Correlation:
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return Correlation(float(value), None, None)
    low, high = np.quantile(defined, tails)
    return Correlation(float(value), float(low), float(high))


def _moved(joined: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Comparison.table."""
    common = joined[list(names)].dropna()
    shares = (common.rank() - 0.5) / max(len(common), 1)
    whole = joined.assign(**{f"{name}_rank": shares[name] for name in names})
    if len(names) > 1:
        moved = (
            shares[names[1]] - shares[names[0]]
            if len(names) == 2
            else shares.max(axis=1) - shares.min(axis=1)
        )
        whole = whole.assign(moved=moved)
        whole = whole.iloc[np.argsort(-whole["moved"].abs().fillna(-1).to_numpy(), kind="stable")]
    return whole.reset_index()
