"""What a model's features look like over drawings: the yardstick that the `vision` complexity is measured by.

One pass of the vision tower over a fixed set of drawings gives, once per model, the features' mean at every
position, their covariance, how much they vary over pictures of nothing (one colour, a gradient), and a small
net that knows random texture. Knows features and files; knows neither what the numbers are for nor who draws.

The bundled model's statistics ship with the package; others are kept beside the hub's cache under the hash of
the model's weights.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional

from m3score.common.errors import M3ScoreError

VERSION = "1"
"""Raised when the statistics, or what they are worked out from, change."""
RIDGE = 1e-2
"""Added to the covariance, as a share of its largest eigenvalue."""
NOTHING_WEIGHT = 200.0
"""How much more the variation over pictures of nothing counts against a direction than that over drawings."""
TEXTURE_WEIGHT = 5.0
"""The same for variation within random textures."""
_MARGIN = 1.25
"""How much more variance than any picture of nothing among the reference a picture may have and still be
one."""
_BATCH = 8
_SAMPLED = 64
"""Tokens of each picture that the texture net learns from."""
_HIDDEN = 32
_STEPS = 600
_CERTAIN = 2.0
"""Log-odds, averaged over 3x3 tokens, at which a token is half taken for texture."""
_SLOPE = 2.0

Encode = Callable[[Sequence[Image.Image]], torch.Tensor]
"""Pictures -> what the projector gets of them: (grids, tokens, width), one or more grids a picture."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Pictures to measure a model by; each call draws the same ones again."""

    drawings: Callable[[], Iterable[Image.Image]]
    nothing: Callable[[], Iterable[Image.Image]]
    """One colour, or a gradient."""
    textures: Callable[[], Iterable[Image.Image]]
    """Random, and everywhere alike."""
    structured: Callable[[], Iterable[Image.Image]]
    """Busy, but no texture: what the texture net must not take for it."""


@dataclass(frozen=True, eq=False)
class Whitening:
    """The statistics of one model; `whiten` applies them."""

    mean: torch.Tensor
    """(tokens, width): the mean feature at each position."""
    transform: torch.Tensor
    """(width, width): centred features times this are whitened."""
    texture_in: torch.Tensor
    """(width + 1, 32): the texture net's first layer, bias last."""
    texture_out: torch.Tensor
    """(33,): its second layer, bias last."""
    nothing: torch.Tensor
    """(): the whitened variance up to which a picture shows nothing."""

    def to(self, device: torch.device) -> Whitening:
        """The same on another device."""
        return Whitening(**{name: value.to(device) for name, value in self.__dict__.items()})

    def whiten(self, features: torch.Tensor) -> torch.Tensor:
        """Centre and whiten (..., tokens, width) features, in float32."""
        return (features.float() - self.mean) @ self.transform

    def texture(self, whitened: torch.Tensor) -> torch.Tensor:
        """How surely each token of (n, tokens, width) lies in random texture: (n, tokens) in [0, 1]."""
        odds = _texture_odds(whitened, self.texture_in, self.texture_out)
        side = round(odds.shape[1] ** 0.5)
        around = functional.avg_pool2d(
            odds.reshape(-1, 1, side, side), 3, stride=1, padding=1, count_include_pad=False
        )
        return torch.sigmoid(_SLOPE * (around.reshape(odds.shape) - _CERTAIN))

    def save(self, path: Path, fingerprint: str) -> None:
        """Write a file; it is whole or not there at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partly = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        os.close(handle)
        try:
            tensors = {name: value.cpu().contiguous() for name, value in self.__dict__.items()}
            save_file(tensors, partly, {"version": VERSION, "model": fingerprint})
            os.replace(partly, path)
        except BaseException:
            Path(partly).unlink(missing_ok=True)
            raise


def load(path: Path, fingerprint: str) -> Whitening | None:
    """The statistics in a file; None where there are none, or another version's or another model's."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as stored:
            if stored.metadata() != {"version": VERSION, "model": fingerprint}:
                return None
            return Whitening(**{name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, TypeError):
        return None  # damaged: worked out anew


def bundled_path(name: str) -> Path:
    """Where the statistics of a bundled model are."""
    return Path(str(resources.files("m3score"))) / "assets" / f"{name}.vision.safetensors"


def cache_path(fingerprint: str) -> Path:
    """Where the statistics of another model are kept."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "m3score" / f"vision-{VERSION}-{fingerprint[:32]}.safetensors"


def whitening_of(
    name: str, fingerprint: str, encode: Encode, reference: Callable[[], Reference]
) -> Whitening:
    """A model's statistics: bundled, kept from an earlier time, or worked out now and kept.

    Args:
        name: what the model is called. fingerprint: hash of its weights: statistics of other weights are
        never used. encode: the model's vision tower. reference: called only if the statistics must be worked
        out, which takes some 1,800 passes of the tower.
    """
    kept = cache_path(fingerprint)
    for path in (bundled_path(name), kept):
        if (known := load(path, fingerprint)) is not None:
            return known
    measured = measure(encode, reference())
    with contextlib.suppress(OSError):  # a read-only home costs time at the next start, nothing else
        measured.save(kept, fingerprint)
    return measured


# ---- measuring ------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(encode: Encode, reference: Reference, seed: int = 0) -> Whitening:
    """Work out the statistics of a model.

    Args:
        encode: the model's vision tower.
        reference: what it looks at.
        seed: of the texture net and of the tokens it learns from.

    Raises M3ScoreError where the features are not finite, or all the same.
    """
    random = torch.Generator().manual_seed(seed)
    mean = _mean(_encoded(encode, reference.drawings()))
    drawings, drawn_tokens = _covariance(_encoded(encode, reference.drawings()), mean, random)
    nothing, _ = _covariance(_encoded(encode, reference.nothing()), mean, random, within=True)
    textures, texture_tokens = _covariance(_encoded(encode, reference.textures()), mean, random, within=True)
    transform = _transform(drawings, NOTHING_WEIGHT * nothing + TEXTURE_WEIGHT * textures)
    _, structured_tokens = _covariance(_encoded(encode, reference.structured()), mean, random)
    others = torch.cat([drawn_tokens, structured_tokens]) @ transform
    layers = _learn_texture(others, texture_tokens @ transform, seed)
    whitening = Whitening(mean.float(), transform, *layers, torch.zeros(()))
    largest = max(
        float(whitening.whiten(features).var(dim=1, correction=0).sum(-1).max())
        for features in _encoded(encode, reference.nothing())
    )
    return replace(whitening, nothing=torch.tensor(_MARGIN * largest))


def _encoded(encode: Encode, pictures: Iterable[Image.Image]) -> Iterator[torch.Tensor]:
    """(grids, tokens, width) in float64 on the CPU, a few pictures at a time."""
    source = iter(pictures)
    while batch := list(itertools.islice(source, _BATCH)):
        yield encode(batch).cpu().double()


def _mean(encoded: Iterable[torch.Tensor]) -> torch.Tensor:
    """(tokens, width): over all grids."""
    count, total = 0, None
    for features in encoded:
        count += len(features)
        total = features.sum(0) + (0 if total is None else total)
    if total is None:
        raise M3ScoreError("no drawings to measure the model by.")
    return total / count


def _covariance(
    encoded: Iterable[torch.Tensor], mean: torch.Tensor, random: torch.Generator, *, within: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(width, width) about the mean at each position, or with `within` also about each grid's own mean; and
    (n, width) of the centred tokens, a few of each grid, in float32."""
    count, products, kept = 0, torch.zeros(mean.shape[1], mean.shape[1], dtype=mean.dtype), []
    for features in encoded:
        centred = features - mean
        chosen = torch.randint(len(mean), (len(centred), _SAMPLED, 1), generator=random)
        kept.append(centred.take_along_dim(chosen, dim=1).flatten(0, 1).float())
        if within:
            centred = centred - centred.mean(dim=1, keepdim=True)
        flat = centred.flatten(0, 1)
        products += flat.T @ flat
        count += len(flat)
    return products / count, torch.cat(kept)


def _transform(covariance: torch.Tensor, nuisance: torch.Tensor) -> torch.Tensor:
    """(width, width) float32: what makes the sum of both, and a ridge, the unit matrix."""
    whole = covariance + nuisance
    if not torch.isfinite(whole).all():
        raise M3ScoreError("the vision tower's features are not finite: they have no complexity.")
    largest = torch.linalg.eigvalsh(covariance)[-1]
    if largest <= 0:
        raise M3ScoreError("the vision tower's features are all the same: they have no complexity.")
    ridge = RIDGE * largest * torch.eye(len(covariance), dtype=covariance.dtype)
    values, vectors = torch.linalg.eigh(whole + ridge)
    return (vectors / values.sqrt()).float()


# ---- texture --------------------------------------------------------------------------------------------


def _texture_odds(whitened: torch.Tensor, layer_in: torch.Tensor, layer_out: torch.Tensor) -> torch.Tensor:
    """(..., width) -> (...): log-odds that a token lies in random texture."""
    hidden = functional.gelu(whitened @ layer_in[:-1] + layer_in[-1])
    return hidden @ layer_out[:-1] + layer_out[-1]


@torch.inference_mode(False)
@torch.enable_grad()
def _learn_texture(
    drawn: torch.Tensor, texture: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The texture net's layers: one hidden layer, trained to tell tokens of textures from those of
    drawings."""
    random = torch.Generator().manual_seed(seed)
    drawn, texture = drawn.clone(), texture.clone()  # out of inference mode
    spread = drawn.std(dim=0).mean().clamp(min=1e-6)
    width = drawn.shape[1]
    layer_in = torch.randn(width + 1, _HIDDEN, generator=random) / (spread * width**0.5)
    layer_out = torch.randn(_HIDDEN + 1, generator=random) / _HIDDEN**0.5
    layers = [layer_in.requires_grad_(), layer_out.requires_grad_()]
    optimizer = torch.optim.AdamW(layers, lr=3e-3, weight_decay=1e-2)
    for _ in range(_STEPS):
        parts = [
            pool[torch.randint(len(pool), (size,), generator=random)]
            for pool, size in ((texture, 1024), (drawn, 2048))
        ]
        wanted = torch.cat([torch.ones(len(parts[0])), torch.zeros(len(parts[1]))])
        loss = functional.binary_cross_entropy_with_logits(_texture_odds(torch.cat(parts), *layers), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return layers[0].detach(), layers[1].detach()
