"""How long a big run would take, by what a short one took: measured figures, and what follows from them.

What is measured: images per second of the predictor with one and with all workers, and
of the model; bytes per row. All else is multiplication, and `Forecast.notes` says so.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError
from m3score.common.limits import Limits
from m3score.data.discover import Source
from m3score.data.item import ImageItem
from m3score.routing.scorer import PredictorOptions, UnsureScorer
from m3score.runs.executors.base import ScorerJob
from m3score.runs.executors.local import LocalExecutor, LocalScorer
from m3score.runs.request import Inputs
from m3score.runs.resume.input_state import input_key
from m3score.runs.resume.journal import Record, open_journal
from m3score.scoring.scorers.model import ModelScorer
from m3score.tables.io import write_rows
from m3score.tables.schema import SCORES

if TYPE_CHECKING:
    from m3score.runs.cascade_run import CascadeOptions

HOUR = 3600.0
SAMPLE = 512
"""Images that are measured, at most."""
LOOKED_AT = 20_000
"""Inputs among which the sample is drawn."""

_Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Rate:
    """Images in seconds, the start not counted."""

    images: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Measured:
    """What a sample told about this machine."""

    sample_images: int
    """Different pictures in it."""
    predictor_one_worker: Rate
    predictor_all_workers: Rate
    workers: int
    model_name: str
    model: Rate
    device: str
    """Where the model ran, such as cpu or cuda:0."""
    journal_bytes: dict[str, float]
    """Per row, by scorer: predictor and model."""
    table_bytes: dict[str, float]
    """Per row as csv, by scorer."""


@dataclass(frozen=True)
class Need:
    """What one way of scoring would take."""

    scorer: str
    model_images: int
    hours: float
    """With all workers of this machine for the predictor, and the model's GPUs."""
    cpu_hours: float
    """Of the predictor, one worker each."""
    gpu_hours: float | None
    """None where the model was measured on no GPU."""
    price: float | None
    table_gb: float
    """As csv."""
    journal_gb: float


@dataclass(frozen=True)
class Forecast:
    """Needs by scorer, what they follow from, and what was taken for granted."""

    images: int
    budget_images: int
    gpus: int
    measured: Measured
    needs: tuple[Need, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, rates with their images per second."""
        told = asdict(self)
        for name in ("predictor_one_worker", "predictor_all_workers", "model"):
            told["measured"][name]["images_per_second"] = getattr(self.measured, name).per_second
        return told


def measure(
    results: Any, seconds: float, failed: Callable[[Any], bool], told: Callable[[float], None]
) -> Rate:
    """How fast a generator gives results, from the first one on.

    Results come in batches: the count ends at one that was waited for.

    Args:
        results: a generator; closed in the end.
        seconds: for how long.
        failed: whether a result is a failure; M3ScoreError where all are.
        told: called with the seconds so far.
    """
    begun, good, number = None, 0, 0
    with closing(results):
        for result in results:
            now = time.monotonic()
            good += not failed(result)
            if begun is None:
                begun = now
                continue
            number += 1
            told(now - begun)
            if now - begun >= seconds:
                break
    if not good:
        raise M3ScoreError("none of the sample's images could be scored; m3score rank says why.")
    if begun is None or not number:
        raise M3ScoreError("the sample has too few images to measure anything.")
    return Rate(number, now - begun)


def measure_sample(
    paths: Sequence[Source],
    options: CascadeOptions,
    seconds: float,
    watch: Callable[[str], Callable[[float], None]] = lambda what: lambda done: None,
) -> Measured:
    """Measure the predictor and the model of a cascade on this machine, on some of the images.

    Args:
        paths: the images; see find_images.
        options: of the cascade.
        seconds: how long each of three things is measured.
        watch: called with what is measured now; what it gives is called with the seconds so far.

    Raises:
        M3ScoreError: there are no images, or none of them can be scored.
    """
    found = _sample(paths)
    rows: _Rows = {"predictor": [], "model": []}
    executor, limits = LocalExecutor(), Limits()
    predict = executor.open(ScorerJob(UnsureScorer, PredictorOptions(options.predictor), limits))
    ask = executor.open(ScorerJob(ModelScorer, options, limits))

    def timed(what: str, handle: LocalScorer, scorer: str, workers: int | None = None) -> Rate:
        kept = rows[scorer]

        def results() -> Any:
            for result in handle.scorer.stream(cycle(found), limits=limits, workers=workers):
                if len(kept) < len(found):
                    kept.append(result.to_row())
                yield result

        return measure(results(), seconds, lambda one: one.to_row()["error"] is not None, watch(what))

    name = ask.facts.name
    one = timed("Predictor, one worker", predict, "predictor", 1)
    several = timed("Predictor, all workers", predict, "predictor")
    asked = timed(f"Model {name}", ask, "model")
    journal, table = _sizes(found, rows)
    return Measured(
        sample_images=len(found),
        predictor_one_worker=one,
        predictor_all_workers=several,
        workers=os.cpu_count() or 1,
        model_name=name,
        model=asked,
        device=str(getattr(ask.model, "device", "cpu")),
        journal_bytes=journal,
        table_bytes=table,
    )


def _sample(paths: Sequence[Source]) -> list[ImageItem]:
    """Some of the inputs, drawn from the first LOOKED_AT, always the same."""
    found = list(islice(Inputs(paths).begin(), LOOKED_AT))
    return random.Random(0).sample(found, min(SAMPLE, len(found)))


def _sizes(found: list[ImageItem], rows: _Rows) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes per row in the journal by scorer, and in the table as csv."""
    journal = open_journal(None, {})
    hashed = {"digest": "0" * 32}
    sizes = {
        scorer: row_bytes(
            [
                journal.append(Record({**input_key(item), **hashed}, row))
                for item, row in zip([*found, found[0]], [*some, some[0]], strict=False)
            ]
        )
        for scorer, some in rows.items()
    }
    journal.remove()
    table = {}
    with tempfile.TemporaryDirectory() as home:
        for scorer, some in rows.items():
            path, size = Path(home) / "t.csv", []
            written = [_as_in_a_cascade(row) for row in some] if scorer == "predictor" else some
            for count in (1, len(some) + 1):  # the header counts but once
                write_rows([*written, written[0]][:count], path, SCORES, tuple(rows["model"][0]))
                size.append(path.stat().st_size)
            table[scorer] = (size[1] - size[0]) / len(some)
    return sizes, table


def _as_in_a_cascade(row: dict[str, Any]) -> dict[str, Any]:
    names = ("path", "complexity", "predicted_tokens", "error")
    return {
        **{name: row[name] for name in names},
        "effective_tokens": row["complexity"],
        "scorer": "predictor",
    }


def forecast(
    measured: Measured, images: int, budget_images: int, *, gpus: int = 1, price: float | None = None
) -> Forecast:
    """What the predictor, the cascade and the full oracle would take.

    Args:
        measured: see there.
        images: to be scored.
        budget_images: of these, how many the cascade's model sees.
        gpus: that the model is given.
        price: of one of them for an hour.
    """
    on_gpu = not measured.device.startswith("cpu")
    devices = gpus if on_gpu else 1

    def need(scorer: str, predicted: int, asked: int) -> Need:
        alone = asked / measured.model.per_second / HOUR
        gpu_hours = alone if on_gpu else (0.0 if not asked else None)
        rows = {"predictor": predicted, "model": asked}
        return Need(
            scorer=scorer,
            model_images=asked,
            hours=predicted / measured.predictor_all_workers.per_second / HOUR + alone / devices,
            cpu_hours=predicted / measured.predictor_one_worker.per_second / HOUR,
            gpu_hours=gpu_hours,
            price=None if price is None or gpu_hours is None else gpu_hours * price,
            table_gb=(
                measured.table_bytes["model"] * asked + measured.table_bytes["predictor"] * (images - asked)
            )
            / 1e9,
            journal_gb=sum(measured.journal_bytes[name] * count for name, count in rows.items()) / 1e9,
        )

    notes = [
        f"Measured on {measured.sample_images:,} pictures within seconds; all else is extrapolated in "
        "proportion: as if the other images were like these, and reading them no slower.",
        "Hours count neither the loading of the model nor sorting the table in the end.",
    ]
    if on_gpu and gpus > 1:
        notes.append(f"{gpus} GPUs are taken to be {gpus} times as fast as the one that was measured.")
    if not on_gpu:
        notes.append(
            f"The model ran on {measured.device}, so its hours are those of this machine without a GPU, and "
            "GPU-hours are not known: run this on a machine with one."
        )
    needs = (need("predictor", images, 0), need("cascade", images, budget_images), need("model", 0, images))
    return Forecast(images, budget_images, devices if on_gpu else 0, measured, needs, tuple(notes))


def row_bytes(places: Iterable[int]) -> float:
    """Mean distance of places in a file: bytes per row."""
    kept = list(places)
    return (kept[-1] - kept[0]) / max(1, len(kept) - 1)
