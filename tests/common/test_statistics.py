"""Mean and median that are taken in one number at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3score.common.statistics import Spread


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_mean_and_median_are_those_of_all_numbers(numbers: list[float]) -> None:
    spread = Spread()
    for number in numbers:
        spread.add(number)
    assert spread.count == len(numbers) and spread.mean == pytest.approx(np.mean(numbers))
    assert spread.median == pytest.approx(sorted(numbers)[(len(numbers) - 1) // 2], abs=1e-4)


def test_nothing_has_no_middle() -> None:
    assert Spread().mean is None and Spread().median is None
