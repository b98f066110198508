"""Is an answer right, and do two answers say the same? One function per metric, one line to register it.

Knows strings only: no images, no models, no tables.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from m3score.common.errors import M3ScoreError

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


# ---- normalisation ------------------------------------------------------------------------------------

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_MINUS = re.compile(r"(?:(?<=\s)|^)-(?=\.?\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
# Only words that are unmistakable without their apostrophe ("wont", not "its" or "were").
_CONTRACTION_WORDS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am
    might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've she's
    should've shouldn't shouldn't've somebody'd somebody'll somebody's someone'd someone'll someone's
    something'd something'll that'd that'd've that'll that's there'd there'd've there're there's they'd
    they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTION_WORDS.split()}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-"})


@lru_cache(maxsize=1 << 16)  # references come back at every scale, and for every chance level
def normalise(text: str) -> str:
    """The normal form of an answer, after the official VQA evaluation (Antol et al., arXiv 1505.00468).

    Lower case, one space between words, punctuation removed (replaced by a space inside a word), periods kept
    only before a digit, commas between digits dropped, number words up to ten as digits, articles removed,
    apostrophes of contractions restored. Four things differ from the official script: it is always applied
    and to both sides (the script skips it when all annotators agree); text is in Unicode form C with plain
    quotes; the minus of a number is kept; and so is an answer that is nothing but an article or punctuation
    ("A", "?").
    """
    plain = " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).lower().split())
    words = _without_punctuation(plain).split()
    kept = [_plain_word(word) for word in words if word not in _ARTICLES]
    return " ".join(kept or words) or plain


def _without_punctuation(text: str) -> str:
    drop_all = _DIGIT_COMMA.search(text) is not None
    result = text = _MINUS.sub("\0", text)
    for mark in _PUNCTUATION:
        if mark in text:
            at_edge = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if drop_all or at_edge else " ")
    return _PERIOD.sub("", result).replace("\0", "-")


def _plain_word(word: str) -> str:
    return _DIGITS.get(word) or _CONTRACTIONS.get(word.replace("'", ""), word)


def consistent(answer: str, finest_answer: str) -> bool:
    """Whether two answers are the same once normalised; `finest_answer` is the finest scale's."""
    return answer == finest_answer or normalise(answer) == normalise(finest_answer)


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

    1 - edit distance / length of the longer string, 0 where that distance is 0.5 or more; the best over the
    references. Case and the width of white space do not count.
    """
    return max(_similarity(_folded(prediction), _folded(reference)) for reference in references)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    distance = edit_distance(a, b) / longest if longest else 0.0
    return 1.0 - distance if distance < 0.5 else 0.0


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions of one character."""
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
    return row[-1]


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
    plain = text.translate(_QUOTES).lower().strip()
    percent = plain.endswith("%")
    plain = re.sub(rf"^([+-]?)[{_CURRENCY}]\s*|\s*[{_CURRENCY}%]$", r"\1", plain)
    plain = _THOUSANDS.sub("", plain)
    if not _NUMBER.fullmatch(plain):
        return None
    value = float(plain) / (100 if percent else 1)
    return value if math.isfinite(value) else None


def multiple_choice(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the prediction picks the option that a reference names, else 0.0.

    References and predictions name an option by its letter ("A", "(a)", "A.", "A) cat", "the answer is A") or
    by its text; a letter wins over a text that happens to be a letter. Without `options` letters are
    compared, and otherwise normalised texts. M3ScoreError for a reference that names none of the options.
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


_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\].:,]*")
_LETTER_THEN_TEXT = re.compile(r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[).:])\s+\S.*", re.DOTALL)
_ANSWER_IS = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+is\b)?\s*[:=]?\s*(?:(?:option|choice)\s+)?)"
    r"[(\[]?(?:([A-Z])(?![\w'])|([a-z])[)\].]*\s*$)"
)


def choice(text: str, options: Sequence[str] = ()) -> int | None:
    """The position of the option that `text` picks (by letter, by text, or in a sentence), or None."""
    plain = " ".join(text.translate(_QUOTES).split())
    count = len(options) or 26
    bare = _position(_LETTER.fullmatch(plain), count)
    if bare is not None:
        return bare
    texts = [_folded(option.translate(_QUOTES)) for option in options]
    if _folded(plain) in texts:  # before letters: an option may be called "D. H. Lawrence"
        return texts.index(_folded(plain))
    stated = _position(_LETTER_THEN_TEXT.fullmatch(plain) or _ANSWER_IS.search(plain), count)
    return _option_text(plain, options) if stated is None else stated


def _position(found: re.Match[str] | None, count: int) -> int | None:
    if not found:
        return None
    position = ord(next(group for group in found.groups() if group).upper()) - ord("A")
    return position if position < count else None


def _option_text(text: str, options: Sequence[str]) -> int | None:
    wanted = normalise(text)
    texts = [normalise(option) for option in options]
    if wanted in texts:
        return texts.index(wanted)
    for i, option in enumerate(texts):  # "B cat": no delimiter, but the text settles it
        if wanted == f"{chr(97 + i)} {option}":
            return i
    named = {i for i, option in enumerate(texts) if f" {option} " in f" {wanted} "}
    # "dark red" also names "red": keep what is not part of a longer option that is named as well.
    longest = [i for i in named if not any(j != i and f" {texts[i]} " in f" {texts[j]} " for j in named)]
    return longest[0] if len(longest) == 1 else None


_WORD = re.compile(r"[a-z']+")


def yes_or_no(text: str) -> bool | None:
    """Whether an answer says yes (True) or no (False); None for neither.

    The first yes or no of its first sentence; without one, a "not" or "n't" there is a no. (LLaVA's script
    for POPE takes every answer without no or not for a yes.)
    """
    words = _WORD.findall(text.translate(_QUOTES).lower().strip().partition(".")[0])
    for word in words:
        if word in ("yes", "no"):
            return word == "yes"
    return False if any(word == "not" or word.endswith("n't") for word in words) else None


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
        Metric("yes_no", yes_no, threshold=1.0),
        Metric("contains", contains, threshold=1.0),
    )
}
"""Every metric by name. A new one is a function (prediction, references, options) and a line here."""


def default_metric(references: Sequence[str], options: Sequence[str] | None = None) -> str:
    """multiple_choice where there are options, vqa_accuracy from ten references, else exact_match."""
    if options:
        return "multiple_choice"
    return "vqa_accuracy" if len(references) >= 10 else "exact_match"


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
