"""How much of an oracle is luck: one of five tries at a yes/no question may well be right by chance.

The null model knows nothing about an image but answers in the same style: the answers to a question, at all
scales together, are graded with the references of other questions of the same answer type (same metric, same
number of options; yes/no, numbers and texts separately). The answers of all scales stay together, so that
scales that always agree are not counted as several tries. The share that such a permutation gets right is
luck.

The chance-corrected figures are on a scale where 0 is luck and 1 is always right:

    accuracy at one scale    k = (A - C) / (1 - C)
    oracle                   k + (1 - k) * p

where A is the share of right answers, C is the share that the permutation gets right, k in the oracle is that
of the finest scale, and p is how often the coarser scales know what the finest gets wrong. For a question
that the finest scale gets wrong, let s be 1 if a coarser scale is right, and c the probability of that by
chance: the share that the coarser answers get right among references which the finest answer fails as well.
If the coarser answers are luck, E[s] = c; if they know with probability p, E[s] = p + (1 - p) c. So p is the
mean of (s - c) / (1 - c). Where c is almost 1 the term is taken as 0: with two possible answers, the opposite
of a wrong answer is right, which proves nothing. So yes/no questions never gain from coarser scales here,
which errs on the safe side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3score.data.choices import choice, yes_or_no
from m3score.data.metrics import grade
from m3score.data.questions import Question

PARTNERS = 24
"""References of other questions that an answer is graded with; sampled where there are more."""
DRAWS = 64
"""Samples of references for a unit of several questions."""
NO_PROOF = 0.9
"""From this probability on, a coarser scale's right answer says too little to count."""


@dataclass(frozen=True)
class Luck:
    """For each of n units: the share that a permutation of references gets right."""

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
    """Estimate how much of the right answers is luck.

    Args:
        questions: with their references, options and metric.
        answers: per question, one answer per scale, coarsest first.
        units: per unit, the positions of its questions; a unit is right if all of them are.
        right: bool (units, scales).
        seed: of the sampled references.
    """
    grader = _Grader(questions, answers, np.random.default_rng(seed))
    scales = right.shape[1]
    chance, chance_any, gain = np.zeros((len(units), scales)), np.zeros(len(units)), np.zeros(len(units))
    for i, members in enumerate(units):
        hits, weights = grader.alone(members[0]) if len(members) == 1 else grader.together(members)
        total = weights.sum()
        if not total:
            continue
        chance[i] = weights @ hits / total
        chance_any[i] = weights @ hits.any(axis=1) / total
        if not right[i, -1]:
            like = weights * ~hits[:, -1]  # references that the finest answer fails as well
            c = like @ hits.any(axis=1) / like.sum() if like.sum() else 1.0
            gain[i] = (float(right[i].any()) - c) / (1 - c) if c < NO_PROOF else 0.0
    return Luck(chance, chance_any, gain)


class _Grader:
    """Grades answers with the references of other questions of the same type."""

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
        """(hits (partners, scales), weights (partners,)): all other references, or PARTNERS samples."""
        pool = self.lists[self.types[q]]  # its own references do not count
        weights = np.array([n - (refs == self.references[q]) for refs, n in pool], float)
        if len(pool) > PARTNERS:
            drawn = self.rng.choice(len(pool), PARTNERS, p=weights / weights.sum())
            pool, weights = [pool[place] for place in drawn], np.ones(PARTNERS)
        hits = np.array([self._hits(q, refs) for refs, _ in pool], bool)
        return hits.reshape(len(pool), -1), weights

    def together(self, members: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """As `alone`, for questions that must all be right: DRAWS samples of references for each."""
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
    """A key that questions share if an answer to one could be an answer to the other."""
    if question.options:
        return question.metric, len(question.options)
    if all(yes_or_no(reference) is not None and len(reference) < 4 for reference in question.answers):
        return question.metric, "yes/no"
    number = all(reference.strip("$% ").replace(",", "").replace(".", "", 1).isdigit()
                 for reference in question.answers)  # fmt: skip
    return question.metric, "number" if number else "text"


def _references(question: Question) -> tuple[str, ...]:
    """The references; as letters for multiple choice, so that they fit other questions' options."""
    if not question.options or question.metric not in (None, "multiple_choice", "first_letter"):
        return question.answers
    places = sorted({choice(text, question.options) or 0 for text in question.answers})
    return tuple(chr(65 + place) for place in places)
