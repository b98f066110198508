"""Training on LLaVA's instruction data: what is read, what is left out, in which order, with which loss."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3score.calibration.training.finetune.instructions import (
    FILLER,
    Example,
    InstructionCollator,
    Records,
    check_records,
    conversation_lengths,
    grouped_order,
    make_example,
    read_records,
)
from m3score.calibration.training.finetune.packing import summed_losses
from m3score.common.errors import M3ScoreError
from m3score.models.m3 import conversation
from tests.support.goldens import LLAVA, NEXT, ROOT, SCALES, golden, model

RELATIVE = 1e-5
PARITY = [
    pytest.param(name, example, id=f"{name}/{example['id']}")
    for name in (LLAVA, NEXT)
    for example in golden(name)["train"]
]


def _said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def _example(name: str, record: Any) -> Example:
    return make_example(record, ROOT / "images", model(name).tokenizer, model(name).config)


def _golden_record(example: dict) -> dict:
    return {"image": f"{example['image']}.png", "conversations": example["conversations"]}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "golden_example"), PARITY)
def test_the_loss_and_its_gradients_are_the_authors(name, golden_example, packed):
    m3 = model(name)
    example = _example(name, _golden_record(golden_example))
    counts = InstructionCollator(m3.config, SCALES)([example])["counts"]
    m3.hf_model.zero_grad(set_to_none=True)
    losses = summed_losses(m3, [example], SCALES, train_vision=False, packed=packed) / counts
    expected = [golden_example["per_scale_loss"][str(tokens)] for tokens in SCALES]
    assert losses.tolist() == pytest.approx(expected, rel=RELATIVE)
    assert losses.mean().item() == pytest.approx(golden_example["average_loss"], rel=RELATIVE)
    losses.mean().backward()
    gradients = {key: parameter.grad for key, parameter in m3.hf_model.named_parameters()}
    norms = {key: gradients[_ours(key)].norm().item() for key in golden_example["grad_norms"]}
    assert norms == pytest.approx(golden_example["grad_norms"], rel=RELATIVE)
    assert all(gradient is None for key, gradient in gradients.items() if "vision_tower" in key)
    m3.hf_model.zero_grad(set_to_none=True)


def _ours(key: str) -> str:
    """The authors' name of a parameter -> transformers'."""
    key = key.replace("model.mm_projector.0", "model.multi_modal_projector.linear_1")
    key = key.replace("model.mm_projector.2", "model.multi_modal_projector.linear_2")
    for part in ("embed_tokens", "layers", "norm"):
        key = key.replace(f"model.{part}.", f"model.language_model.{part}.")
    return key


@pytest.mark.parametrize("train_vision", [False, True])
def test_the_vision_tower_learns_only_if_asked(train_vision):
    m3 = model(LLAVA)
    m3.hf_model.zero_grad(set_to_none=True)
    example = _example(LLAVA, {"image": "land_640x480.png", "conversations": _said("What?", "a square")})
    summed_losses(m3, [example], (9,), train_vision=train_vision).mean().backward()
    tower = m3.hf_model.model.vision_tower
    assert any(weight.grad is not None and weight.grad.any() for weight in tower.parameters()) is train_vision
    m3.hf_model.zero_grad(set_to_none=True)


def test_records_of_all_kinds_in_one_batch_have_the_losses_they_have_alone():
    m3 = model(LLAVA)
    records = [
        {"image": "wide_1200x300.png", "conversations": _said("<image>\nWhat?", "a thing", "More?", "no")},
        {"conversations": _said("Two and two?", "four")},
        {"image": "gray_336x336.png", "conversations": _said("Is it?\n<image>", "yes " * 30)},
    ]
    examples = [_example(LLAVA, record) for record in records]
    with torch.no_grad():
        each = [summed_losses(m3, [one], SCALES, train_vision=False) for one in examples]
        for packed in (True, False):
            together = summed_losses(m3, examples, SCALES, train_vision=False, packed=packed)
            assert together.tolist() == pytest.approx(torch.stack(each).sum(0).tolist(), rel=RELATIVE)
        assert len(set(each[1].tolist())) == 1  # text reads the same at every scale
        assert summed_losses(m3, [], SCALES, train_vision=False).tolist() == [0.0] * len(SCALES)


def test_text_alone_still_hands_every_trained_part_a_gradient():
    m3 = model(NEXT)
    m3.hf_model.zero_grad(set_to_none=True)
    example = _example(NEXT, {"conversations": _said("Two and two?", "four")})
    summed_losses(m3, [example], SCALES, train_vision=True).mean().backward()
    assert not m3.hf_model.model.image_newline.grad.any()
    assert not m3.hf_model.model.multi_modal_projector.linear_1.weight.grad.any()
    assert not m3.hf_model.model.vision_tower.embeddings.patch_embedding.weight.grad.any()
    m3.hf_model.zero_grad(set_to_none=True)


def test_only_answers_and_their_ends_count():
    record = {"conversations": _said("Hello there", "good day", "And you?", "well")}
    example = _example(LLAVA, record)
    tokenizer = model(LLAVA).tokenizer
    kept = [label for label in example.labels if label != conversation.NOT_SUPERVISED]
    assert tokenizer.decode(kept) == "good day</s> well</s>"
    assert [i for i, label in zip(example.ids, example.labels, strict=True) if label == i] == kept
    assert conversation.IMAGE_TOKEN not in example.ids


def test_what_cannot_be_learnt_from_is_left_out_with_the_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    good = [{"id": i, "image": "a.png", "conversations": _said("<image>\nWhat?", "this")} for i in range(3)]
    opened = {"conversations": [{"from": "gpt", "value": "Hi"}, *_said("Who?", "me")]}
    bad = [
        {"id": "x", "conversations": _said("Who?")},
        {"conversations": _said("<image>\nWho?", "me")},
        {"image": "a.png", "conversations": _said("<image><image>\nWho?", "me")},
        {"image": "b.png", "conversations": _said("<image>\nWho?", "me")},
        {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "me"}]},
        {"conversation": []},
        "no record",
    ]
    kept, left_out = check_records(Records([*good, *bad, opened]), tmp_path)
    assert kept.tolist() == [0, 1, 2, 10]
    reasons = [row["error"] for row in left_out]
    assert [row["record"] for row in left_out] == [str(i) for i in range(3, 10)]
    assert left_out[0]["id"] == "x" and "alternate human, gpt: human" in reasons[0]
    assert "1 <image> tags for 0 images" in reasons[1] and "2 <image> tags for 1" in reasons[2]
    assert reasons[3] == "b.png: no such image" and "no text" in reasons[4]
    assert all("not of the form" in reason for reason in reasons[5:])


def test_a_wrong_image_folder_is_an_error_and_not_a_training_without_images(tmp_path):
    records = Records([{"image": "b.png", "conversations": _said("<image>\nWho?", "me")}] * 2)
    with pytest.raises(M3ScoreError, match=r"--image-folder .*2 of 2 images aren't there \(b.png"):
        check_records(records, tmp_path)


@pytest.mark.parametrize("text", ["{", "[1,", "", "[]"])
def test_a_broken_data_file_gets_one_sentence(tmp_path, text):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(M3ScoreError, match=r"--data .*data.json"):
        read_records(tmp_path / "data.json")
    with pytest.raises(M3ScoreError, match="can't be read"):
        read_records(tmp_path / "none.json")


@given(st.lists(st.recursive(st.none() | st.text() | st.integers(), lambda s: st.lists(s)), min_size=1))
def test_records_come_back_as_they_were(data):
    records = Records(data)
    assert [records[i] for i in range(len(records))] == data


def test_json_lines_are_read_too(tmp_path):
    rows = [{"conversations": _said("Wer?", "ich, Jürgen")}] * 2
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_records(tmp_path / "data.jsonl")[1] == rows[1]


@given(
    lengths=st.lists(st.integers(-50, 50).filter(bool), min_size=1, max_size=60),
    batch=st.integers(1, 9),
    epochs=st.integers(1, 2),
)
def test_every_record_is_seen_once_an_epoch_in_batches_of_one_kind(lengths, batch, epochs):
    order = grouped_order(np.array(lengths), batch, epochs, seed=3)
    assert (order == grouped_order(np.array(lengths), batch, epochs, seed=3)).all()
    per_epoch = len(order) // epochs
    mixed = 0
    for epoch in range(epochs):
        own = order[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(own[own != FILLER]) == list(range(len(lengths)))
        for members in own.reshape(-1, batch):
            here = [lengths[i] for i in members if i != FILLER]
            mixed += len({value > 0 for value in here}) > 1
            assert sorted(map(abs, here), reverse=True) == list(map(abs, here))
    assert mixed <= epochs


def test_lengths_tell_text_from_images():
    records = Records(
        [
            {"image": "a.png", "conversations": _said("<image>\nwhat is it", "a cat")},
            {"conversations": _said("hello", "hello to you")},
        ]
    )
    assert conversation_lengths(records, [0, 1]).tolist() == [6, -4]


def test_answers_beyond_the_longest_length_do_not_count():
    example = _example(
        LLAVA, {"image": "gray_336x336.png", "conversations": _said("<image>\nWhat?", "w " * 20)}
    )
    settings = dataclasses.replace(model(LLAVA).config, max_length=120)
    assert example.answer_tokens(1, settings) == example.answer_tokens(1, model(LLAVA).config) > 0
    assert example.answer_tokens(576, settings) == 0
