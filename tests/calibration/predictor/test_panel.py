"""Choosing probe questions by how well they separate rated pictures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from m3score.calibration.predictor.panel import choose_panel, complexity_per_question, separation, to_markdown


@pytest.fixture
def ratings() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(40)],
            "category": ["a"] * 20 + ["b"] * 20,
            "score": [*range(20), *range(20)],
        }
    )


@pytest.fixture
def per_question(ratings) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(size=(40, 2)) * 6
    truth = ratings.score.to_numpy()
    columns = {"half": truth + noise[:, 0], "other half": truth - noise[:, 0], "nothing": noise[:, 1]}
    return pd.DataFrame(columns, index=ratings.path)


def test_correlations_are_taken_within_categories(ratings, per_question):
    shifted = per_question["half"] + np.where(ratings.category == "a", 0, 1000)
    both = separation(shifted, ratings), separation(per_question["half"], ratings)
    pd.testing.assert_series_equal(*both)


def test_questions_that_complete_each_other_are_chosen_together(ratings, per_question):
    chosen = choose_panel(per_question, ratings)
    assert {question for question, _ in chosen} == {"half", "other half"}
    assert chosen[-1][1] == pytest.approx(1.0)


def test_a_constant_score_separates_nothing(ratings):
    constant = pd.Series(1.0, index=ratings.path)
    assert separation(constant, ratings)["mean"] == 0


def test_complexity_per_question_comes_from_agreement(ratings, per_question):
    traces = pd.DataFrame(
        [
            {"image": image, "question": question, "tokens": tokens, "agreement": float(tokens >= needed)}
            for image, needed in (("x", 1), ("y", 36))
            for question in ("q1", "q2")
            for tokens in (1, 9, 36, 144, 576)
        ]
    )
    table = complexity_per_question(traces)
    assert table["q1"]["x"] == table["q2"]["x"] == 0
    assert table["q1"]["y"] == pytest.approx(np.log(36) / np.log(576))
    assert "Forward selection" in to_markdown(per_question, ratings)
