"""The vision tower run outside of transformers gives the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from m3score.models.loading import load_model
from m3score.models.m3 import tower as towers
from m3score.models.m3.tower import FastTower, fast_tower, patch_features
from tests.support.goldens import LLAVA, NEXT, model, picture


def small(**changes: object) -> CLIPVisionModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "initializer_range": 0.4,
        **changes,
    }
    made = CLIPVisionModel(CLIPVisionConfig(**sizes)).eval()
    for parameter in made.parameters():  # biases and gains too: they start as 0 and 1
        parameter.data += 0.2 * torch.randn_like(parameter)
    return made


def theirs(tower: CLIPVisionModel, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    with torch.inference_mode():
        return tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize("count", [1, 5])
def test_a_small_tower_is_equal_at_every_layer(activation: str, layer: int, count: int) -> None:
    tower, pixels = small(hidden_act=activation), torch.randn(count, 3, 56, 56)
    fast = fast_tower(tower, layer)
    assert fast is not None
    torch.testing.assert_close(fast(pixels), theirs(tower, pixels, layer), rtol=0, atol=1e-4)


def test_without_onednn_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    tower, pixels = small(), torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(FastTower(tower, -1)(pixels), theirs(tower, pixels, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_neither_numbers_nor_their_own_count(threads: int) -> None:
    tower, pixels = small(), torch.randn(9, 3, 56, 56)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = FastTower(tower, -1)(pixels)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, theirs(tower, pixels, -1), rtol=0, atol=1e-4)


def test_the_fast_copy_is_made_once_and_saved_nowhere() -> None:
    tower = small()
    assert fast_tower(tower, -1) is fast_tower(tower, -1)
    assert not [name for name in tower.state_dict() if "fast" in name]


def test_what_the_fast_copy_does_not_know_runs_in_transformers() -> None:
    assert fast_tower(small(hidden_act="relu"), -1) is None
    assert fast_tower(small().bfloat16(), -1) is None
    assert fast_tower(small().train(), -1) is None
    assert fast_tower(small(), [-1, -2]) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [LLAVA, NEXT])
def test_features_are_those_of_every_grid(name: str) -> None:
    m3 = model(name)
    images = [m3.tiles(picture("land_640x480")), m3.tiles(picture("land_640x480").rotate(90, expand=True))]
    found = patch_features(m3, images)
    layer = m3.hf_model.config.vision_feature_layer
    for features, image in zip(found, images, strict=True):
        pixels = torch.from_numpy(image.pixel_values).to(m3.dtype)
        assert len(features) == len(image.pixel_values)
        expected = theirs(m3.hf_model.model.vision_tower, pixels, layer)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-3)


def test_the_bundled_model_runs_fast() -> None:
    m3 = load_model("m3-tiny", device="cpu", dtype="float32")
    assert towers.fast_tower(m3.hf_model.model.vision_tower, m3.hf_model.config.vision_feature_layer)
