"""The whole of a vision score, of the bundled model: what nobody doubts, and what must not matter."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from m3score.calibration.drawings.drawing import draw
from m3score.models.loading import load_model
from m3score.models.m3.model import M3Model
from m3score.models.vision.complexity import VisionScore
from m3score.models.vision.prepare import Prepared, prepare
from tests.models.vision.test_reader import page

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def model() -> M3Model:
    return load_model("m3-tiny", device="cpu", dtype="float32")


def tokens(model: M3Model, images: list[Image.Image]) -> list[float]:
    return [score.effective_tokens for score in model.vision_score(images)]


def crowd() -> Image.Image:
    return Image.open(EXAMPLES / "crowd.png").convert("RGB")


def test_what_shows_nothing_is_one_token(model: M3Model) -> None:
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8), (300, 1))
    colours = ("black", "white", "grey", "red", "navy", "#e8d8b0")
    nothing = [Image.new("RGB", size, colour) for colour in colours for size in ((400, 300), (60, 400))]
    nothing += [Image.fromarray(ramp).convert("RGB"), Image.fromarray(ramp.T).convert("RGB")]
    assert tokens(model, nothing) == [1.0] * len(nothing)


def test_a_page_above_a_sign_above_a_shape_above_nothing(model: M3Model) -> None:
    shape = Image.new("RGB", (504, 504), (236, 232, 224))
    sign = shape.copy()
    ImageDraw.Draw(shape).ellipse((170, 170, 250, 250), fill=(200, 30, 30))
    sign.paste(page(60, 1, side=300).crop((0, 0, 300, 110)), (100, 180))
    blank = Image.new("RGB", (504, 504), (236, 232, 224))
    found = tokens(model, [page(12, 26), sign, shape, blank])
    assert found == sorted(found, reverse=True)
    assert found[0] > 144 and found[-1] == 1


def test_noise_is_simpler_than_a_crowd(model: M3Model) -> None:
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (504, 504, 3)).astype(np.uint8))
    seen, busy = tokens(model, [noise, crowd()])
    assert seen < busy / 2


def test_path_bytes_picture_and_array_are_one(model: M3Model) -> None:
    path = EXAMPLES / "crowd.png"
    forms = [path, path.read_bytes(), crowd(), np.asarray(crowd()), prepare(crowd(), model.config)]
    assert isinstance(forms[-1], Prepared)
    first, *others = model.vision_score(forms)
    for other in others:
        assert other.to_row() == first.to_row()
    assert model.vision_score(path).complexity == pytest.approx(first.complexity, abs=1e-4)


def test_mirrored_compressed_and_resized_move_it_little(model: M3Model) -> None:
    image, content = crowd(), io.BytesIO()
    image.save(content, "JPEG", quality=60)
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    changed = [image, ImageOps.mirror(image), Image.open(content).convert("RGB"), half]
    first, *others = [score.complexity for score in model.vision_score(changed)]
    assert max(abs(other - first) for other in others) < 0.05


def test_the_map_sums_to_the_tokens(model: M3Model) -> None:
    for score in model.vision_score([crowd(), page(12, 26), Image.new("RGB", (64, 64))]):
        assert isinstance(score, VisionScore) and score.map.shape == (24, 24)
        assert (
            score.map.sum() == pytest.approx(score.effective_tokens, rel=1e-3) or score.effective_tokens == 1
        )


def test_half_precision_ranks_alike(model: M3Model) -> None:
    half = load_model("m3-tiny", device="cpu", dtype="bfloat16")
    images = [draw(11, index).image for index in range(12)]
    exact = np.array([score.complexity for score in model.vision_score(images)])
    rough = np.array([score.complexity for score in half.vision_score(images)])
    assert np.abs(exact - rough).max() < 0.02
    order = np.argsort(exact)
    assert (np.diff(rough[order]) > -0.02).all()
