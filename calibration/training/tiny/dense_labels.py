"""Dense labels of a drawing as inputs of the language model, and as targets of the vision tower.

A decoder of a few million weights learns to read, count and compare far sooner from symbols than from
pictures. So every patch becomes the sum of the embeddings of what was drawn in it, and the vision tower is
then trained to produce the same sums. A squared error is smallest at the posterior mean, and pooling is
linear: a tower that is unsure produces the mixture, at any scale of the ladder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from m3score.calibration.drawings.canvas import (
    CENTRE_CLASSES,
    CHARS,
    COLOURED,
    COLOURS,
    GLYPH_CLASSES,
    LABEL_WIDTH,
    OBJECT_CLASSES,
    PIXEL_CHANNELS,
    SLOTS,
)
from m3score.calibration.training.tiny.model import CODE_WIDTH, place_code

_PARTS = (GLYPH_CLASSES, OBJECT_CLASSES, CENTRE_CLASSES, PIXEL_CHANNELS)


def split_labels(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(..., LABEL_WIDTH) -> glyph, object and centre coverage, and pixel statistics."""
    glyphs, objects, centres, pixels = labels.split(_PARTS, dim=-1)
    return glyphs, objects, centres, pixels


class SymbolEmbedding(nn.Module):
    """Dense labels (batch, patches, LABEL_WIDTH) uint8 -> embeddings (batch, patches, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.char = nn.Parameter(torch.randn(len(CHARS), width) * 0.6)
        self.slot = nn.Parameter(torch.randn(SLOTS, width) * 0.6)
        self.char_slot = nn.Parameter(torch.randn(GLYPH_CLASSES, width) * 0.6)
        self.objects = nn.Parameter(torch.randn(OBJECT_CLASSES, width) * 0.6)
        self.centres = nn.Parameter(torch.randn(CENTRE_CLASSES, width) * 0.6)
        self.pixels = nn.Parameter(torch.randn(PIXEL_CHANNELS, width) * 0.6)
        self.place = nn.Parameter(torch.randn(CODE_WIDTH, width) * 0.12)
        self.register_buffer("code", place_code(), persistent=False)

    @torch.no_grad()
    def start_as_words(self, embedding: torch.Tensor, tokenizer: Any) -> None:
        """Initialise from the words for what is drawn: a red star as "red" + "star", a letter as itself.

        Args:
            embedding: (vocabulary, width), the language model's own.
            tokenizer: the model's.
        """

        def word(text: str) -> torch.Tensor:
            return embedding[tokenizer.encode(text, add_special_tokens=False)].mean(0)

        coloured = torch.stack([word(f" {kind}") + word(f" {name}") for kind in COLOURED for name in COLOURS])
        self.objects.mul_(0.2)
        self.objects[: len(coloured)] += coloured
        self.centres.mul_(0.2).add_(coloured + torch.randn(embedding.shape[1]) * 0.5)
        self.char.copy_(torch.stack([word(char) for char in CHARS]))
        self.char_slot.mul_(0.3)

    def forward(
        self, labels: torch.Tensor, patches: torch.Tensor | None = None, noise: float = 0.0
    ) -> torch.Tensor:
        """Embed dense labels.

        Args:
            labels: (batch, patches, LABEL_WIDTH) uint8.
            patches: (batch, patches) int64: which patches of the grid the labels are of. None: all.
            noise: strength of confused characters and of Gaussian noise; 0 for none.
        """
        values = labels.float() / 255
        glyphs, objects, centres, pixels = split_labels(values)
        if noise:
            glyphs = self._with_misread(glyphs, noise)
        letters = (self.char[:, None] + self.slot[None, :]).flatten(0, 1) + self.char_slot
        table = torch.cat([letters, self.objects, self.centres, self.pixels])
        out = torch.cat([glyphs, objects, centres, pixels - 0.5], dim=-1) @ table
        code: Any = self.code
        out = out + (code if patches is None else code[patches]) @ self.place
        if noise:
            strength = noise * torch.rand(len(out), 1, 1, device=out.device)
            out = out + torch.randn_like(out) * strength * out.detach().pow(2).mean().sqrt()
        return out

    def _with_misread(self, glyphs: torch.Tensor, noise: float) -> torch.Tensor:
        """Replace the character in some patches, as a real tower would misread it."""
        table = glyphs.unflatten(-1, (len(CHARS), SLOTS))
        other = table.roll(int(torch.randint(1, len(CHARS), ())), dims=2)
        share = noise * 0.5 * torch.rand(len(glyphs), 1, 1, 1, device=glyphs.device)
        wrong = torch.rand(*glyphs.shape[:2], 1, 1, device=glyphs.device) < share
        return torch.where(wrong, other, table).flatten(-2)


class DenseHeads(nn.Module):
    """Linear heads on the tower's patch features that predict what is drawn in each patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.char = nn.Linear(width, len(CHARS) + 1)
        self.slot = nn.Linear(width, SLOTS + 1)
        self.glyph = nn.Linear(width, GLYPH_CLASSES + 1)
        self.objects = nn.Linear(width, OBJECT_CLASSES + 1)
        self.centres = nn.Linear(width, CENTRE_CLASSES + 1)
        self.pixels = nn.Linear(width, PIXEL_CHANNELS)

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses by name for features (batch, patches, width) and labels (batch, patches, LABEL_WIDTH)."""
        if labels.shape[-1] != LABEL_WIDTH:
            raise ValueError(f"Labels have {labels.shape[-1]} channels; {LABEL_WIDTH} are needed.")
        glyphs, objects, centres, pixels = split_labels(labels.float() / 255)
        table = glyphs.unflatten(-1, (len(CHARS), SLOTS))
        return {
            "char": soft_loss(self.char(features), table.sum(-1)),
            "slot": soft_loss(self.slot(features), table.sum(-2)),
            "glyph": soft_loss(self.glyph(features), glyphs),
            "objects": soft_loss(self.objects(features), objects),
            "centres": soft_loss(self.centres(features), centres),
            "pixels": functional.mse_loss(self.pixels(features).float(), pixels - 0.5),
        }


def patch_weights(labels: torch.Tensor) -> torch.Tensor:
    """(batch, patches): more weight for patches with characters or centres, since most are background."""
    glyphs, _, centres, _ = split_labels(labels)
    text = glyphs.float().sum(-1).clamp(max=255) / 255
    return 1 + 4 * text + 4 * (centres.amax(-1) > 0)


def soft_loss(logits: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against coverage; the uncovered rest is the last class. Covered patches weigh more."""
    covered = coverage.sum(-1, keepdim=True)
    coverage = coverage / covered.clamp(min=1)
    target = torch.cat([coverage, (1 - covered).clamp(min=0)], dim=-1)
    losses = -(target * functional.log_softmax(logits.float(), dim=-1)).sum(-1)
    weights = 1 + 4 * covered.squeeze(-1).clamp(max=1)
    return (losses * weights).sum() / weights.sum()
