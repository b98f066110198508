"""A model behind a server gives the numbers of the same model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3score.models.endpoint.loading import load_endpoint
from m3score.models.stock.model import StockModel
from tests.support.endpoint import StockMind, Stub, readable, serving

RUNGS = (16, 64, 256)
QUESTIONS = ("What is it?", "Which color?")


@pytest.fixture(scope="module")
def stock(stock_folder: Callable[[str], Path]) -> StockModel:
    from m3score.models.loading import load_model

    model: StockModel = load_model(stock_folder("qwen2_5_vl"), device="cpu", rungs=RUNGS)
    readable(model.hf_model, model.processor.tokenizer)
    return model


@pytest.fixture(scope="module")
def stub(stock: StockModel) -> Iterator[Stub]:
    mind = StockMind(stock.hf_model, stock.processor)
    with serving(Stub(mind, most_logprobs=len(stock.processor.tokenizer))) as one:
        yield one


def _images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = ((320, 240), (100, 90), (60, 300))
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def _served(stub: Stub, **options: Any) -> Any:
    return load_endpoint(stub.url, rungs=RUNGS, **options)


def test_forced_with_all_log_probabilities(stock: StockModel, stub: Stub) -> None:
    model = _served(stub, top_logprobs=stub.most_logprobs)
    assert model.agreement_from == "forced"
    images, questions = _images(), [QUESTIONS] * 3
    here = stock.answer_ladder(images, questions, max_new_tokens=6)
    there = model.answer_ladder(images, questions, max_new_tokens=6)
    pairs = [pair for row in zip(here, there, strict=True) for pair in zip(*row, strict=True)]
    agreements = []
    for ours, theirs in pairs:
        assert [one.visual_tokens for one in theirs] == [one.visual_tokens for one in ours]
        assert [one.answer for one in theirs] == [one.answer for one in ours]
        assert [one.cut for one in theirs] == [one.cut for one in ours]
        for one, other in zip(theirs, ours, strict=True):
            assert one.agreement == pytest.approx(other.agreement, abs=1e-3)
            assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
            agreements.append(one.agreement)
    assert min(agreements) < 0.9 and len(pairs) == 6


def test_up_to_the_first_difference_without_forcing(stock: StockModel, stub: Stub) -> None:
    """The first position's agreement needs no forcing: of answers of one token it is all there is."""
    stub.forces = False
    try:
        model = _served(stub, top_logprobs=stub.most_logprobs)
        assert model.agreement_from == "logprobs"
        here = stock.answer_ladder(_images(), [QUESTIONS] * 3, max_new_tokens=1)
        there = model.answer_ladder(_images(), [QUESTIONS] * 3, max_new_tokens=1)
    finally:
        stub.forces = True
    for ours, theirs in zip(here, there, strict=True):
        for scales, others in zip(ours, theirs, strict=True):
            for one, other in zip(scales, others, strict=True):
                assert other.agreement == pytest.approx(one.agreement, abs=1e-3)
