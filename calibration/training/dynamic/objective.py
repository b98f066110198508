"""What the model learns from a batch: answers, and what is written in each visual token.

Answers alone teach a small model to read only after hundreds of thousands of pictures. So dense labels teach
the vision tower directly, and the language model learns at first from symbols too, as in tiny/: the labels'
own embeddings stand where the visual tokens will, and the tower is drawn to produce the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from m3score.calibration.drawings.boards import CLASSES
from m3score.calibration.drawings.canvas import CHARS, GLYPH_CLASSES, SLOTS
from m3score.calibration.training.dynamic.model import encode, place_ids
from m3score.calibration.training.dynamic.processing import BEFORE_IMAGE, TOKEN_SIDE
from m3score.calibration.training.losses import answer_token_losses
from m3score.calibration.training.tiny.dense_labels import soft_loss
from m3score.calibration.training.tiny.objective import allowed_attention
from m3score.models.m3.conversation import NOT_SUPERVISED

APART_UNTIL = 0.3
"""Progress until which the tower learns from pictures full of words alone, and the language model from
symbols alone."""
SYMBOLS_UNTIL = 0.5
"""Progress at which the language model has learnt from symbols for the last time."""
_SPARSE = 0.12
"""Letters cover small parts of a token; shares count for this much more than they cover."""


def shares(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense labels (batch, tokens, LABEL_WIDTH) uint8 -> what a token's letters are, and its objects.

    Letters' shares sum to nearly 1 however little of the token they cover.
    """
    glyphs, objects = (dense.float() / 255).split((GLYPH_CLASSES, len(CLASSES)), dim=-1)
    return glyphs / (glyphs.sum(-1, keepdim=True) + _SPARSE), objects


class Symbols(nn.Module):
    """Embeddings of dense labels: visual tokens of a tower that sees everything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.char = nn.Parameter(torch.randn(len(CHARS), width) * 0.5)
        self.slot = nn.Parameter(torch.randn(SLOTS, width) * 0.5)
        self.char_slot = nn.Parameter(torch.randn(GLYPH_CLASSES, width) * 0.15)
        self.objects = nn.Parameter(torch.randn(len(CLASSES), width) * 0.5)

    @torch.no_grad()
    def start_as_words(self, embedding: torch.Tensor, tokenizer: Any) -> None:
        """A letter starts as itself, a board as its colour, a key as the mean of its letters.

        Args:
            embedding: (vocabulary, width), the language model's own.
            tokenizer: the model's.
        """
        self.char.copy_(torch.stack([embedding[tokenizer.encode(char)].mean(0) for char in CHARS]))
        for name, row in zip(CLASSES, self.objects, strict=True):
            ids = tokenizer.encode(name if name.isupper() else f" {name}")
            row.mul_(0.5).add_(embedding[ids].mean(0) * len(ids) ** 0.5)

    def forward(self, dense: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
        """(batch, tokens, LABEL_WIDTH) uint8 -> (batch, tokens, width)."""
        glyphs, objects = shares(dense)
        letters = (self.char[:, None] + self.slot[None]).flatten(0, 1) + self.char_slot
        out = glyphs @ letters + objects @ self.objects
        return out + torch.randn_like(out) * noise


class Heads(nn.Module):
    """Linear heads on visual tokens, dropped after training: letters, their places in words, objects."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.char = nn.Linear(width, len(CHARS) + 1)
        self.slot = nn.Linear(width, SLOTS + 1)
        self.glyph = nn.Linear(width, GLYPH_CLASSES + 1)
        self.objects = nn.Linear(width, len(CLASSES) + 1)

    def forward(self, visual: torch.Tensor, dense: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses by name."""
        glyphs, objects = shares(dense)
        table = glyphs.unflatten(-1, (len(CHARS), SLOTS))
        return {
            "char": soft_loss(self.char(visual), table.sum(-1)),
            "slot": soft_loss(self.slot(visual), table.sum(-2)),
            "glyph": soft_loss(self.glyph(visual), glyphs),
            "objects": soft_loss(self.objects(visual), objects),
        }


class TrainingModule(nn.Module):
    """The model in training, with what is dropped afterwards."""

    before: torch.Tensor

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        width = model.config.text_config.hidden_size
        self.model, self.symbols, self.heads = model, Symbols(width), Heads(width)
        self.symbols.start_as_words(model.model.language_model.embed_tokens.weight, tokenizer)
        self.register_buffer("before", torch.tensor(tokenizer.encode(BEFORE_IMAGE)), persistent=False)

    def hidden(
        self, visual: torch.Tensor, text: dict[str, torch.Tensor], grid: tuple[int, int]
    ) -> torch.Tensor:
        """Last hidden states (batch, length, width) of packed questions about visual tokens."""
        language = self.model.model.language_model
        start = language.embed_tokens(self.before).expand(len(visual), -1, -1)
        embeds = torch.cat([start, visual.to(start.dtype), language.embed_tokens(text["ids"])], dim=1)
        ahead = start.shape[1] + visual.shape[1]
        states = language(
            inputs_embeds=embeds,
            attention_mask=allowed_attention(text["segments"], ahead),
            position_ids=place_ids(start.shape[1], grid, text["positions"]),
            use_cache=False,
        )
        return states.last_hidden_state[:, ahead:]

    def answers(
        self, visual: torch.Tensor, text: dict[str, torch.Tensor], grid: tuple[int, int]
    ) -> torch.Tensor:
        """Mean cross-entropy of the answers' tokens."""
        return answer_token_losses(self.model, self.hidden(visual, text, grid), text["labels"]).mean()

    def forward(
        self,
        pixels: torch.Tensor,
        dense: torch.Tensor,
        text: dict[str, torch.Tensor] | None,
        progress: float,
    ) -> dict[str, torch.Tensor]:
        """Losses by name; "loss" is their weighted sum.

        Args:
            pixels: (batch, height, width, 3) uint8.
            dense: (batch, tokens, LABEL_WIDTH) uint8.
            text: fields of a PackedText; None where nothing is asked.
            progress: of the training, from 0 to 1.
        """
        grid = pixels.shape[1] // TOKEN_SIDE, pixels.shape[2] // TOKEN_SIDE
        if text is not None and progress < APART_UNTIL:
            loss = self.answers(self.symbols(dense, noise=0.1), text, grid)
            return {"symbols": loss, "loss": loss}
        visual = encode(self.model.model.visual, pixels)
        losses = self.heads(visual, dense)
        target = self.symbols(dense).detach()
        written = dense[..., :GLYPH_CLASSES].amax(-1) > 0
        weights = 1 + 4 * written.float()
        errors = (visual.float() - target).pow(2).mean(-1)
        losses["match"] = (errors * weights).sum() / weights.sum() / target.pow(2).mean()
        early = max(0.0, 1 - progress / SYMBOLS_UNTIL)
        loss = losses["char"] + 0.5 * (losses["objects"] + losses["slot"] + losses["glyph"])
        loss = loss + (0.1 + 0.9 * early) * losses["match"]
        if text is not None:
            losses["answer"] = self.answers(visual, text, grid)
            loss = loss + losses["answer"]
        if early and text is not None:
            losses["symbols"] = self.answers(self.symbols(dense, noise=0.1), text, grid)
            loss = loss + min(1.0, 2 * early) * losses["symbols"]
        losses["loss"] = loss
        return losses

    @torch.no_grad()
    def right(self, pixels: torch.Tensor, text: dict[str, torch.Tensor]) -> list[list[bool]]:
        """Of each picture, whether each packed question's answer is what greedy decoding gives."""
        grid = pixels.shape[1] // TOKEN_SIDE, pixels.shape[2] // TOKEN_SIDE
        hidden = self.hidden(encode(self.model.model.visual, pixels), text, grid)
        guesses = self.model.lm_head(hidden).argmax(-1)
        wrong = (guesses != text["labels"]) & (text["labels"] != NOT_SUPERVISED)
        return [
            [not bool(row[segments == number].any()) for number in range(1, int(segments.max()) + 1)]
            for row, segments in zip(wrong.cpu(), text["segments"].cpu(), strict=True)
        ]
