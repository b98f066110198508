"""What a free answer picks: one of several options, or yes or no. Knows texts only."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from m3score.data.normal_form import ARTICLES, PLAIN_QUOTES, folded, normalise

# ---- options ------------------------------------------------------------------------------------------

_SPEAKER = re.compile(r"^\s*assistant\s*:\s*", re.IGNORECASE)
_MARKUP = re.compile(r"[*`\"]+|\\boxed(?=\s*{)|(?<!\w)_+|_+(?!\w)")
_LETTER = re.compile(r"[(\[{]?\s*([A-Za-z])\s*[)\]}.:,;!?]*")
_LETTER_FIRST = re.compile(
    r"^(?:(?:[(\[{]([A-Za-z])[)\]}]|([A-Za-z])[).:])\s+\S|([A-Z])\s*(?:[,;:]|\s-+)\s+\S)"
)
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)\b(?:\s+is\b|\s+would\s+be\b)?\s*[:=]?\s*"
    r"|\b(?:it\s+is|it's|it\s+(?:must|should|would|has\s+to)\s+be)\s+"
    r"|\b(?:i'd|i'll|i|we)\s+(?:would\s+|will\s+)?(?:choose|select|pick|say|go\s+with|think|guess)\s+)"
    r"(?i:(?:option|choice|letter)\s+)?[(\[{]?(?:([A-Z])(?![\w']|\s+(?i:is|isn't|or|and|nor)\b)|"
    r"([a-z])[)\]}.]*\s*$)"
)
_IS_RIGHT = re.compile(
    r"(?<![\w'])[(\[{]?([A-Z])[)\]}.]?\s+(?i:is|seems|looks)\s+"
    r"(?i:(?:the\s+)?(?:most\s+|only\s+)?(?:correct|right|best|true|likely|answer))\b"
)
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Z])[)\]](?!\w)")
_ALONE = re.compile(r"(?<![\w'.-])([A-Z])(?![\w'-]|\.\w)")
_NOUN_NEXT = re.compile(r"\s+(?!(?:or|and|nor|is|isn't|because|since|as)\b)\w")
_NOT_BEFORE = re.compile(r"(?:\bnot|n't|\bneither|\bnor)\s+(?:option\s+)?[(\[]?$", re.IGNORECASE)


def choice(text: str, options: Sequence[str] = ()) -> int | None:
    """The position of the option that `text` picks, or None.

    The first of these that finds one option decides:

    1. the text is a letter ("B", "(b)", "B."; emphasis, quotes and "ASSISTANT:" do not count), and else an
       option's text ("D. H. Lawrence");
    2. it begins with a letter and a mark ("B) cat", "B, because ..."), says so ("The answer is B", "It's B",
       "I choose B", "B is correct"), or has one letter in brackets ("I think it is (B).");
    3. it names the text of one option, single letters apart: these are no option's text here;
    4. it has one capital letter standing alone ("Surely B"; neither the pronoun I nor, before another word,
       the article A).

    A letter after "not" is none that is picked. Parsers of MMMU, MMBench and lmms-eval read the same letters
    in one-letter answers and in these forms; where several are named MMMU's takes the last, this one none.
    """
    written = folded(text.translate(PLAIN_QUOTES))
    plain = " ".join(_MARKUP.sub(" ", _SPEAKER.sub("", text.translate(PLAIN_QUOTES))).split()).strip("' ")
    count = len(options) or 26
    bare = _position(_LETTER.fullmatch(plain), count)
    if bare is not None:
        return bare
    texts = [folded(option.translate(PLAIN_QUOTES)) for option in options]
    for whole in (written, folded(plain)):  # before letters: an option may be called "D. H. Lawrence"
        if whole in texts:
            return texts.index(whole)
    for find in (_stated, lambda plain, count: _option_text(plain, options), _standing_alone):
        found = find(plain, count)
        if found is not None:
            return found
    return None


def _position(found: re.Match[str] | None, count: int) -> int | None:
    if not found:
        return None
    position = ord(next(group for group in found.groups() if group).upper()) - ord("A")
    return position if position < count else None


def _stated(plain: str, count: int) -> int | None:
    """The letter at the beginning, in a sentence that says so, or in brackets."""
    for pattern in (_STATED, _IS_RIGHT, _LETTER_FIRST, _BRACKETED):
        found = _one(plain, pattern, count)
        if found is not None:
            return found
    return None


def _standing_alone(plain: str, count: int) -> int | None:
    """The one capital letter among words."""
    return _one(plain, _ALONE, count, skip=lambda match: _is_word(plain, match))


def _is_word(plain: str, match: re.Match[str]) -> bool:
    """Whether a capital letter is the pronoun I, or the article A of a word that follows."""
    return (match[1] == "I" and not plain.startswith("(", match.start() - 1)) or (
        match[1] == "A" and _NOUN_NEXT.match(plain, match.end()) is not None
    )


def _one(
    plain: str,
    pattern: re.Pattern[str],
    count: int,
    skip: Callable[[re.Match[str]], bool] = lambda match: False,
) -> int | None:
    """The one position that all matches name, but for those after a "not"."""
    places = {
        _position(match, count)
        for match in pattern.finditer(plain)
        if not skip(match) and not _NOT_BEFORE.search(plain[: match.start()])
    }
    return places.pop() if len(places) == 1 else None


def _option_text(text: str, options: Sequence[str]) -> int | None:
    wanted = normalise(text)
    texts = [normalise(option) for option in options]
    if wanted in texts:
        return texts.index(wanted)
    for i, option in enumerate(texts):  # "B cat": no delimiter, but the text settles it
        if wanted == f"{chr(97 + i)} {option}":
            return i
    # A text that is a single letter is found in every sentence that names that letter.
    named = {
        i
        for i, option in enumerate(texts)
        if not re.fullmatch("[a-z]?", option) and f" {option} " in f" {wanted} "
    }
    # "dark red" also names "red": keep what is not part of a longer option that is named as well.
    longest = [i for i in named if not any(j != i and f" {texts[i]} " in f" {texts[j]} " for j in named)]
    return longest[0] if len(longest) == 1 else None


# ---- yes or no ----------------------------------------------------------------------------------------

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
_UNDECIDED = frozenset({
    "know", "sure", "certain", "uncertain", "unsure", "clear", "unclear", "tell", "say", "determine",
    "determined", "decide", "answer", "answered",
})  # fmt: skip
"""What an answer that cannot be given speaks of: with a "not" before it, it says neither yes nor no."""


def yes_or_no(text: str) -> bool | None:
    """Whether an answer says yes (True) or no (False); None for neither.

    The first yes or no of its first sentence, turned round by a "not" just before it ("It is not yes").
    Without one, a "not", "cannot" or "n't" there is a no, but for sentences that leave it open ("I don't
    know", "not sure"). LLaVA's script for POPE takes every answer without no or not for a yes, and these for
    a no; lmms-eval's takes nothing but the bare words.
    """
    words = _WORD.findall(text.translate(PLAIN_QUOTES).lower().strip().partition(".")[0])
    for place, word in enumerate(words):
        if word in ("yes", "no"):
            before = [one for one in words[:place] if one not in ARTICLES]
            return (word == "yes") != (bool(before) and _negates(before[-1]))
    if not any(map(_negates, words)) or _UNDECIDED.intersection(words):
        return None
    return False


def _negates(word: str) -> bool:
    return word in ("not", "cannot") or word.endswith("n't")
