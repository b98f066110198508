"""Agreement of what servers report."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m3score.models.endpoint.distributions import (
    Distribution,
    Position,
    distribution,
    forced_agreement,
    position_agreement,
    prefix_agreement,
)


def _top(probabilities: np.ndarray, k: int) -> Distribution:
    best = np.argsort(-probabilities)[:k]
    return distribution({str(token): math.log(probabilities[token]) for token in best})


def test_all_tokens_reported_give_the_total_variation_distance() -> None:
    one, other = np.random.default_rng(0).dirichlet(np.ones(50), 2)
    exact = 1 - abs(one - other).sum() / 2
    assert position_agreement(_top(one, 50), _top(other, 50)) == pytest.approx(exact, abs=1e-12)


def test_what_neither_reports_is_pooled() -> None:
    one = {"a": 0.7, "b": 0.1}  # .2 unreported
    other = {"a": 0.5, "c": 0.1}  # .4 unreported
    assert position_agreement(one, other) == pytest.approx(1 - (0.2 + 0.1 + 0.1 + 0.2) / 2)


def test_lists_without_a_common_token_disagree() -> None:
    assert position_agreement({"a": 1.0}, {"b": 1.0}) == 0
    assert position_agreement({"a": 1.0}, {"a": 1.0}) == 1


def _said(text: str, sure: float = 1.0) -> tuple[Position, ...]:
    return tuple(Position(letter, math.log(sure), {letter: sure}) for letter in text)


def test_up_to_and_with_the_first_token_that_differs() -> None:
    assert prefix_agreement(_said("cat."), _said("cat.")) == 1
    assert prefix_agreement(_said("cat."), _said("cot?")) == pytest.approx(
        1 / 2
    )  # c, a; what follows is not known
    assert prefix_agreement(_said("cat."), _said("dog.")) == 0


def test_an_end_that_is_not_reported_counts_as_a_difference() -> None:
    assert prefix_agreement(_said("cat"), _said("cats")) == pytest.approx(3 / 4)
    assert prefix_agreement(_said("cats"), _said("cat")) == pytest.approx(3 / 4)


def test_a_forced_answer_counts_as_far_as_it_was_read() -> None:
    draft = _said("cat.")
    forced = [one.top for one in _said("cxt.")]
    assert forced_agreement(draft, forced) == pytest.approx(3 / 4)
    assert forced_agreement(draft, forced[:2]) == pytest.approx(1 / 2)
