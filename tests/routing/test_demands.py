"""The two demands of the vision score: the harder one counts, and it says how unsure it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from m3score.common.errors import M3ScoreError
from m3score.routing.regression.demands import Demands
from tests.support.predictors import demands, made_up, small_predictor


def test_the_harder_demand_counts() -> None:
    both = demands(lambda images: 3 + images[:, 0], lambda images: 3 + images[:, 1])
    rows = made_up(200, seed=5).images
    distinct, reading = both.distinct.predict(rows), both.reading.predict(rows)
    np.testing.assert_array_equal(both.predict(rows), np.maximum(distinct, reading))
    reads = reading > distinct
    assert 50 < reads.sum() < 150
    np.testing.assert_array_equal(both.spread(rows)[reads], both.reading.spread(rows[reads]))
    np.testing.assert_array_equal(both.spread(rows)[~reads], both.distinct.spread(rows[~reads]))


def test_what_is_hardly_to_be_read_does_not_count() -> None:
    """A regressor of reading that was told no less than its floor has no word for nothing."""
    simple = demands(lambda images: 1 + 0.1 * images[:, 0], lambda images: 3 + np.maximum(0, images[:, 1]))
    rows = made_up(300, seed=5).images
    distinct, reading = simple.distinct.predict(rows), simple.reading.predict(rows)
    assert (simple.predict(rows) > 2.9).all()  # 20 tokens, whatever it shows
    floored = replace(simple, floor=3.1)
    blank, text = reading <= 3.1, reading > 3.5
    assert 50 < blank.sum() < 250 and text.sum() > 50
    np.testing.assert_array_equal(floored.predict(rows[blank]), distinct[blank])
    np.testing.assert_array_equal(floored.spread(rows[blank]), simple.distinct.spread(rows[blank]))
    np.testing.assert_array_equal(floored.predict(rows[text]), reading[text])
    with pytest.raises(M3ScoreError, match="floor"):
        replace(simple, floor=float("nan"))


def test_both_take_the_same_features() -> None:
    other = small_predictor()
    assert other.with_question is not None
    with pytest.raises(M3ScoreError, match="the same features"):
        Demands(other.image_only, other.with_question)
