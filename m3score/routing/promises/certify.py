"""Routing with a guarantee: which safety margin may be added to a prediction, by the evidence of a
calibration.

Knows numbers only, no images, files or models. Predictions are in ln(visual tokens per grid).

A question's *regret* at a margin is 1 if the scale that it is routed to does not suffice although the finest
does,
else 0: the share of regrets is at least the drop in accuracy against the finest scale. Margins are tested
from "always the finest" downward (fixed-sequence testing, as in "Learn then Test", arXiv 2110.01052), each by
the exact binomial p-value of "the true regret is above max_drop", until the first that cannot be rejected.
The order is fixed before the data are seen, so all tests together err with probability 1 - confidence at
most, without a correction for their number.

Sequences of prices (prices.py) could be certified in the same way, and make better frontiers; they don't save
more under a promise. Fitted to 1,664 drawn images and tried on 1,500 others, with image and question: a
regret of 1, 2, 3 % took 314, 203, 129 tokens by margin; 307, 289, 180 by price; 330, 224, 127 by the price of
chances that a classifier of its own learnt at every scale.

What that needs: calibration regrets that are independent of each other and of the fit, and drawn as the later
traffic will be. Questions about one image are not independent; so there are two promises:

- per "image": each calibration image counts once, with one of its questions, drawn by a seed before its
  answers are looked at. It is kept on the mean over such draws: one image, one of its questions.
- per "question": all questions of all images count alike, so that images about which much is asked, which are
  often the hard ones, weigh more. Images stay the independent units. With S regrets among the N questions of
  an image the promise is E[S] <= max_drop E[N]; it is tested by betting against E[S - max_drop N] > 0
  (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS B 86, 2024,
  theorem 3 and their predictable plug-in bets): wealth that multiplies by 1 - bet (S - max_drop N) / most
  from image to image is a supermartingale where the promise is broken, so that it ever exceeds 1 / p has a
  chance of p at most (Ville). `most` bounds N; it is fixed before the calibration images are looked at.

Either is kept in all but 1 - confidence of the calibrations, on the mean; neither is about each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from m3score.common.errors import M3ScoreError

PROMISES = ("image", "question")
"""What shares are of; see above."""
_BOLDEST = 0.9
"""The largest bet, as a share of what one image could lose: a single one must not take all."""
_PRIOR = 0.5
"""What the variance of the excess is taken for at first, in units of max_drop (1 - max_drop)."""
STEPS = 200
"""Margins between "always the finest" and a margin of zero."""

# Predictions are kept as float32: one that equals a scale's logarithm must not be rounded up past it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Certificate:
    """What may be promised at one max_drop and confidence, and the margin that keeps it."""

    max_drop: float
    confidence: float
    certified: bool
    """False: no margin could be certified, and `margin` is the one that always gives the finest scale."""
    margin: float
    """Added to predictions before they are rounded up to a scale; in ln(tokens)."""
    regret: float
    """Share of regrets at this margin on the calibration images."""
    p_value: float
    """p-value at this margin of "the true regret is above max_drop": exact binomial per image, by betting per
    question."""
    images: int
    """Calibration images; per image one question of each counts, per question all."""
    images_needed: int
    """Images without regret that it takes to certify anything: ln(1 - confidence) / ln(1 - max_drop)."""
    mean_tokens: float | None = None
    """Mean tokens per grid at this margin on the calibration images, where known."""
    note: str = field(default="")
    """One sentence for people."""
    per: str = "image"
    """One of PROMISES: what `max_drop` and `regret` are shares of."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def margins(ladder: Sequence[int]) -> np.ndarray:
    """float64 (2 * STEPS + 1,): from ln(finest), which always gives the finest scale, to -ln(finest)."""
    top = math.log(ladder[-1])
    return np.arange(STEPS, -STEPS - 1, -1) / STEPS * top


def route(predictions: Any, margin: float, ladder: Sequence[int]) -> np.ndarray:
    """Scales for predictions: int (n,), the smallest t with ln t >= prediction + margin, else the finest.

    Args:
        predictions: (n,) ln(tokens).
        margin: in ln(tokens); positive is cautious.
        ladder: tokens per grid, coarsest first.
    """
    return np.asarray(ladder)[route_levels(predictions, margin, ladder)]


def route_levels(predictions: Any, margin: float, ladder: Sequence[int]) -> np.ndarray:
    """As `route`, but positions on the ladder."""
    wanted = np.asarray(predictions, dtype=np.float64) + margin - _ROUNDING
    return np.minimum(np.searchsorted(np.log(ladder), wanted), len(ladder) - 1)


def regrets_at(
    predictions: np.ndarray, sufficient: np.ndarray, margin: float, ladder: Sequence[int]
) -> np.ndarray:
    """bool (n,): routed to a scale that does not suffice although the finest does.

    Args:
        predictions: (n,) ln(tokens).
        sufficient: bool (n, scales), coarsest first.
    """
    routed = sufficient[np.arange(len(sufficient)), route_levels(predictions, margin, ladder)]
    return np.asarray(sufficient[:, -1] & ~routed)


def certify(
    margins: Sequence[float] | np.ndarray,
    regrets_at: Callable[[float], np.ndarray],
    max_drop: float,
    confidence: float,
) -> Certificate:
    """The lowest margin that fixed-sequence testing certifies, per image.

    Args:
        margins: in the order in which they are tested, the safest (which is kept if none passes) first.
        regrets_at: bool (n,) regrets of the calibration images, one question each, at a margin.
        max_drop: the share of regrets that is not to be exceeded, in (0, 1).
        confidence: in (0, 1).

    Raises:
        M3ScoreError: max_drop or confidence out of range, or no margins.
    """

    def test(regrets: np.ndarray) -> float:
        return p_above(int(np.count_nonzero(regrets)), len(regrets), max_drop)

    needed = images_needed(max_drop, confidence)
    return _fixed_sequence(margins, regrets_at, test, max_drop, confidence, needed, None, "image")


def certify_questions(
    margins: Sequence[float] | np.ndarray,
    regrets_at: Callable[[float], np.ndarray],
    image: np.ndarray,
    most: int,
    max_drop: float,
    confidence: float,
) -> Certificate:
    """As `certify`, but per question: all questions of all calibration images count.

    Args:
        margins, max_drop, confidence: as there.
        regrets_at: bool (m,) regrets of all questions at a margin.
        image: int (m,), ascending from 0: which image each question is about.
        most: questions about one image at most, in the calibration as in the traffic that the promise is for.

    Raises:
        M3ScoreError: as there, or an image with more questions than `most`.
    """
    check_levels(max_drop, confidence)
    asked = np.bincount(image).astype(float) if len(image) else np.zeros(0)
    if len(asked) and asked.max() > most:
        raise M3ScoreError(f"an image has {asked.max():.0f} questions, but {most} are the most.")

    def test(regrets: np.ndarray) -> float:
        sums = np.bincount(image, weights=regrets, minlength=len(asked))
        return p_by_betting((sums - max_drop * asked) / most, max_drop, confidence)

    # Without a regret an image multiplies wealth by 1 + bet * max_drop * asked / most.
    per_image = float(asked.mean()) / most if len(asked) else 1.0
    needed = math.ceil(
        math.log1p(-confidence) / -math.log1p(_BOLDEST * max_drop * per_image / (1 - max_drop))
    )
    return _fixed_sequence(margins, regrets_at, test, max_drop, confidence, needed, len(asked), "question")


def _fixed_sequence(
    margins: Sequence[float] | np.ndarray,
    regrets_at: Callable[[float], np.ndarray],
    test: Callable[[np.ndarray], float],
    max_drop: float,
    confidence: float,
    needed: int,
    images: int | None,
    per: str,
) -> Certificate:
    """Margins one after the other, until the first whose regrets `test` gives too large a p-value."""
    check_levels(max_drop, confidence)
    if not len(margins):
        raise M3ScoreError("certify needs at least one margin.")
    first = np.asarray(regrets_at(float(margins[0])))
    images = len(first) if images is None else images
    kept = (float(margins[0]), float(first.mean()) if len(first) else 0.0, 1.0)
    certified = False
    for margin in margins:
        regrets = np.asarray(regrets_at(float(margin)))
        p_value = test(regrets)
        if p_value > 1 - confidence:
            break
        kept, certified = (float(margin), float(regrets.mean()), p_value), True
    return Certificate(
        max_drop=max_drop,
        confidence=confidence,
        certified=certified,
        margin=kept[0],
        regret=kept[1],
        p_value=kept[2],
        images=images,
        images_needed=needed,
        note=_note(certified, max_drop, confidence, images, needed, per),
        per=per,
    )


def nothing(max_drop: float, confidence: float, ladder: Sequence[int], per: str, note: str) -> Certificate:
    """The certificate of a calibration that cannot make a promise of this kind: always the finest scale."""
    needed, top = images_needed(max_drop, confidence), float(margins(ladder)[0])
    return Certificate(max_drop, confidence, False, top, 0.0, 1.0, 0, needed, float(ladder[-1]), note, per)


def p_above(count: int, n: int, max_drop: float) -> float:
    """Exact p-value of "the true rate is above max_drop": P(Binomial(n, max_drop) <= count)."""
    from scipy.special import bdtr

    return float(bdtr(count, n, max_drop)) if n else 1.0


def p_by_betting(excess: np.ndarray, max_drop: float, confidence: float) -> float:
    """p-value of "the mean excess is above 0": 1 over the most wealth that betting against it ever had.

    Args:
        excess: float64 (images,), in an order that is independent of it: (regrets - max_drop * questions) of
            an image over the most questions of any, so within [-max_drop, 1 - max_drop].
        max_drop: in (0, 1).
        confidence: the bets are made to reach 1 / (1 - confidence) after these many images, where they can.
            Each hangs on the images before it alone, which is what makes any such rule valid.
    """
    if not len(excess):
        return 1.0
    count = np.arange(1, len(excess) + 1)
    means = np.cumsum(excess) / (count + 1)
    spread = _PRIOR * max_drop * (1 - max_drop) + np.cumsum(np.square(excess - means))
    before = np.append(_PRIOR * max_drop * (1 - max_drop), (spread / (count + 1))[:-1])
    bets = np.sqrt(2 * -math.log1p(-confidence) / (len(excess) * before))
    wealth = np.cumsum(np.log1p(-np.minimum(bets, _BOLDEST / (1 - max_drop)) * excess))
    return math.exp(-max(0.0, float(wealth.max())))


def p_below(count: int, n: int, max_drop: float) -> float:
    """Exact p-value of "the true rate is at most max_drop": P(Binomial(n, max_drop) >= count)."""
    from scipy.special import bdtrc

    return float(bdtrc(count - 1, n, max_drop)) if count else 1.0


def images_needed(max_drop: float, confidence: float) -> int:
    """The fewest calibration images, all without regret, with which anything can be certified."""
    check_levels(max_drop, confidence)
    return math.ceil(math.log1p(-confidence) / math.log1p(-max_drop))


def check_levels(max_drop: float, confidence: float) -> None:
    """M3ScoreError unless both lie strictly between 0 and 1."""
    for name, value in (("max_drop", max_drop), ("confidence", confidence)):
        if not 0 < value < 1:
            raise M3ScoreError(f"{name} must lie between 0 and 1 (both excluded), not {value}.")


def _note(certified: bool, max_drop: float, confidence: float, images: int, needed: int, per: str) -> str:
    promise = f"a drop of at most {max_drop:.4g} per {per} at confidence {confidence:.4g}"
    if certified:
        return f"Certified on {images} calibration images: {promise}."
    if images < needed:
        return (
            f"Nothing certified, so always the finest scale: {promise} needs at least {needed} calibration "
            f"images, and there are {images}."
        )
    return (
        f"Nothing certified, so always the finest scale: even the most cautious margin failed on the "
        f"{images} calibration images for {promise}."
    )
