"""The same numbers as the authors' code, from pixels to logits and labels, through the public face."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import PIL
import pytest
import torch

from m3score import load_model
from m3score.models.m3.conversation import build_prompt, tokenize, training_example
from m3score.models.m3.preprocess import preprocess
from tests.support.goldens import (
    CHECKPOINTS,
    GOLDEN,
    IMAGES,
    LLAVA,
    NAMES,
    NEXT,
    SCALES,
    SEPARATE,
    arrays,
    encoded,
    golden,
    golden_name,
    model,
    picture,
)

LOGITS = 1e-4
MEAN_LOGITS = 2e-5
VISUAL_TOKENS = 1e-4
# Pixels are exact with the same Pillow; another one may differ by one 8-bit level here and there.
PIXELS = 0.0 if PIL.__version__ == GOLDEN["environment"]["pillow"] else 0.016

CASES = [
    pytest.param(name, case, id=case["key"].replace(golden_name(name), name))
    for name in NAMES
    for case in [*golden(name)["cases"], *golden(name)["extra"]]
]
TRAINING = [
    pytest.param(name, example, id=f"{name}/{example['id']}")
    for name in NAMES
    for example in golden(name)["train"]
]
EACH = pytest.mark.parametrize("name", NAMES)
EACH_IMAGE = pytest.mark.parametrize("image", IMAGES)


@EACH_IMAGE
def test_images_are_the_ones_the_goldens_were_made_from(image: str) -> None:
    digest = hashlib.sha256(picture(image).tobytes()).hexdigest()
    assert digest == GOLDEN["images"][image]["sha256_of_rgb_bytes"]


@pytest.mark.parametrize("name", [LLAVA, SEPARATE, NEXT])
@EACH_IMAGE
def test_pixels(name: str, image: str) -> None:
    expected = golden(name)["images"][image]
    tiles = preprocess(picture(image), model(name).config)
    pixels = tiles.pixel_values
    assert (pixels.dtype, list(pixels.shape)) == (np.float32, expected["pixel_values_shape"][-4:])
    assert list(tiles.tiles or []) == expected.get("grid_wh", [])
    every_24th = arrays()[f"{name}/{image}/pixel_values_every_24"].reshape(len(pixels), 3, 14, 14)
    np.testing.assert_allclose(pixels[..., ::24, ::24], every_24th, rtol=0, atol=PIXELS)
    sample = np.float32(expected["sample_values"])
    np.testing.assert_allclose(pixels.ravel()[expected["sample_flat_index"]], sample, rtol=0, atol=PIXELS)
    if PIXELS == 0:
        assert pixels.sum(dtype=np.float64) == pytest.approx(expected["sum"], rel=1e-9)
        assert np.square(pixels, dtype=np.float64).sum() == pytest.approx(
            expected["sum_of_squares"], rel=1e-9
        )


@EACH
def test_the_ladder_stands_coarsest_first(name: str) -> None:
    assert model(name).ladder == SCALES


@EACH
@pytest.mark.parametrize("question", GOLDEN["questions"])
def test_prompts(name: str, question: str) -> None:
    expected = golden(name)["prompts"][question]
    assert build_prompt(GOLDEN["questions"][question]) == expected["prompt"]
    assert model(name).prompt_ids(GOLDEN["questions"][question]) == expected["input_ids"]


@EACH
@EACH_IMAGE
def test_projected_features(name: str, image: str) -> None:
    features = encoded(name, image).features.numpy()
    key = f"{golden_name(name)}/{image}/projected_576"
    mean = arrays()[f"{key}_mean_per_tile"].reshape(len(features), -1)
    np.testing.assert_allclose(features.mean(axis=1), mean, rtol=0, atol=VISUAL_TOKENS)
    rows = arrays()[f"{key}_rows_0_23_24_575"].reshape(len(features), 4, -1)
    np.testing.assert_allclose(features[:, [0, 23, 24, 575]], rows, rtol=0, atol=VISUAL_TOKENS)


@EACH
@EACH_IMAGE
@pytest.mark.parametrize("tokens", [*SCALES, None])
def test_visual_tokens(name: str, image: str, tokens: int | None) -> None:
    image_golden = golden(name)["images"][image]
    scale = "none" if tokens is None else str(tokens)
    rows = model(name).visual_tokens(encoded(name, image), tokens).numpy()
    assert len(rows) == image_golden["n_visual_tokens"][scale]
    assert model(name).visual_token_count(encoded(name, image), tokens) == len(rows)
    stats = image_golden["visual_token_stats"][scale]
    assert rows.mean() == pytest.approx(stats["mean"], abs=VISUAL_TOKENS)
    assert rows.std(ddof=1) == pytest.approx(stats["std_unbiased"], abs=VISUAL_TOKENS)
    key = f"{golden_name(name)}/{image}/{scale}/visual_tokens"
    if key in arrays():
        np.testing.assert_allclose(rows, arrays()[key], rtol=0, atol=VISUAL_TOKENS)
    elif f"{key}_mean" in arrays():
        np.testing.assert_allclose(rows.mean(axis=0), arrays()[f"{key}_mean"], rtol=0, atol=VISUAL_TOKENS)
        norms = np.linalg.norm(rows, axis=1)
        np.testing.assert_allclose(norms, arrays()[f"{key}_norms"], rtol=0, atol=VISUAL_TOKENS)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_logits_and_answers(name: str, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    m3 = model(name)
    images = case.get("images") or ([case["image"]] if "image" in case else [])
    prompt = golden(name)["prompts"][case["question"]] if len(images) == 1 else case
    ids = m3.prompt_ids(GOLDEN["questions"][case["question"]], len(images))
    assert ids == prompt["input_ids"]
    truncate = case.get("kind") == "truncated_sequence"
    if truncate:
        monkeypatch.setattr(m3, "config", dataclasses.replace(m3.config, max_length=300))
    tokens = 576 if truncate else case.get("scale")
    pictures = [encoded(name, image) for image in images]

    logits = m3.logits(ids, pictures, tokens, truncate=truncate).numpy()
    if "seq_len" in case:
        assert len(logits) == case["seq_len"]
    np.testing.assert_allclose(logits[-1], arrays()[f"{case['key']}/final_logits"], rtol=0, atol=LOGITS)
    if f"{case['key']}/mean_logits" in arrays():
        mean = arrays()[f"{case['key']}/mean_logits"]
        np.testing.assert_allclose(logits.mean(axis=0), mean, rtol=0, atol=MEAN_LOGITS)

    answer = m3.generate(ids, pictures, tokens, max_new_tokens=8, truncate=truncate)
    sure = _sure_steps(case)
    assert answer[:sure] == case["new_token_ids"][:sure]
    if sure == len(case["new_token_ids"]):
        assert len(answer) == sure
        assert m3.decode(answer) == case.get("output_text", m3.decode(answer))


def _sure_steps(case: dict[str, Any]) -> int:
    """How many greedy steps the tolerance on logits can't turn."""
    margins = case.get("greedy_top1_minus_top2", [])
    narrow = (step for step, margin in enumerate(margins) if margin <= 2 * LOGITS)
    return next(narrow, len(case["new_token_ids"]))


@EACH
def test_next_token_logits_and_answer_are_the_same_thing(name: str) -> None:
    case = golden(name)["cases"][2]
    m3, image, question = model(name), encoded(name, case["image"]), GOLDEN["questions"][case["question"]]
    logits = m3.next_token_logits(image, question, tokens=case["scale"])
    assert (str(logits.dtype), tuple(logits.shape)) == ("torch.float32", (600,))
    np.testing.assert_allclose(logits, arrays()[f"{case['key']}/final_logits"], rtol=0, atol=LOGITS)
    assert m3.answer(image, question, case["scale"], max_new_tokens=8) == case["output_text"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_a_gpu_says_the_same(name: str) -> None:
    m3 = load_model(CHECKPOINTS / name, device="cuda", dtype="float32")
    images = dict(zip(IMAGES, m3.encode([picture(image) for image in IMAGES]), strict=True))
    for case in golden(name)["cases"]:
        logits = m3.next_token_logits(
            images[case["image"]], GOLDEN["questions"][case["question"]], case["scale"]
        )
        np.testing.assert_allclose(logits, arrays()[f"{case['key']}/final_logits"], rtol=0, atol=1e-3)
    assert load_model(CHECKPOINTS / name).device.type == "cuda"


@pytest.mark.parametrize(("name", "example"), TRAINING)
def test_training_labels(name: str, example: dict[str, Any]) -> None:
    ids, labels = training_example(example["conversations"], model(name).tokenizer)
    assert ids == example["input_ids"] == tokenize(example["prompt"], model(name).tokenizer)
    assert labels == example["labels"]
