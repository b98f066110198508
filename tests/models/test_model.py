"""The model's public face beyond the goldens: images, prompts, batches, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.models.m3.config import M3Config
from m3score.models.m3.conversation import CONVERSATIONS, build_prompt, training_example
from m3score.models.m3.encoder import EncodedImage
from m3score.models.m3.preprocess import preprocess
from tests.support.goldens import (
    GOLDEN,
    IMAGES,
    LLAVA,
    NEXT,
    encoded,
    model,
    picture,
)

QUESTION = GOLDEN["questions"]["q1"]


# -- images and prompts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_one_in_one_out_a_list_in_a_list_out(name: str) -> None:
    m3, alone = model(name), [encoded(name, image) for image in IMAGES]
    together = m3.encode([picture(image) for image in IMAGES])
    for one, other in zip(alone, together, strict=True):
        assert (one.size, one.tiles) == (other.size, other.tiles)
        torch.testing.assert_close(one.features, other.features, rtol=0, atol=1e-4)
    assert m3.encode([]) == []
    assert m3.encode(alone[0]) is alone[0]
    mixed = m3.encode([alone[1], picture(IMAGES[0])])
    assert mixed[0] is alone[1] and mixed[1].size == alone[0].size
    questions = [QUESTION, "Why?", "Where?"]
    answers = [
        m3.answer(image, text, 9, max_new_tokens=6) for image, text in zip(alone, questions, strict=True)
    ]
    assert m3.answer(alone, questions, 9, max_new_tokens=6) == answers
    assert m3.answer(alone, questions, 9, max_new_tokens=6, batch_size=2) == answers
    unequal: list[Any] = [(alone, ["Why?"]), (alone, "Why?"), (alone[0], ["Why?"])]
    for images, asked in unequal:
        with pytest.raises(M3ScoreError, match="equally long"):
            m3.answer(images, asked)


def test_images_of_every_kind(tmp_path: Path) -> None:
    reference = encoded(LLAVA, "land_640x480").features
    path = tmp_path / "image.png"
    picture("land_640x480").save(path)
    for image in (path, str(path), path.read_bytes(), np.asarray(picture("land_640x480"))):
        torch.testing.assert_close(model(LLAVA).encode(image).features, reference)
    with pytest.raises(M3ScoreError, match="missing"):
        model(LLAVA).encode(tmp_path / "missing.png")


@pytest.mark.parametrize("name", [LLAVA, NEXT])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (300, 1), (1, 300), (300, 3), (40_000, 2)])
def test_thin_images_are_images_like_any_other(name: str, size: tuple[int, int]) -> None:
    colour = (255, 0, 0)
    red, green, _ = preprocess(Image.new("RGB", size, colour), model(name).config).pixel_values[0]
    if min(size) * 336 >= max(size):  # else the image is less than a pixel of the square
        assert (red - green).max() > 0.5  # the padding is grey: 0 in every channel
    if size[0] == size[1]:
        assert (red - green).min() > 3
    assert model(name).encode(Image.new("RGB", size, colour)).size == size


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["pad", "square", "anyres"]))
def test_any_size_gives_tiles(width: int, height: int, aspect: str) -> None:
    chosen = M3Config(image_aspect_ratio=aspect, image_grid_pinpoints=((336, 672), (672, 336)))
    tiles = preprocess(Image.new("RGB", (width, height)), chosen)
    assert tiles.pixel_values.shape == (3 if aspect == "anyres" else 1, 3, 336, 336)
    assert tiles.pixel_values.flags.c_contiguous


def test_long_images_keep_their_middle_when_cropped() -> None:
    stripes = Image.new("RGB", (20_000, 10))
    stripes.paste((255, 255, 255), (9_990, 0, 10_010, 10))
    pixels = preprocess(stripes, M3Config(image_aspect_ratio="square")).pixel_values
    assert pixels[0, 0, 168, 168] > 1.9


@pytest.mark.parametrize("tokens", [0, 577, 1000, 2.5])
def test_a_scale_that_makes_no_sense(tokens: Any) -> None:
    for ask in (model(LLAVA).visual_tokens, model(LLAVA).visual_token_count):
        with pytest.raises(M3ScoreError, match="1 to 576"):
            ask(encoded(LLAVA, "land_640x480"), tokens)


def test_a_prompt_that_is_too_long_is_no_answer() -> None:
    image = encoded(LLAVA, "land_640x480")
    with pytest.raises(M3ScoreError, match=r"2048.*coarser"):
        model(LLAVA).answer(image, "word " * 2000, 576)
    with pytest.raises(M3ScoreError, match="2048"):
        model(LLAVA).answer_ladder([image], [["word " * 2000]])


def test_image_tags() -> None:
    image = encoded(LLAVA, "land_640x480")
    assert model(LLAVA).prompt_ids(f"<image>\n{QUESTION}") == model(LLAVA).prompt_ids(QUESTION)
    with pytest.raises(M3ScoreError, match="2 <image> tags"):
        model(LLAVA).answer(image, "<image> or <image>?")
    with pytest.raises(M3ScoreError, match="room for 1"):
        model(LLAVA).logits(model(LLAVA).prompt_ids("Why?"), [image, image])
    assert build_prompt("Why?", "short", 0) == "USER: Why? ASSISTANT:"


def test_an_encoded_image_is_a_value() -> None:
    image = encoded(LLAVA, "land_640x480")
    assert isinstance(image, EncodedImage) and not image.features.requires_grad
    with pytest.raises(AttributeError):
        image.size = (1, 1)  # type: ignore[misc]


# -- training --------------------------------------------------------------------------------------------

TURNS = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A square."}]
LONGER = [*TURNS, {"from": "human", "value": "Red?"}, {"from": "gpt", "value": "Yes, all of it."}]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_labels_are_the_answers_and_their_ends(conversation: str) -> None:
    tokenizer = model(LLAVA).tokenizer
    ids, labels = training_example(LONGER, tokenizer, conversation)
    assert len(ids) == len(labels)
    learnt = [label for label in labels if label >= 0]
    assert tokenizer.decode(learnt, skip_special_tokens=False) == "A square.</s> Yes, all of it.</s>"


def test_what_is_no_conversation() -> None:
    for turns in ([], TURNS[:1], TURNS[::-1]):
        with pytest.raises(M3ScoreError, match="human"):
            training_example(turns, model(LLAVA).tokenizer)


@pytest.mark.parametrize("size", [(1000, 17), (17, 1000), (340, 339), (5000, 2501), (2501, 5000)])
def test_padding_in_strips_is_padding_at_once(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, side = Image.fromarray(noise), max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    padded, plain = M3Config(), M3Config(image_aspect_ratio="square")
    pixels = preprocess(image, padded).pixel_values
    np.testing.assert_array_equal(pixels, preprocess(square, plain).pixel_values)
