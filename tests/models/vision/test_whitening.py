"""A model's statistics over drawings: worked out, kept, and never mistaken for another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.models.fingerprint import fingerprint
from m3score.models.vision import whitening as module
from m3score.models.vision.whitening import Reference, bundled_path, load, measure, whitening_of

SIDE, WIDTH = 4, 6


def encode(images: Sequence[Image.Image]) -> torch.Tensor:
    """A tower of 4x4 patches: their mean colour, its products, and where they are."""
    out = []
    for image in images:
        cells = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
        grain = np.asarray(image.convert("L"), np.float32).std() / 255
        place = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
        extra = [cells[..., 0] * cells[..., 1], np.full((SIDE, SIDE), grain), place]
        out.append(np.concatenate([cells, np.stack(extra, axis=2)], axis=2).reshape(SIDE * SIDE, WIDTH))
    return torch.from_numpy(np.stack(out))


def drawings(count: int = 24) -> list[Image.Image]:
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for _ in range(count)]
    return [Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST) for pixels in small]


def blanks() -> list[Image.Image]:
    return [Image.new("RGB", (16, 16), (level, 255 - level, 90)) for level in range(0, 256, 16)]


def noise() -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 256, (16, 16, 3)).astype(np.uint8)) for _ in range(16)]


REFERENCE = Reference(drawings, blanks, noise, drawings)


def test_drawings_become_white_and_blank_pictures_nothing() -> None:
    found = measure(encode, REFERENCE)
    tokens = found.whiten(encode(drawings())).reshape(-1, WIDTH)
    assert tokens.mean(0).abs().max() < 1e-4
    covariance = tokens.T @ tokens / len(tokens)
    # Below the unit matrix by the ridge and by what pictures of nothing and textures vary.
    assert torch.linalg.eigvalsh(covariance).max() <= 1 + 1e-4
    variance = found.whiten(encode(blanks())).var(dim=1, correction=0).sum(-1)
    assert variance.max() <= found.nothing


def test_the_mean_is_of_each_position() -> None:
    found = measure(encode, REFERENCE)
    torch.testing.assert_close(found.mean[:, -1], torch.arange(16.0))


def test_texture_is_told_from_drawings() -> None:
    found = measure(encode, REFERENCE)
    textures, drawn = (found.texture(found.whiten(encode(pictures))) for pictures in (noise(), drawings()))
    assert textures.shape == (16, 16)
    assert textures.mean() > drawn.mean() + 0.3


def test_the_same_again() -> None:
    one, other = measure(encode, REFERENCE), measure(encode, REFERENCE)
    for name, value in one.__dict__.items():
        torch.testing.assert_close(value, getattr(other, name), rtol=0, atol=0)


def test_no_statistics_of_what_says_nothing() -> None:
    same = lambda images: torch.ones(len(images), 16, WIDTH)  # noqa: E731
    with pytest.raises(M3ScoreError, match="all the same"):
        measure(same, REFERENCE)
    with pytest.raises(M3ScoreError, match="not finite"):
        measure(lambda images: same(images) * torch.nan, REFERENCE)
    with pytest.raises(M3ScoreError, match="no drawings"):
        measure(encode, replace(REFERENCE, drawings=list))


# ---- files ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "vision.safetensors"
    monkeypatch.setattr(module, "cache_path", lambda fingerprint: path)
    return path


def fails(*_: Any) -> Any:
    raise AssertionError("worked out although it was kept")


def test_worked_out_once_and_kept(kept: Path) -> None:
    first = whitening_of("some/model", "abc", encode, lambda: REFERENCE)
    assert kept.is_file() and [path.name for path in kept.parent.iterdir()] == [kept.name]
    again = whitening_of("some/model", "abc", fails, fails)
    torch.testing.assert_close(first.transform, again.transform, rtol=0, atol=0)
    torch.testing.assert_close(first.nothing, again.nothing, rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["other model", "other version", "cut off", "no tensors at all"])
def test_what_does_not_fit_is_worked_out_anew(
    kept: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = whitening_of("some/model", "abc", encode, lambda: REFERENCE)
    if damage == "other model":
        good.save(kept, "xyz")
    elif damage == "other version":
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", "0")
            good.save(kept, "abc")
    else:
        kept.write_bytes(kept.read_bytes()[:1000] if damage == "cut off" else b"")
    assert load(kept, "abc") is None
    whitening_of("some/model", "abc", encode, lambda: REFERENCE)
    assert load(kept, "abc") is not None


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(module, "cache_path", lambda fingerprint: tmp_path / "file" / "vision.safetensors")
    assert whitening_of("some/model", "abc", encode, lambda: REFERENCE).nothing >= 0


def test_the_bundled_statistics_are_of_the_bundled_weights() -> None:
    found = load(bundled_path("m3-tiny"), fingerprint("m3-tiny"))
    assert found is not None, "made for other weights: python -m m3score.calibration.vision m3-tiny"
    assert found.mean.shape[0] == 576
