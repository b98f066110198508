"""The model while it trains: a LLaVA with symbol embeddings and dense heads beside it, dropped at the end.

Knows the losses of each kind of stage; knows no files and no optimiser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from m3score.calibration.training.tiny.objective import PackedText, m3_losses
from m3score.calibration.training.tiny.recipes import Stage
from m3score.calibration.training.tiny.symbols import DenseHeads, Symbols, patch_weights
from m3score.models.m3.config import CLIP_MEAN, CLIP_STD

DENSE_SHARES = {
    **{"char": 2.0, "slot": 1.0, "glyph": 1.0, "objects": 0.5, "centres": 0.5, "pixels": 1.0},
    "embedding": 2.0,
}
"""Usual weights of the dense losses. Letters are the hardest to learn, and drown if the others weigh more."""


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """(batch, height, width, 3) uint8 -> (batch, 3, height, width) as CLIP takes it."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def tower_features(tower: Any, pixels: torch.Tensor, patches: torch.Tensor | None = None) -> torch.Tensor:
    """Patch features (batch, patches, width) of pictures, or of windows of them.

    patches: (batch, patches) int64, which patches of the grid the windows show.
    """
    parts = tower.embeddings
    seen = parts.patch_embedding(normalised(pixels)).flatten(2).transpose(1, 2)
    places = parts.position_embedding.weight
    here = places[None, 1:] if patches is None else places[1:][patches]
    first = (parts.class_embedding + places[0]).expand(len(pixels), 1, -1)
    embedded = torch.cat([first, seen + here], dim=1)
    return tower.encoder(inputs_embeds=tower.pre_layrnorm(embedded)).last_hidden_state[:, 1:]


class Apprentice(nn.Module):
    """The model in training with its crutches: symbol embeddings and dense heads, dropped at the end."""

    def __init__(self, llava: Any, prefix: list[int], stage: Stage) -> None:
        super().__init__()
        width = llava.config.text_config.hidden_size
        self.llava, self.stage = llava, stage
        self.symbols, self.heads = Symbols(width), DenseHeads(llava.config.vision_config.hidden_size)
        self.register_buffer("prefix", torch.tensor(prefix), persistent=False)
        self.seen: dict[str, float] = {}
        self._freeze()

    def _freeze(self) -> None:
        kind = self.stage.kind
        tower = [self.llava.model.vision_tower, self.heads]
        decoder = [self.llava.model.language_model, self.llava.lm_head]
        tuned = {
            "symbols": decoder + [self.symbols] * self.stage.tune_symbols,
            "tower": [*tower, self.llava.model.multi_modal_projector],
            "m3": [self.llava.model.multi_modal_projector]
            + tower * self.stage.tune_tower
            + decoder * self.stage.tune_decoder,
        }[kind]
        self.requires_grad_(False)
        for part in tuned:
            part.requires_grad_(True)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = getattr(self, f"_{self.stage.kind}")(batch)
        for name, loss in losses.items():
            old = self.seen.get(name)
            value = float(loss.detach())
            self.seen[name] = value if old is None else 0.95 * old + 0.05 * value
        return {"loss": losses["loss"]}

    def _text(self, batch: dict[str, torch.Tensor]) -> PackedText:
        return PackedText(batch["ids"], batch["labels"], batch["positions"], batch["segments"])

    def _answers(self, features: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefix: Any = self.prefix
        per_scale = m3_losses(self.llava, prefix, features, self._text(batch), self.stage.scales)
        named = {f"scale_{tokens}": loss for tokens, loss in per_scale.items()}
        return {**named, "loss": torch.stack(list(per_scale.values())).mean()}

    def _symbols(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._answers(self.symbols(batch["dense"], noise=self.stage.noise), batch)

    def _dense(
        self, features: torch.Tensor, projected: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses of the heads, and the distance of the projector's output from the symbols' embeddings."""
        losses = self.heads(features, batch["dense"])
        shares = self.stage.dense or DENSE_SHARES
        if self.stage.kind == "tower" and shares.get("embedding"):
            with torch.no_grad():
                target = self.symbols(batch["dense"], batch.get("patches"))
            weights = patch_weights(batch["dense"])
            errors = (projected.float() - target).pow(2).mean(-1)
            losses["embedding"] = (errors * weights).sum() / weights.sum() / target.pow(2).mean()
        weighed = [shares[name] * loss for name, loss in losses.items() if shares.get(name)]
        return {**losses, "loss": torch.stack(weighed).sum()}

    def _tower(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = tower_features(self.llava.model.vision_tower, batch["pixels"], batch.get("patches"))
        return self._dense(features, self.llava.model.multi_modal_projector(features), batch)

    def _m3(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.set_grad_enabled(self.stage.tune_tower):
            features = tower_features(self.llava.model.vision_tower, batch["pixels"])
        projected = self.llava.model.multi_modal_projector(features)
        losses = self._answers(projected, batch)
        if self.stage.dense_weight:
            dense = self._dense(features, projected, batch)
            losses["dense"] = dense["loss"]
            losses["loss"] = losses["loss"] + self.stage.dense_weight * dense["loss"]
        return losses
