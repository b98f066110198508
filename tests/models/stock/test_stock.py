"""Stock models of all seven families: answers at every budget, alone and in batches, and what goes wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.models.base import ScaleAnswer
from m3score.models.loading import load_model
from m3score.models.m3.preprocess import Tiles
from m3score.models.stock.inference import Network, Pair
from m3score.models.stock.model import StockModel
from m3score.models.vision.meter import VisionMeter
from m3score.models.vision.whitening import Reference

RUNGS = {
    "qwen2_5_vl": (16, 64, 256),
    "qwen3_vl": (16, 64, 256),
    "internvl": (256, 1280),
    "smolvlm": (64, 320),
    "llava_onevision": (1485, 2241),
    "gemma3": (256, 768),
    "gemma4": (70, 140),
}
"""Few and small: tests have to be fast."""
TOKENS = 5


def picture(width: int, height: int, seed: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height))


IMAGES = (picture(320, 240, 0), picture(100, 100, 1), picture(260, 560, 2))
QUESTIONS = (("What is it?",), ("How many are there in all of this picture?", "Why?"), ("Read.",))


@pytest.fixture(scope="session")
def stock(stock_folder: Callable[[str], Path]) -> Callable[[str], StockModel]:
    """Loaded models, by family."""

    @cache
    def load(family: str) -> StockModel:
        model = load_model(stock_folder(family), device="cpu", rungs=RUNGS[family])
        assert isinstance(model, StockModel)
        return model

    return load


@pytest.fixture
def qwen(stock: Callable[[str], StockModel]) -> StockModel:
    return stock("qwen2_5_vl")


def flat(ladders: list[list[tuple[ScaleAnswer, ...]]]) -> Iterator[ScaleAnswer]:
    return (scale for image in ladders for question in image for scale in question)


@pytest.mark.parametrize("family", RUNGS)
def test_batches_and_budgets_alone_give_the_same(family: str, stock: Callable[[str], StockModel]) -> None:
    model = stock(family)
    together = model.answer_ladder(IMAGES, QUESTIONS, max_new_tokens=TOKENS, batch_size=4)
    alone = model.answer_ladder(IMAGES, QUESTIONS, max_new_tokens=TOKENS, batch_size=1)
    assert [len(image) for image in together] == [1, 2, 1]
    for one, other in zip(flat(together), flat(alone), strict=True):
        assert (one.tokens, one.visual_tokens, one.answer, one.cut) == (
            other.tokens,
            other.visual_tokens,
            other.answer,
            other.cut,
        )
        assert one.agreement == pytest.approx(other.agreement, abs=1e-4)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert any(scale.agreement < 0.99 for scale in flat(together))
    # Each answer is the one that the budget gives by itself.
    for image, questions, ladders in zip(IMAGES, QUESTIONS, together, strict=True):
        for question, ladder in zip(questions, ladders, strict=True):
            assert [scale.tokens for scale in ladder] == list(model.ladder)
            assert ladder[-1].agreement == 1
            coarsest = ladder[0]
            assert model.answer(image, question, coarsest.tokens, max_new_tokens=TOKENS) == coarsest.answer


@pytest.mark.parametrize("family", RUNGS)
def test_counts_are_those_of_the_prompt(family: str, stock: Callable[[str], StockModel]) -> None:
    model = stock(family)
    prompter = model.network.prompter
    for budget in model.ladder:
        inputs = prompter.inputs(IMAGES, [prompter.text("Why?")] * len(IMAGES), budget)
        assert prompter.count(inputs) == [model.count_visual_tokens(one.size, budget) for one in IMAGES]


@pytest.mark.parametrize("family", RUNGS)
def test_reading_its_own_answer_the_finest_budget_agrees_with_itself(
    family: str, stock: Callable[[str], StockModel]
) -> None:
    network, top = stock(family).network, RUNGS[family][-1]
    pairs = [Pair(image, network.prompter.text("Why?")) for image in IMAGES]
    drafts = network.generate(network.inputs(pairs, top), [TOKENS] * 3, keep_distributions=True)
    for draft, verdict in zip(drafts, network.read(pairs, top, drafts), strict=True):
        assert verdict.ids == draft.ids and not verdict.differs
        assert verdict.agreement == pytest.approx(1, abs=1e-4)
        assert verdict.logprob == pytest.approx(draft.logprob, abs=1e-4)


@pytest.mark.parametrize("family", RUNGS)
def test_features_lie_where_they_were_seen(family: str, stock: Callable[[str], StockModel]) -> None:
    model = stock(family)
    side, grid = model.vision_shape, model.family.square().grid
    patch = side // grid
    grey = np.full((1, side, side, 3), 128, np.uint8)
    row, column = grid // 2, grid // 4
    marked = grey.copy()
    checks = np.indices((patch, patch)).sum(axis=0) % 2 * 255
    marked[0, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = checks[..., None]
    seen, plain = model.patch_features([Tiles(pixels, (9, 9), None) for pixels in (marked, grey)])
    assert seen.shape[:2] == (1, grid * grid) and model.vision_ladder[-1] == grid * grid
    assert divmod(int((seen - plain)[0].norm(dim=-1).argmax()), grid) == (row, column)


def test_a_picture_without_a_question(stock: Callable[[str], StockModel]) -> None:
    model = stock("smolvlm")

    def drawings() -> list[Image.Image]:
        return [picture(300, 200, seed) for seed in range(3)]

    def nothing() -> list[Image.Image]:
        return [Image.new("RGB", (90, 90), colour) for colour in ("black", "white", "navy")]

    meter = VisionMeter(model, "none", lambda: Reference(drawings, nothing, drawings, drawings))
    blank, busy = meter.score([Image.new("RGB", (200, 90), "black"), picture(400, 300, 9)])
    assert blank.complexity == 0 and busy.complexity > 0.3
    assert busy.ladder == (1, 4, 16, 64) and len(busy.kept) == 3 and busy.map.shape == (8, 8)


def test_equal_pixels_are_worked_out_once(qwen: StockModel, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked = qwen.network.read, []

    def counted(pairs: Any, budget: int, drafts: Any) -> Any:
        asked.append((budget, len(pairs)))
        return read(pairs, budget, drafts)

    monkeypatch.setattr(qwen.network, "read", counted)
    ladders = qwen.answer_ladder([IMAGES[0], IMAGES[1]], [["Why?"], ["Why?"]], max_new_tokens=TOKENS)
    assert [scale.visual_tokens for scale in ladders[1][0]] == [16, 16, 16]
    assert [scale.agreement for scale in ladders[1][0]] == [1, 1, 1]
    assert len({scale.answer for scale in ladders[1][0]}) == 1
    assert asked == [(64, 1), (16, 1)]  # the large picture alone


def test_agreement_alone_decodes_nothing_more(qwen: StockModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = qwen.answer_ladder(IMAGES, QUESTIONS, max_new_tokens=TOKENS)
    generate, calls = qwen.network.generate, []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return generate(*arguments, **options)

    monkeypatch.setattr(qwen.network, "generate", counted)
    bare = qwen.answer_ladder(IMAGES, QUESTIONS, max_new_tokens=TOKENS, decode_coarse=False)
    assert len(calls) == 1
    for one, other in zip(flat(bare), flat(whole), strict=True):
        assert one.agreement == pytest.approx(other.agreement, abs=1e-4)
        assert one.answer in (None, other.answer)
    assert any(scale.answer is None for scale in flat(bare))


def test_out_of_memory_halves_the_batch(
    qwen: StockModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = qwen.answer(list(IMAGES), ["Why?"] * 3, 16, max_new_tokens=TOKENS)
    generate, sizes = Network.generate, []

    def tight(network: Network, inputs: Any, limits: Any, **options: Any) -> Any:
        sizes.append(len(limits))
        if len(limits) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(network, inputs, limits, **options)

    monkeypatch.setattr(Network, "generate", tight)
    fresh = StockModel(qwen.hf_model, qwen.processor, qwen.family, "fresh", qwen.ladder)
    assert fresh.answer(list(IMAGES), ["Why?"] * 3, 16, max_new_tokens=TOKENS, batch_size=2) == wanted
    assert sizes == [2, 1, 1, 1] and "Out of device memory" in caplog.text


def test_tags_for_pictures_in_a_question_are_left_out(qwen: StockModel) -> None:
    plain = qwen.network.prompter.text("What is it?")
    assert qwen.network.prompter.text("<image>\nWhat is it?") == plain
    assert qwen.network.prompter.text("<|image_pad|>What is it?") == plain


def test_what_a_model_is(qwen: StockModel, stock_folder: Callable[[str], Path]) -> None:
    folder = stock_folder("qwen2_5_vl")
    again = load_model(folder, device="cpu", dtype="bfloat16", rungs=[256, 64, 16])
    assert again.identity == qwen.identity and again.ladder == qwen.ladder
    assert again.dtype == torch.bfloat16
    (answered,) = again.answer_ladder([IMAGES[0]], [["Why?"]], max_new_tokens=2)
    assert 0 <= answered[0][0].agreement <= 1
    others = [load_model(folder, device="cpu"), StockModel(qwen.hf_model, qwen.processor, qwen.family, "x")]
    enlarged = dataclasses.replace(qwen.family, least=100_000)  # type: ignore[call-arg]
    others.append(StockModel(qwen.hf_model, qwen.processor, enlarged, "x", qwen.ladder))
    assert len({model.identity for model in [qwen, *others]}) == 4
    assert others[0].ladder == (64, 256, 1024, 4096)


def test_a_picture_that_the_processor_refuses_is_an_error_of_its_own(qwen: StockModel) -> None:
    with pytest.raises(M3ScoreError, match="at most 200 times as long"):
        qwen.answer_ladder([Image.new("RGB", (900, 3))], [["Why?"]])


def test_prompts_that_are_too_long(qwen: StockModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen.network, "_longest", 60)
    with pytest.raises(M3ScoreError, match="more than the 60 that the model takes"):
        qwen.answer(IMAGES[0], "Why?", 256)


def test_wrong_arguments(qwen: StockModel) -> None:
    with pytest.raises(M3ScoreError, match="equally long lists"):
        qwen.answer(list(IMAGES), ["Why?"])
    with pytest.raises(M3ScoreError, match="any number from 4 on"):
        qwen.answer(IMAGES[0], "Why?", 1)
    with pytest.raises(M3ScoreError, match="max_new_tokens is 0"):
        qwen.answer(IMAGES[0], "Why?", max_new_tokens=0)
    with pytest.raises(M3ScoreError, match="2 images, but questions for 1"):
        qwen.answer_ladder(IMAGES[:2], [["Why?"]])
    with pytest.raises(M3ScoreError, match="batch_size is 0"):
        qwen.answer_ladder(IMAGES[:1], [["Why?"]], batch_size=0)


# ---- loading --------------------------------------------------------------------------------------------


def test_rungs_belong_to_models_that_were_not_trained_for_a_ladder() -> None:
    with pytest.raises(M3ScoreError, match="leave rungs out"):
        load_model("m3-tiny", device="cpu", rungs=[1, 9])


def test_a_rung_that_the_family_lacks(stock_folder: Callable[[str], Path]) -> None:
    with pytest.raises(M3ScoreError, match=r"gemma4 has no budget of 100 visual tokens; it has 70, 140"):
        load_model(stock_folder("gemma4"), device="cpu", rungs=[100])


def test_an_unknown_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    with pytest.raises(M3ScoreError, match=r"type 'mystery'.*CONTRIBUTING"):
        load_model(tmp_path, device="cpu")


def test_a_base_model_has_no_chat_template(stock_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(stock_folder("gemma4"), tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(M3ScoreError, match="no chat template"):
        load_model(folder, device="cpu")


def test_missing_tensors(stock_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(stock_folder("gemma4"), tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(M3ScoreError, match=r"lacks 1 of the model.s tensors, lm_head\.weight"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("missing", ["torchvision", "num2words"])
def test_a_processor_that_needs_a_package(
    missing: str, stock_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folder = stock_folder("smolvlm")
    found = importlib.util.find_spec

    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError(f"requires {missing}")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(MissingExtraError, match=rf"smolvlm \({missing}\).*pip install 'm3score\[vlm\]'"):
        load_model(folder, device="cpu")


def test_a_torchvision_of_another_torch(
    stock_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    folder = stock_folder("smolvlm")

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", refuse)
    with pytest.raises(M3ScoreError, match="does not fit the installed torch"):
        load_model(folder, device="cpu")


def test_a_model_without_pictures(stock_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(stock_folder("gemma4"), tmp_path / "text")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["text_config"]))
    with pytest.raises(M3ScoreError, match="gemma4_text"):
        load_model(folder, device="cpu")
