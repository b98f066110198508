"""Cheap features of a question: what it asks for, how long it is, which words it has.

Knows English words and nothing else. What a question asks for is guessed from its wording, with patterns that
are meant to be right for most questions, not for all; the hashed words carry what the patterns miss.
"""

from __future__ import annotations

import math
import re
from zlib import crc32

import numpy as np

BUCKETS = 64
"""Hashed words: word w adds to bucket crc32(w) modulo this. crc32 is the same on every machine and run."""

_ORDERS = re.compile(
    r"answer the question using a single word or phrase\.?|answer with the option'?s letter from the given "
    r"choices directly\.?|<image>|\bplease\b",
    re.IGNORECASE,
)
"""How to answer, as the prompts of LLaVA's benchmarks have it: says nothing on what must be seen."""

_ASKS: dict[str, str] = {
    "reading": r"read|says?|said|written|writes?|text|words?|letters?|spell\w*|titled?|signs?|label\w*"
    r"|caption|brand|name|date|address|phone|total|company|invoice|receipt|legend|headline|page",
    "number": r"numbers?|values?|percent\w*|price|amount|total|sum|average|median|ratio|difference|how much"
    r"|how (?:high|tall|long|old|large|big|far)|year|time|digits?",
    "counting": r"how many|count|number of|amount of",
    "colour": r"colou?r\w*|hue|shade of",
    "place": r"where|left|right|top|bottom|above|below|under|behind|beside|next to|between|middle|center"
    r"|centre|corner|position\w*|location|located|which (?:part|side)",
    "comparison": r"(?:high|low|larg|small|tall|short|long|bigg|great|bright|dark|old|young|near|clos|wid)"
    r"e(?:r|st)|most|least|more|less|fewer|than|compare\w*|same|differ\w*|equal",
    "description": r"describe|description|what is (?:in|shown|this|happening)|what's in|overall|summari[sz]e"
    r"|what does (?:this|the) (?:image|picture|photo\w*) show|main (?:subject|object)|caption this",
    "kind": r"what (?:kind|type|sort|animal|object)|which (?:kind|type|animal|object|breed|species)",
    "person": r"who|person|people|man|woman|men|women|child|children|boy|girl|wearing|holding",
    "detail": r"small|smallest|tiny|fine|finely|texture\w*|pattern\w*|detail\w*",
}
_ASKED = {name: re.compile(rf"\b(?:{words})\b") for name, words in _ASKS.items()}
_YES_NO = re.compile(
    r"^(?:is|are|was|were|does|do|did|has|have|had|can|could|will|would|should)\b"
    r"|\b(?:yes or no|true or false)\b"
)
_OPTION = re.compile(r"(?:^|[\n(\s])\(?[A-Ha-h][.):]\s")
_WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?")

QUESTION_FEATURES: tuple[str, ...] = (
    "question_given",
    "question_words",
    "question_characters",
    "question_longest_word",
    *(f"asks_{name}" for name in _ASKS),
    "asks_yes_no",
    "question_options",
    "question_digits",
    "question_quotes",
    "question_single_word",
    *(f"word_{bucket}" for bucket in range(BUCKETS)),
)
"""question_given is 1, and every feature is 0 where there is no question. question_words and
question_characters are ln(1 + how many); question_longest_word is characters; asks_* are 0 or 1;
question_options counts lettered choices; question_digits and question_quotes say whether there are any;
question_single_word says whether the prompt wants a single word or letter; word_k counts hashed words."""


def question_features(question: str | None) -> np.ndarray:
    """Features of one question.

    Args:
        question: as the model is asked it; benchmark phrases on how to answer are set aside. None or blank:
            no question.

    Returns:
        float32 (len(QUESTION_FEATURES),), finite.
    """
    row = np.zeros(len(QUESTION_FEATURES), np.float32)
    if question is None or not question.strip():
        return row
    text, orders = _ORDERS.subn(" ", question.lower().replace("’", "'"))
    text = text.strip()
    words = _WORD.findall(text)
    values = {
        "question_given": 1.0,
        "question_words": math.log1p(len(words)),
        "question_characters": math.log1p(len(text)),
        "question_longest_word": float(max(map(len, words), default=0)),
        "asks_yes_no": float(bool(_YES_NO.search(text))),
        "question_options": float(len(_OPTION.findall(text))),
        "question_digits": float(any(character.isdigit() for character in text)),
        "question_quotes": float('"' in text or "“" in text),
        "question_single_word": float(orders > 0),
    }
    values |= {f"asks_{name}": float(bool(pattern.search(text))) for name, pattern in _ASKED.items()}
    for place, name in enumerate(QUESTION_FEATURES[:-BUCKETS]):
        row[place] = values[name]
    for word in words:
        row[crc32(word.encode()) % BUCKETS - BUCKETS] += 1
    return row
