"""Is an answer right, and do two answers say the same? One function per metric, one line to register it.

Knows strings only: no images, no models, no tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapidfuzz.distance import Levenshtein

from m3score.common.errors import M3ScoreError
from m3score.data.choices import choice, yes_or_no
from m3score.data.normal_form import PLAIN_QUOTES, folded, normalise

# ---- the values ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grade:
    """A metric's verdict: its score in [0, 1], and whether the score reaches the metric's threshold."""

    score: float
    correct: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


@dataclass(frozen=True)
class Metric:
    """A named way to judge an answer against its references."""

    name: str
    score: Callable[[str, Sequence[str], Sequence[str]], float]
    """(prediction, references, options) -> score in [0, 1]."""
    threshold: float
    """The least score that counts as correct."""


# ---- metrics ------------------------------------------------------------------------------------------


def exact_match(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the normalised prediction equals any normalised reference, else 0.0."""
    wanted = normalise(prediction)
    return float(any(wanted == normalise(reference) for reference in references))


def vqa_accuracy(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """VQA accuracy (Antol et al., arXiv 1505.00468): min(1, matching annotators / 3), leave-one-out averaged.

    Each of the n annotators is left out in turn and the prediction compared with the others; with ten
    annotators 1, 2, 3, 4 matches give 0.3, 0.6, 0.9, 1.0. With fewer than four there are not three others,
    so min(3, n - 1) of them are asked for (a unanimous panel still gives 1.0), and one reference alone is
    an exact match. References are votes: for a list of equally good answers use exact_match.
    """
    wanted = normalise(prediction)
    matches = [wanted == normalise(reference) for reference in references]
    if len(matches) == 1:
        return float(matches[0])
    needed = min(3, len(matches) - 1)
    # Whole votes are summed before the one division, so that 0.6 is 0.6 and not 0.5999.
    votes = sum(min(needed, sum(matches) - left_out) for left_out in matches)
    return votes / (needed * len(matches))


def anls(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Average normalised Levenshtein similarity of one answer (ANLS; Biten et al., arXiv 1905.13648).

    1 - edit distance / length of the longer string, 0 where that is below 0.5; the best over the references.
    Case and the width of white space do not count. Exactly 0.5 counts, as in the evaluation script of the
    DocVQA challenge, in lmms-eval and in LLaVA, where published figures come from; by the formula of the
    paper it would be 0.
    """
    return max(_similarity(folded(prediction), folded(reference)) for reference in references)


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    similarity = 1.0 - Levenshtein.distance(a, b) / longest if longest else 1.0
    return similarity if similarity >= 0.5 else 0.0


def relaxed_accuracy(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """ChartQA's relaxed accuracy (Masry et al., arXiv 2203.10244): numbers within 5% of a reference.

    "12%" is the number 0.12; thousands separators and currency signs are dropped. Where either side is no
    number, the normalised texts have to match. As in ChartQA a year is a number like any other: 2010 passes
    for 2019, so ask for years with exact_match. A reference of zero allows no other number.
    """
    return float(any(_relaxed_match(prediction, reference) for reference in references))


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))", re.ASCII)
_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9"


def _relaxed_match(prediction: str, reference: str) -> bool:
    got, wanted = _as_number(prediction), _as_number(reference)
    if got is None or wanted is None:
        return exact_match(prediction, (reference,)) == 1.0
    # A hair above 5%, so that 0.105 passes for 0.1 in binary as it does on paper.
    return abs(got - wanted) <= 0.05 * abs(wanted) * (1 + 1e-9)


def _as_number(text: str) -> float | None:
    plain = text.translate(PLAIN_QUOTES).lower().strip()
    percent = plain.endswith("%")
    plain = re.sub(rf"^([+-]?)[{_CURRENCY}]\s*|\s*[{_CURRENCY}%]$", r"\1", plain)
    plain = _THOUSANDS.sub("", plain)
    if not _NUMBER.fullmatch(plain):
        return None
    value = float(plain) / (100 if percent else 1)
    return value if math.isfinite(value) else None


def multiple_choice(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the prediction picks the option that a reference names, else 0.0.

    References and predictions name an option by its letter or by its text; see choice(). Without `options`
    letters are compared, and otherwise normalised texts. M3ScoreError for a reference that names none of the
    options.
    """
    right = {choice(reference, options) for reference in references}
    if None in right and options:
        unknown = next(reference for reference in references if choice(reference, options) is None)
        letters = ", ".join(f"{chr(65 + i)} ({text})" for i, text in enumerate(options))
        raise M3ScoreError(f"reference answer {unknown!r} names no option; the options are {letters}.")
    picked = choice(prediction, options)
    if picked is None:
        return exact_match(prediction, references) if not options else 0.0
    return float(picked in right)


def first_letter(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the first character is the letter of a right option, else 0.0; case does not count.

    What TemporalBench, Vinoground and lmms-eval's SEED-Bench go by. M3ScoreError for a reference that is no
    letter.
    """
    letters = {reference.strip().upper() for reference in references}
    if other := [letter for letter in letters if not re.fullmatch("[A-Z]", letter)]:
        raise M3ScoreError(f"reference answer {other[0]!r} is no letter, as first_letter needs it.")
    return float(prediction[:1].upper() in letters)


def yes_no(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the prediction says yes where a reference does, or no where that does; see yes_or_no()."""
    said = yes_or_no(prediction)
    return float(said is not None and any(said == yes_or_no(reference) for reference in references))


_NUMBER_INSIDE = re.compile(r"(?<![\w.])[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?!\w)", re.ASCII)


def contains(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the prediction holds a reference: for open answers, in the manner of MMMU's evaluation.

    A reference that is a number has to be among the prediction's numbers, to two decimals; any other has to
    occur in it as whole words, both normalised.
    """
    return float(any(_holds(prediction, reference) for reference in references))


def _holds(prediction: str, reference: str) -> bool:
    wanted = _as_number(reference)
    if wanted is not None and "%" not in reference:
        found = (float(match.replace(",", "")) for match in _NUMBER_INSIDE.findall(prediction))
        return (
            any(round(number, 2) == round(wanted, 2) for number in found)
            or exact_match(prediction, (reference,)) == 1.0
        )  # "three" for 3
    words = normalise(reference)
    return words == normalise(prediction) or (bool(words) and f" {words} " in f" {normalise(prediction)} ")


# ---- the registry -------------------------------------------------------------------------------------

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, threshold=1.0),
        Metric("vqa_accuracy", vqa_accuracy, threshold=0.5),  # two of ten annotators
        Metric("anls", anls, threshold=0.5),  # the metric's own cut-off: anything above zero
        Metric("relaxed_accuracy", relaxed_accuracy, threshold=1.0),
        Metric("multiple_choice", multiple_choice, threshold=1.0),
        Metric("first_letter", first_letter, threshold=1.0),
        Metric("yes_no", yes_no, threshold=1.0),
        Metric("contains", contains, threshold=1.0),
    )
}
"""Every metric by name. A new one is a function (prediction, references, options) and a line here."""


def default_metric(references: Sequence[str], options: Sequence[str] | None = None) -> str:
    """multiple_choice where there are options, vqa_accuracy for votes, else exact_match.

    Ten references or more of which some are the same text are votes, one per annotator. Without a repetition
    they are names of one right answer.
    """
    if options:
        return "multiple_choice"
    votes = len(references) >= 10 and len(set(references)) < len(references)
    return "vqa_accuracy" if votes else "exact_match"


def find_metric(name: str) -> Metric:
    """The metric of that name; M3ScoreError that lists the names for any other."""
    try:
        return METRICS[name]
    except KeyError:
        raise M3ScoreError(f"unknown metric {name!r}; allowed: {', '.join(METRICS)}.") from None


def grade(
    metric: str | None,
    prediction: str,
    references: str | Sequence[str],
    options: Sequence[str] | None = None,
) -> Grade:
    """Judge one answer.

    Args:
        metric: a name in METRICS, or None for default_metric().
        prediction: the model's answer; may be empty.
        references: the right answer, or several (for vqa_accuracy one per annotator).
        options: the option texts of a multiple-choice question.

    Raises:
        M3ScoreError: unknown metric, no references, or a reference that names no option.
    """
    references = (references,) if isinstance(references, str) else tuple(references)
    options = tuple(options or ())
    chosen = find_metric(metric or default_metric(references, options))
    if not references:
        raise M3ScoreError(f"metric {chosen.name!r} needs at least one reference answer; none was given.")
    score = chosen.score(prediction, references, options)
    return Grade(score=score, correct=score >= chosen.threshold)
