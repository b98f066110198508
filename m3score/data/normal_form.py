"""The normal form of an answer, in which two of them are compared. Knows texts only."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_MINUS = re.compile(r"(?:(?<=\s)|^)-(?=\.?\d)")
_PERIOD = re.compile(r"\.(?!\d)")
ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)}}
# The words of the official script's table, which knows each of them with one of its apostrophes missing.
# (It writes "Im" and "Ive" with capitals, which no lower-case word ever is; "lets" it does not have.)
_CONTRACTION_WORDS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTION_WORDS.split()
    for place, char in enumerate(word)
    if char == "'"
}
PLAIN_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2212": "-"})


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
    plain = " ".join(unicodedata.normalize("NFC", text).translate(PLAIN_QUOTES).lower().split())
    words = _without_punctuation(plain).split()
    kept = [_plain_word(word) for word in words if word not in ARTICLES]
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
    return _DIGITS.get(word) or _CONTRACTIONS.get(word, word)


def folded(text: str) -> str:
    """Lower case, composed characters, one space between words: for comparisons that keep punctuation."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def consistent(answer: str, finest_answer: str) -> bool:
    """Whether two answers are the same once normalised; `finest_answer` is the finest scale's."""
    return answer == finest_answer or normalise(answer) == normalise(finest_answer)
