"""Which images a cascade asks the model about, and how the predictor's scores come onto the model's scale.

Knows numbers only; the two passes over the images are in cascade_run.py.

*Unsure* is where the later half of the predictor's trees still moves the prediction (Ensemble.spread). Tried
on labels of m3-tiny: fitted to 6,300 drawn images, ranking 1,500 others, of which so many went to the model;
Spearman's correlation with asking it about all of them, complexity judged by right answers (the predictor
alone: .467) | by agreement (.526):

    asked about                               5 %    10 %    20 %    50 %       5 %    10 %    20 %    50 %
    at random                                .497    .533    .596    .770   |  .551    .581    .634    .787
    nearest to a border between scales       .487    .506    .577    .744   |  .553    .573    .623    .758
    the most complex ones                    .471    .481    .552    .717   |  .525    .530    .618    .763
    where calibration images scatter most    .492    .546    .611    .784   |  .453    .558    .627    .805
    where five fits disagree                 .504    .539    .614    .797   |  .564    .598    .674    .831
    Ensemble.spread                          .510    .545    .616    .798   |  .562    .597    .657    .819

The spread needs neither further fits nor labels. (A regression of the squared error on the features was
better still, .60 and .87 at 10 and 50 %: but it takes some two thousand images that both scored.)

A tenth of the budget is drawn at random all the same. On these images the agreement of the two is estimated,
and they keep the correction honest: the predictor's scores are mapped onto the model's by a straight line
through all that both scored. Without it those that the model scored would stand at the wrong end: by
agreement, 20 % asked at random gave .478 instead of .634. (Isotonic regression did no better, and makes
ties.) The figures above are with this line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.common.statistics import spearman

DEFAULT = "10%"
DRAWN = 0.1
"""Share of the budget that is drawn at random."""
FEWEST = 20
"""Images that both scored, below which nothing is estimated; so many are drawn at least, if half the budget
allows it."""
LEAST_SLOPE = 0.05
"""Of the line onto the model's scale: a predictor that knows next to nothing still orders what it scored."""


@dataclass(frozen=True)
class Budget:
    """How many images the model may be asked about: a share, or a number."""

    share: float | None = None
    """In [0, 1], of the images that the predictor could score."""
    most: int | None = None

    @classmethod
    def of(cls, share: str | None = None, most: int | None = None) -> Budget:
        """From the options --budget ("10%" or "0.1") and --max-model-images; M3ScoreError if it is none."""
        if share is not None and most is not None:
            raise M3ScoreError("--budget and --max-model-images say the same: give one of them.")
        if most is not None:
            return cls(most=most)
        text = (DEFAULT if share is None else share).strip()
        try:
            value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise M3ScoreError(f"--budget {text}: give a share of the images, from 0% to 100%, such as 10%.")
        return cls(share=value)

    def images(self, total: int) -> int:
        """How many of `total` images."""
        if self.most is not None:
            return min(self.most, total)
        return min(total, math.ceil((self.share or 0.0) * total - 1e-9))


def path_hash(path: str) -> int:
    """Eight bytes that stand for a path; also what makes a random order of the images, always the same."""
    return int.from_bytes(blake2b(path.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class Plan:
    """What the model is to be asked about."""

    chosen: np.ndarray
    """uint64 (n,) ascending: path_hash of each."""
    complexity: np.ndarray
    """float64 (n,): what the predictor says of them."""
    drawn: np.ndarray
    """bool (n,): whether it was drawn at random."""

    def __contains__(self, path: str) -> bool:
        number = np.uint64(path_hash(path))
        place = int(np.searchsorted(self.chosen, number))
        return place < len(self.chosen) and bool(self.chosen[place] == number)

    def prediction(self, number: int) -> tuple[float, bool]:
        """complexity and drawn of a path_hash that was chosen."""
        place = int(np.searchsorted(self.chosen, np.uint64(number)))
        return float(self.complexity[place]), bool(self.drawn[place])


NOTHING = Plan(np.empty(0, np.uint64), np.empty(0), np.empty(0, bool))


def plan(hashes: np.ndarray, complexity: np.ndarray, spread: np.ndarray, budget: Budget) -> Plan:
    """Choose by spread, and some at random.

    Args:
        hashes: uint64 (n,) path_hash of every image.
        complexity: float64 (n,) what the predictor says; NaN where it could not.
        spread: float64 (n,) how unsure it is.
        budget: how many.
    """
    known = np.flatnonzero(~np.isnan(complexity))
    number = budget.images(len(known))
    random = known[np.argsort(hashes[known], kind="stable")]
    many = min(max(math.ceil(DRAWN * number), FEWEST), max(number // 2, 1), number)
    rest = random[many:]
    rest = rest[np.argsort(-spread[rest], kind="stable")][: number - many]
    picked = np.concatenate([random[:many], rest])
    drawn = np.arange(len(picked)) < many
    order = np.argsort(hashes[picked], kind="stable")
    return Plan(hashes[picked][order], complexity[picked][order], drawn[order])


@dataclass(frozen=True)
class LinearMap:
    """From the predictor's complexity to what the model would say, on the average."""

    slope: float = 1.0
    shift: float = 0.0

    @classmethod
    def through(cls, predicted: np.ndarray, asked: np.ndarray) -> LinearMap | None:
        """Least squares; None where fewer than FEWEST images, or all alike, were scored by both."""
        if len(predicted) < FEWEST or np.ptp(predicted) < 1e-6:
            return None
        middle = predicted - predicted.mean()
        slope = max(LEAST_SLOPE, float(middle @ asked / (middle @ middle)))
        return cls(slope, float(asked.mean() - slope * predicted.mean()))

    def at(self, complexity: float) -> float:
        """In [0, 1]."""
        return min(1.0, max(0.0, self.slope * complexity + self.shift))


def agreement(predicted: np.ndarray, asked: np.ndarray) -> float | None:
    """Spearman's rank correlation; None where there are too few images for it to mean anything."""
    found = float(spearman(predicted, asked, FEWEST))
    return None if math.isnan(found) else found
