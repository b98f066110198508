"""Drawn images: deterministic, and what they claim is what is on them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3score.calibration.benchmarks.evaluate import EVALUATION_SEED
from m3score.calibration.drawings import canvas, questions
from m3score.calibration.drawings.drawing import KINDS, draw, draw_or_leave_empty
from m3score.calibration.drawings.shapes import place_name
from m3score.calibration.training.tiny.dense_labels import split_labels
from m3score.calibration.training.tiny.model import FIRST_LOOKS, build_model, build_tokenizer, place_code

seeds = st.integers(0, 2**31)


def _glyphs(drawing) -> np.ndarray:
    """(576, characters, slots) coverage."""
    labels = torch.from_numpy(drawing.canvas.labels())
    return split_labels(labels)[0].reshape(-1, len(canvas.CHARS), canvas.SLOTS).numpy()


@given(seed=seeds, index=st.integers(0, 10**9), kind=st.sampled_from(sorted(KINDS)))
@settings(max_examples=60, deadline=None)
def test_a_drawing_is_a_function_of_its_seed(seed, index, kind):
    one, two = draw(seed, index, kind), draw(seed, index, kind)
    assert one.image.tobytes() == two.image.tobytes()
    assert one.questions == two.questions
    assert one.image.size == (336, 336) and one.image.mode == "RGB"
    assert all(asked.question and asked.answer for asked in one.questions)
    assert one.canvas.labels().shape == (576, canvas.LABEL_WIDTH)


def test_streams_do_not_share_images():
    def digests(seed: int) -> set[str]:
        return {hashlib.sha256(draw(seed, i).image.tobytes()).hexdigest() for i in range(150)}

    assert not digests(7) & digests(EVALUATION_SEED)


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_word_on_a_sign_can_be_read_off_its_labels(seed):
    drawing = draw(seed, 0, "sign")
    asked = drawing.questions[0]
    if asked.detail["height"] < canvas.PATCH:
        return  # smaller letters share patches
    per_slot = _glyphs(drawing).astype(int).sum(axis=0)
    read = "".join(canvas.CHARS[column.argmax()] for column in per_slot.T if column.any())
    assert read == asked.answer


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_the_number_of_shapes_is_the_number_of_centres(seed):
    drawing = draw(seed, 1, "shapes")
    assert drawing.questions[0].answer == str(len(drawing.canvas.centres))
    kinds = {canvas.COLOURED[label // len(canvas.COLOURS)] for label, _, _ in drawing.canvas.centres}
    assert kinds <= set(canvas.SHAPES)


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_colour_asked_for_is_the_colour_painted(seed):
    drawing = draw(seed, 2, "shapes")
    for asked in drawing.questions:
        if asked.task == "colour":
            colours = {
                canvas.COLOUR_NAMES[label % len(canvas.COLOURS)] for label, _, _ in drawing.canvas.centres
            }
            assert asked.answer in colours


def test_questions_about_pixels_have_the_truth_of_the_pixels():
    picture = np.zeros((336, 336, 3), np.uint8)
    picture[:, :112] = canvas.COLOURS["blue"]
    picture[:, 112:] = canvas.COLOURS["yellow"]
    found = questions.pixel_questions(np.random.default_rng(0), picture, 30)
    assert {task for task, _, _ in found} >= {"pixel_colour", "brighter", "texture"}
    for task, question, answer in found:
        if task == "pixel_colour":
            assert answer == ("blue" if "left" in question else "yellow")
        if task == "brighter":
            assert "left" not in answer
        if task == "texture":
            assert answer == "no"


@pytest.mark.parametrize("name", [name for name in canvas.COLOURS])
def test_every_colour_is_called_by_its_name(name):
    assert questions.colour_name(*canvas.COLOURS[name]) in (name, None)


def test_places_are_named_as_a_reader_would():
    assert place_name(10, 10) == "top left"
    assert place_name(168, 168) == "middle"
    assert place_name(330, 168) == "right"


def test_the_tower_starts_by_looking_at_neighbours():
    model = build_model(build_tokenizer(), seed=0)
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(torch.randn(1, 3, 336, 336)))
    layer = tower.encoder.layers[0]
    normed = layer.layer_norm1(hidden)
    heads = tower.config.num_attention_heads
    query, key = (
        matrix(normed)[0].unflatten(-1, (heads, -1)).transpose(0, 1)
        for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    weights = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1)
    row, column = 10, 12
    for head, step in enumerate(FIRST_LOOKS[0]):
        assert step is not None
        dx, dy = step
        looked_at = weights[head, 1 + row * 24 + column].argmax().item() - 1
        assert divmod(looked_at, 24) == (row + dy, column + dx)


def test_the_place_code_knows_distance_alone():
    code = place_code().reshape(24, 24, -1)
    near = (code[3, 5] * code[3, 6]).sum()
    assert torch.isclose(near, (code[17, 20] * code[17, 21]).sum(), atol=1e-4)
    assert near < (code[3, 5] ** 2).sum()


def test_some_drawings_for_predictors_show_nothing() -> None:
    """One in 25, with answers that are right; the others are what they always were."""
    drawn = {index: draw_or_leave_empty(5, index) for index in range(300)}
    empty = {index: one for index, one in drawn.items() if one.kind == "empty"}
    assert 4 <= len(empty) <= 25
    for one in empty.values():
        assert one.questions[0].answer == "0" and one.questions[0].task == "count"
        steps = np.abs(np.diff(np.asarray(one.image, int), axis=0))
        assert steps.max() <= 2  # a colour, or a gradient
        assert all(q.answer == "no" for q in one.questions if q.task == "texture")
    for index in (index for index in range(20) if index not in empty):
        assert drawn[index].questions == draw(5, index).questions
