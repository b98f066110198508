"""The small recurrent tokenizer behind the scorer `alit`: pictures to tokens, and back; see alit.py.

The idea is that of ALIT (Duggal et al., arXiv 2411.02393, ICLR 2025): one encoder is applied again and again
to the picture's patches and the tokens so far, every round adds some tokens, and the fewest tokens count
whose reconstruction error is under a threshold. The model is our own and small: it works on pixels where ALIT
works on the codes of a pretrained VQGAN, and its tokens are not quantised. So that little training goes far,
a token starts as some principal components of a thumbnail, to which the networks add corrections. The
authors' checkpoints are not read: they are pickles without a licence that need that VQGAN.

Knows tensors and files; calibration/training/alit.py trains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from m3score.common.errors import M3ScoreError, one_line
from m3score.models.hub import read_json
from m3score.scoring.scorers.alit_score import AlitScore, alit_folder, score_errors

KIND = "m3score-alit"


@dataclass(frozen=True)
class AlitSettings:
    """What an AlitModel is like."""

    image_size: int = 64
    """Pixels a side of the square that a picture is resized to."""
    patch_size: int = 8
    thumbnail_size: int = 32
    """Pixels a side of what the principal components are of."""
    width: int = 64
    heads: int = 4
    layers: int = 2
    """Of the encoder, which every round goes through, and as many of the decoder."""
    token_size: int = 8
    """Numbers that a token has when the decoder reads it."""
    tokens_per_round: int = 8
    rounds: int = 8
    threshold: float = 0.06
    """Mean absolute error per channel, of a range of 0 to 1, under which a picture counts as rebuilt."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise M3ScoreError(f"{name} must be more than 0, not {value}.")
        if self.image_size % self.patch_size or self.image_size % self.thumbnail_size:
            raise M3ScoreError("patch_size and thumbnail_size must divide image_size.")
        if self.width % self.heads or self.counts[-1] * self.token_size > 3 * self.thumbnail_size**2:
            raise M3ScoreError("heads must divide the width, and tokens hold no more than a thumbnail.")

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens after each round."""
        return tuple(self.tokens_per_round * (number + 1) for number in range(self.rounds))

    @property
    def patches(self) -> int:
        """Patches of the square."""
        return (self.image_size // self.patch_size) ** 2


class AlitModel(nn.Module):
    """The tokenizer: pictures to tokens in rounds, and tokens back to pictures."""

    def __init__(self, settings: AlitSettings) -> None:
        super().__init__()
        self.settings = settings
        width, patch = settings.width, settings.patch_size
        values = 3 * patch * patch
        self.unfold = nn.Unfold(patch, stride=patch)
        self.fold = nn.Fold(settings.image_size, patch, stride=patch)
        self.read_patch = nn.Linear(values, width)
        self.patch_places = nn.Parameter(torch.randn(settings.patches, width) * 0.5)
        self.new_tokens = nn.Parameter(torch.randn(settings.rounds, settings.tokens_per_round, width) * 0.5)
        self.encoder = _transformer(settings)
        self.squeeze = nn.Linear(width, settings.token_size)
        self.widen = nn.Linear(settings.token_size, width)
        self.token_places = nn.Parameter(torch.randn(settings.counts[-1], width) * 0.5)
        self.blank_places = nn.Parameter(torch.randn(settings.patches, width) * 0.5)
        self.decoder = _transformer(settings)
        self.write_patch = nn.Linear(width, values)
        for correction in (self.squeeze, self.write_patch):  # none at first
            nn.init.zeros_(correction.weight)
            nn.init.zeros_(correction.bias)
        numbers = settings.counts[-1] * settings.token_size
        self.register_buffer("components", torch.zeros(numbers, 3 * settings.thumbnail_size**2))
        self.register_buffer("spreads", torch.ones(numbers))

    components: torch.Tensor
    """(numbers in all tokens, 3 * thumbnail_size**2): orthonormal rows, the most telling first."""
    spreads: torch.Tensor
    """(numbers in all tokens,): standard deviations along them."""

    def start_from(self, images: torch.Tensor) -> None:
        """Take the principal components of pictures: float (n, 3, side, side) in [0, 1]."""
        from scipy.linalg import eigh

        seen = self._thumbnails(images)
        moments = (seen.T @ seen / len(seen)).double().numpy()
        wanted = len(self.spreads)
        values, rows = eigh(moments, subset_by_index=[len(moments) - wanted, len(moments) - 1])
        self.components.copy_(torch.from_numpy(rows.T[::-1].copy()))
        self.spreads.copy_(torch.from_numpy(values[::-1].copy()).clamp(min=1e-6).sqrt())

    def _thumbnails(self, images: torch.Tensor) -> torch.Tensor:
        step = self.settings.image_size // self.settings.thumbnail_size
        return functional.avg_pool2d(images - 0.5, step).flatten(1)

    def rounds(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """The tokens after each round: float (n, 3, side, side) in [0, 1] -> (n, tokens, token_size)."""
        patches = self.unfold(images - 0.5).transpose(1, 2)
        start = self._thumbnails(images) @ self.components.T / self.spreads
        start = start.unflatten(1, (-1, self.settings.token_size))
        state = self.read_patch(patches) + self.patch_places
        for new in self.new_tokens:
            state = torch.cat([state, new.expand(len(images), -1, -1)], dim=1)
            state = self.encoder(state)
            corrections = self.squeeze(state[:, self.settings.patches :])
            yield start[:, : corrections.shape[1]] + corrections

    def rebuild(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pictures of tokens: (n, any of `counts`, token_size) -> float (n, 3, side, side)."""
        blank = self.blank_places.expand(len(tokens), -1, -1)
        read = self.widen(tokens) + self.token_places[: tokens.shape[1]]
        patches = self.write_patch(self.decoder(torch.cat([blank, read], dim=1))[:, : blank.shape[1]])
        numbers = tokens.flatten(1)
        held = numbers.shape[1]
        side = self.settings.thumbnail_size
        thumbnails = (numbers * self.spreads[:held] @ self.components[:held]).unflatten(1, (3, side, side))
        size = (self.settings.image_size, self.settings.image_size)
        rough = functional.interpolate(thumbnails, size, mode="bilinear", align_corners=False)
        return rough + self.fold(patches.transpose(1, 2)) + 0.5

    @torch.no_grad()
    def errors(self, images: torch.Tensor) -> torch.Tensor:
        """Mean absolute errors, (n, 1 + rounds): of the plain mean colour, then after each round."""
        plain = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
        rebuilt = [plain, *(self.rebuild(tokens).clamp(0, 1) for tokens in self.rounds(images))]
        return torch.stack([(one - images).abs().mean(dim=(1, 2, 3)) for one in rebuilt], dim=1)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors, float16."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(half, folder / "model.safetensors")
        config = {"kind": KIND, **asdict(self.settings)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _transformer(settings: AlitSettings) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        settings.width,
        settings.heads,
        4 * settings.width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerEncoder(
        layer, settings.layers, norm=nn.LayerNorm(settings.width), enable_nested_tensor=False
    )


def as_pixels(image: Image.Image, side: int) -> np.ndarray:
    """An RGB picture resized to a square: uint8 (3, side, side)."""
    square = image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(square).transpose(2, 0, 1)


def score_images(model: AlitModel, images: Sequence[Image.Image], threshold: float) -> list[AlitScore]:
    """Each picture's score."""
    pixels = np.stack([as_pixels(image, model.settings.image_size) for image in images])
    place = next(model.parameters()).device
    errors = model.errors(torch.from_numpy(pixels).to(place).float() / 255).tolist()
    return [score_errors(one, model.settings.counts, threshold) for one in errors]


def load_alit(name: str | None, device: Any = "cpu") -> AlitModel:
    """A tokenizer that `AlitModel.save` wrote. M3ScoreError for anything else."""
    folder = alit_folder(name)
    config = read_json(folder / "config.json")
    if config.pop("kind", None) != KIND:
        raise M3ScoreError(
            f"{folder} holds no tokenizer of m3score's (the authors' ALIT checkpoints can't be read)."
        )
    known = {field.name for field in fields(AlitSettings)}
    try:
        model = AlitModel(AlitSettings(**{key: value for key, value in config.items() if key in known}))
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except M3ScoreError:
        raise
    except Exception as error:  # safetensors and torch raise a dozen kinds
        reason = one_line(error, 160)
        raise M3ScoreError(f"The tokenizer in {folder} can't be loaded: {reason}.") from error
    return model.to(device).eval()
