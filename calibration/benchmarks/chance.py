"""How much of an oracle is luck: five tries at a yes/no question succeed by chance.

The null is a model that knows nothing of an image but has the same habits of answering: its answers to a
question, at all scales together, are judged by the references of other questions of the same answer type
(same metric, same number of options; yes/no, numbers and texts apart). Answers stay together, so that scales
which always say the same are not counted as several tries. What such a permutation gets right is the luck.

From it, chance-corrected figures, on the scale where 0 is luck and 1 is always right:

    accuracy at one scale    k = (A - C) / (1 - C)
    oracle                   k + (1 - k) * p

where A is the share of right answers, C what the permutation gets right, k is taken at the finest scale, and
p is how often the coarser scales know what the finest gets wrong. For a question that the finest gets wrong
let s be 1 if a coarser scale is right, and c the chance of that: what the coarser answers get right by the
references of other questions that the finest's answer fails, too. If the coarser answers are luck, E[s] = c;
if they know with probability p, E[s] = p + (1 - p) c. So p is the mean of (s - c) / (1 - c). Where c is
almost 1 the term is 0: with two possible answers, any other answer than a wrong one is right, which proves
nothing, so yes/no questions never gain from their coarser scales here. That is on the safe side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3score.data.metrics import choice, grade, yes_or_no
from m3score.data.questions import Question

PARTNERS = 24
"""References of other questions that an answer is judged by, where there are too many to take them all."""
DRAWS = 64
"""Draws of partners for a unit of several questions."""
NO_PROOF = 0.9
"""From this chance on a right answer of a coarser scale says too little to be counted."""


@dataclass(frozen=True)
class Luck:
    """Of each unit (n of them): what a permutation of references gets right."""

    chance: np.ndarray
    """(n, scales): at each scale."""
    chance_any: np.ndarray
    """(n,): at any scale."""
    gain: np.ndarray
    """(n,): (s - c) / (1 - c) where the finest scale is wrong, else 0."""


def luck_of(
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
    units: Sequence[Sequence[int]],
    right: np.ndarray,
    seed: int = 0,
) -> Luck:
    """The luck in answers.

    Args:
        questions: with their references, options and metric.
        answers: of each question, one per scale, coarsest first.
        units: what counts as one, as positions of questions: right if all of them are.
        right: bool (units, scales).
        seed: of the partners that are drawn.
    """
    judge = _Judge(questions, answers, np.random.default_rng(seed))
    scales = right.shape[1]
    chance, chance_any, gain = np.zeros((len(units), scales)), np.zeros(len(units)), np.zeros(len(units))
    for i, members in enumerate(units):
        hits, weights = judge.alone(members[0]) if len(members) == 1 else judge.together(members)
        total = weights.sum()
        if not total:
            continue
        chance[i] = weights @ hits / total
        chance_any[i] = weights @ hits.any(axis=1) / total
        if not right[i, -1]:
            like = weights * ~hits[:, -1]  # partners whose references the finest answer fails as well
            c = like @ hits.any(axis=1) / like.sum() if like.sum() else 1.0
            gain[i] = (float(right[i].any()) - c) / (1 - c) if c < NO_PROOF else 0.0
    return Luck(chance, chance_any, gain)


class _Judge:
    """Answers of each question, by the references of others of its type."""

    def __init__(
        self, questions: Sequence[Question], answers: Sequence[Sequence[str]], rng: np.random.Generator
    ) -> None:
        self.questions, self.answers, self.rng = questions, answers, rng
        self.references = [_references(question) for question in questions]
        self.types = [answer_type(question) for question in questions]
        self.pools: dict[tuple[object, ...], Counter[tuple[str, ...]]] = {}
        for kind, references in zip(self.types, self.references, strict=True):
            self.pools.setdefault(kind, Counter())[references] += 1
        self.lists = {kind: list(pool.items()) for kind, pool in self.pools.items()}
        self.known: dict[tuple[object, ...], bool] = {}

    def alone(self, q: int) -> tuple[np.ndarray, np.ndarray]:
        """(hits (partners, scales), weights (partners,)): every kind of reference, or PARTNERS drawn."""
        pool = self.lists[self.types[q]]  # its own references are no partner
        weights = np.array([n - (refs == self.references[q]) for refs, n in pool], float)
        if len(pool) > PARTNERS:
            drawn = self.rng.choice(len(pool), PARTNERS, p=weights / weights.sum())
            pool, weights = [pool[place] for place in drawn], np.ones(PARTNERS)
        hits = np.array([self._hits(q, refs) for refs, _ in pool], bool)
        return hits.reshape(len(pool), -1), weights

    def together(self, members: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """As alone, for questions that have to be right together: DRAWS draws of a partner for each."""
        hits = np.ones((DRAWS, len(self.answers[members[0]])), bool)
        for q in members:
            pool = self.lists[self.types[q]]
            weights = np.array([n for _, n in pool], float)
            drawn = self.rng.choice(len(pool), DRAWS, p=weights / weights.sum())
            table = {place: self._hits(q, pool[place][0]) for place in set(drawn.tolist())}
            hits &= np.array([table[place] for place in drawn.tolist()], bool)
        return hits, np.ones(DRAWS)

    def _hits(self, q: int, references: tuple[str, ...]) -> list[bool]:
        question = self.questions[q]
        out = []
        for answer in self.answers[q]:
            key = (question.metric, question.options, answer, references)
            if key not in self.known:
                self.known[key] = grade(question.metric, answer, references, question.options).correct
            out.append(self.known[key])
        return out


def answer_type(question: Question) -> tuple[object, ...]:
    """Questions of one type have answers that could be each other's."""
    if question.options:
        return question.metric, len(question.options)
    if all(yes_or_no(reference) is not None and len(reference) < 4 for reference in question.answers):
        return question.metric, "yes/no"
    number = all(reference.strip("$% ").replace(",", "").replace(".", "", 1).isdigit()
                 for reference in question.answers)  # fmt: skip
    return question.metric, "number" if number else "text"


def _references(question: Question) -> tuple[str, ...]:
    """Of a multiple-choice question letters, which another question's options have as well."""
    if not question.options or question.metric not in (None, "multiple_choice", "first_letter"):
        return question.answers
    places = sorted({choice(text, question.options) or 0 for text in question.answers})
    return tuple(chr(65 + place) for place in places)
