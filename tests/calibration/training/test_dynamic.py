"""Training of a Qwen2.5-VL of dynamic resolution: its inputs and losses are those of the stock classes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from m3score.calibration.drawings.boards import (
    CLASSES,
    LABEL_WIDTH,
    READING,
    Style,
    dense_labels,
    draw_boards,
)
from m3score.calibration.drawings.canvas import CHARS, GLYPH_CLASSES, SLOTS
from m3score.calibration.training.dynamic import train as training
from m3score.calibration.training.dynamic.batches import Batches, pack, random_size
from m3score.calibration.training.dynamic.evaluate import accuracy, unseen
from m3score.calibration.training.dynamic.model import build_model, encode, save_model
from m3score.calibration.training.dynamic.objective import TrainingModule
from m3score.calibration.training.dynamic.processing import (
    AFTER_IMAGE,
    BEFORE_IMAGE,
    FEWEST_TOKENS,
    RUNGS,
    TOKEN_SIDE,
    at_budget,
    build_tokenizer,
    fitted,
    patchify,
    save_processor,
)
from m3score.calibration.training.dynamic.train import Plan, rate_at
from m3score.common.errors import M3ScoreError

SMALL = {"heads": 1, "tower_layers": 2, "layers": 2}
AREA = TOKEN_SIDE**2


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(tokenizer, seed=1, **SMALL).eval()


def _drawing(index: int = 0, size: tuple[int, int] = (420, 310), height: int = 24):
    return draw_boards(np.random.default_rng((5, index)), size, height)


def _processed(image, budget: int):
    processor = Qwen2VLImageProcessorPil()
    return processor(
        image,
        size={"shortest_edge": FEWEST_TOKENS * AREA, "longest_edge": budget * AREA},
        return_tensors="pt",
    )


def _pixels(*images) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def test_pictures_are_resized_as_the_processor_does():
    rng = np.random.default_rng(0)
    for _ in range(400):
        width, height = (int(side) for side in np.exp(rng.uniform(np.log(20), np.log(1500), 2)))
        for budget in RUNGS:
            rows, columns = smart_resize(
                height, width, TOKEN_SIDE, min_pixels=FEWEST_TOKENS * AREA, max_pixels=budget * AREA
            )
            assert fitted((width, height), budget) == (columns, rows)


@pytest.mark.parametrize("budget", RUNGS)
def test_patches_are_the_processors(budget):
    image = _drawing().image
    expected = _processed(image, budget)["pixel_values"].view(-1, 3, 2, 14, 14)
    patches = patchify(_pixels(at_budget(image, budget)))[0]
    for frame in (0, 1):
        torch.testing.assert_close(patches, expected[:, :, frame].flatten(1), atol=1e-5, rtol=1e-5)


def test_visual_tokens_of_a_batch_are_those_of_the_stock_tower(model):
    images = [_drawing(index).image for index in range(2)]
    tokens = encode(model.model.visual, _pixels(*(at_budget(image, 64) for image in images)))
    for image, own in zip(images, tokens, strict=True):
        inputs = _processed(image, 64)
        stock = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        torch.testing.assert_close(own, stock.pooler_output[0], atol=1e-4, rtol=1e-4)


def _asked(model, tokenizer, image, question: str, budget: int) -> dict[str, torch.Tensor]:
    """What the stock model is given for a question."""
    inputs = _processed(image, budget)
    count = int(inputs["image_grid_thw"].prod()) // 4
    before = tokenizer.encode(BEFORE_IMAGE)
    ids = before + [model.config.image_token_id] * count
    ids += tokenizer.encode(AFTER_IMAGE.format(question=question))
    types = torch.zeros(1, len(ids), dtype=torch.long)
    types[0, len(before) : len(before) + count] = 1
    return {**inputs, "input_ids": torch.tensor([ids]), "mm_token_type_ids": types}


def test_packed_questions_have_the_loss_that_the_stock_model_gives_each(model, tokenizer):
    drawing = _drawing(3)
    network = TrainingModule(model, tokenizer)
    text = vars(pack(tokenizer, [drawing]))
    pixels = _pixels(at_budget(drawing.image, 64))
    grid = pixels.shape[1] // TOKEN_SIDE, pixels.shape[2] // TOKEN_SIDE
    losses = []
    with torch.no_grad():
        packed = float(network.answers(encode(model.model.visual, pixels), text, grid))
        for asked in drawing.questions:
            inputs = _asked(model, tokenizer, drawing.image, asked.question, 64)
            said = torch.tensor([[*tokenizer.encode(asked.answer), tokenizer.eos_token_id]])
            length = inputs["input_ids"].shape[1]
            inputs["input_ids"] = torch.cat([inputs["input_ids"], said], dim=1)
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(
                inputs["mm_token_type_ids"], (0, said.shape[1])
            )
            logits = model(**inputs).logits[0, length - 1 : -1]
            losses += torch.nn.functional.cross_entropy(logits, said[0], reduction="none").tolist()
    assert len(drawing.questions) > 2
    assert packed == pytest.approx(np.mean(losses), rel=1e-4)


def test_right_is_what_the_stock_model_generates(model, tokenizer):
    drawing = _drawing(4)
    inputs = _asked(model, tokenizer, drawing.image, drawing.questions[0].question, 64)
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    network = TrainingModule(model, tokenizer).eval()
    pixels = _pixels(at_budget(drawing.image, 64))
    after = tokenizer.encode(AFTER_IMAGE.format(question=drawing.questions[0].question))
    ids = torch.tensor([[*after, *said.tolist()]])
    labels = torch.full_like(ids, -100)
    labels[0, len(after) - 1 : -1] = said
    text = {
        "ids": ids,
        "labels": labels,
        "positions": torch.arange(ids.shape[1])[None],
        "segments": torch.ones_like(ids),
    }
    assert network.right(pixels, text) == [[True]]
    labels[0, -2] += 1
    assert network.right(pixels, text) == [[False]]


def test_dense_labels_spell_what_is_written():
    checked = 0
    for index in range(12):
        drawing = draw_boards(np.random.default_rng((9, index)), (560, 560), 30, (20, 20))
        glyphs = dense_labels(drawing.canvas)[:, :GLYPH_CLASSES].reshape(-1, len(CHARS), SLOTS)
        marked = {(CHARS[char], slot) for _, char, slot in np.argwhere(glyphs > 0)}
        read = [asked for asked in drawing.questions if asked.task in READING]
        assert marked == {(char, slot) for asked in read for slot, char in enumerate(asked.answer)}
        checked += len(read)
    assert checked > 20
    assert GLYPH_CLASSES + len(CLASSES) == LABEL_WIDTH


def test_a_batch_depends_on_seed_index_and_progress_alone(tokenizer):
    drawn = Batches(tokenizer, seed=3, tokens=64)
    index, early = next((k, batch) for k in range(20) if (batch := drawn[k])["text"] is not None)
    np.testing.assert_equal(Batches(tokenizer, seed=3, tokens=64)[index], early)
    assert len(early["pixels"]) == len(early["dense"]) == len(early["text"]["ids"]) >= 4
    assert early["dense"].shape[1] == early["pixels"].shape[1] * early["pixels"].shape[2] // AREA
    assert early["dense"].shape[1] <= early["budget"]
    late = Batches(tokenizer, seed=3, tokens=64)
    late.progress.fill_(1.0)
    budgets = {late[index]["budget"] for index in range(12)}
    assert RUNGS[-1] in budgets and len(budgets) > 2
    crowds = [batch for k in range(6) if (batch := drawn[k])["text"] is None]
    assert len(crowds) > 1
    for batch in crowds:  # much of such a picture is letters
        assert (batch["dense"][..., :GLYPH_CLASSES].max(-1) > 0).mean() > 0.15


def test_a_saved_model_is_a_stock_model(model, tokenizer, tmp_path):
    save_model(model, tmp_path, torch.float32)
    save_processor(tokenizer, tmp_path)
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 16 * 2**20
    loaded, words = (
        AutoModelForImageTextToText.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert type(loaded).__name__ == "Qwen2_5_VLForConditionalGeneration"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    parts = [{"type": "image"}, {"type": "text", "text": "Read the RED sign. 42"}]
    chat: list[Any] = [{"role": "user", "content": parts}]
    prompt = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == BEFORE_IMAGE + "<|image_pad|>" + AFTER_IMAGE.format(question=parts[1]["text"])
    assert words.encode(prompt) == tokenizer.encode(prompt)
    assert [words.decode([token]) for token in words.encode("RED42")] == list("RED42")


@pytest.mark.parametrize(
    ("progress", "asked"),
    [(0.0, {"symbols"}), (0.4, {"answer", "symbols", "char"}), (0.9, {"answer", "char"})],
)
def test_answers_come_first_from_symbols_and_last_from_pictures(tokenizer, model, progress, asked):
    network = TrainingModule(model, tokenizer)
    drawing = draw_boards(np.random.default_rng(2), (224, 224), 24, (8, 8))
    shown = {
        "pixels": _pixels(drawing.image),
        "dense": torch.from_numpy(dense_labels(drawing.canvas))[None],
        "progress": progress,
    }
    losses = network(**shown, text=vars(pack(tokenizer, [drawing])))
    assert asked <= set(losses) <= asked | {"slot", "glyph", "objects", "match", "loss"}
    crowd = network(**shown, text=None)
    assert "char" in crowd and not {"answer", "symbols"} & set(crowd)
    with torch.no_grad():
        model.model.visual.merger.mlp[2].bias += 1  # the symbols alone do not hang on the tower
        moved = network(**shown, text=vars(pack(tokenizer, [drawing])))
        model.model.visual.merger.mlp[2].bias -= 1
    assert ("answer" in asked) == (
        float(moved["loss"].detach()) != pytest.approx(float(losses["loss"].detach()), rel=0.02)
    )


def test_pictures_that_no_budget_shows_whole_are_an_error():
    with pytest.raises(M3ScoreError, match="280 pixels a side have more than 64 visual tokens"):
        random_size(np.random.default_rng(0), Style(), 64)


def _weights(run) -> torch.Tensor:
    return torch.cat([value.flatten() for value in run.network.parameters()])


def test_a_run_that_was_killed_goes_on_to_where_an_undisturbed_one_ends(tmp_path, monkeypatch):
    plan = Plan(
        steps=4,
        seed=3,
        tokens=64,
        rungs=(16, 64),
        style=Style(sides=(120, 220)),
        save_every=0,
        log_every=0,
        sizes=tuple(SMALL.items()),
    )
    console = Console(quiet=True)
    whole = training.train(plan, tmp_path / "whole", "cpu", console)
    take_step = training.take_step

    def killed(run, batch):
        if run.step == 2:
            raise KeyboardInterrupt
        return take_step(run, batch)

    monkeypatch.setattr(training, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        training.train(plan, tmp_path / "parts", "cpu", console)
    monkeypatch.undo()
    resumed = training.train(plan, tmp_path / "parts", "cpu", console)
    torch.testing.assert_close(_weights(resumed), _weights(whole), atol=1e-6, rtol=1e-5)
    for name in ("whole", "parts"):
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == [1, 2, 3, 4]
        losses = [line[name] for line in log for name in ("loss", "crowd_loss") if name in line]
        assert losses[-1] < losses[0]


def test_accuracy_is_told_by_budget_and_height(model, tokenizer):
    figures = accuracy(TrainingModule(model, tokenizer).eval(), tokenizer, "cpu", pictures=2)
    drawings = unseen(1_000_003, 0, 2)
    assert figures["all"]["questions"] == sum(len(drawing.questions) for drawing in drawings)
    assert set(figures["all"]) == {*map(str, RUNGS), "questions"}
    assert figures["counting"]["questions"] == 2


def test_the_learning_rate_rises_and_falls():
    assert rate_at(0) < 0.05 < 0.9 < rate_at(0.05) > rate_at(0.5) > rate_at(1.0) > 0
