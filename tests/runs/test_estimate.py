"""m3score plan: multiplication, and nothing promised that was not measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from m3score.common.errors import M3ScoreError
from m3score.runs.estimate import Measured, Rate, forecast, measure

MEASURED = Measured(
    sample_images=10,
    predictor_one_worker=Rate(100, 1.0),
    predictor_all_workers=Rate(400, 1.0),
    workers=4,
    model_name="m",
    model=Rate(10, 1.0),
    device="cuda:0",
    journal_bytes={"predictor": 100.0, "model": 200.0},
    table_bytes={"predictor": 50.0, "model": 150.0},
)


def test_forecast() -> None:
    told = forecast(MEASURED, 3_600_000, 360_000, gpus=8, price=2.5)
    predictor, cascade, model = told.needs
    assert (predictor.hours, predictor.cpu_hours, predictor.gpu_hours) == pytest.approx((2.5, 10, 0))
    assert (cascade.hours, cascade.gpu_hours, cascade.price) == pytest.approx((2.5 + 10 / 8, 10, 25))
    assert (model.hours, model.gpu_hours, model.price) == pytest.approx((12.5, 100, 250))
    assert cascade.table_gb == pytest.approx((360_000 * 150 + 3_240_000 * 50) / 1e9)
    assert told.to_dict()["measured"]["model"]["images_per_second"] == 10


def test_gpu_hours_are_not_made_up() -> None:
    told = forecast(replace(MEASURED, device="cpu"), 1000, 100, gpus=8, price=2.5)
    assert [need.gpu_hours for need in told.needs] == [0, None, None]
    assert told.needs[2].price is None and told.needs[2].hours == pytest.approx(100 / 3600)
    assert any("GPU-hours are not known" in note for note in told.notes)


def test_measure_counts_batches() -> None:
    def batches() -> Iterator[int]:
        while True:
            time.sleep(0.02)
            yield from range(10)

    rate = measure(batches(), 0.1, lambda one: False, lambda seconds: None)
    assert rate.images % 10 == 0 and 0 < rate.per_second <= 510  # a batch takes 0.02 s at least


@pytest.mark.parametrize("results", [[], [1], [None, None]])
def test_nothing_to_measure(results: list[int | None]) -> None:
    with pytest.raises(M3ScoreError, match="sample"):
        measure((one for one in results), 0.1, lambda one: one is None, lambda seconds: None)
