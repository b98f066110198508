"""The network in training: a LLaVA, with symbol embeddings and dense heads that are dropped at the end.

Knows the losses of each kind of stage; knows no files and no optimiser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from m3score.calibration.training.tiny.dense_labels import DenseHeads, SymbolEmbedding, patch_weights
from m3score.calibration.training.tiny.objective import PackedText, m3_losses
from m3score.calibration.training.tiny.recipes import Stage
from m3score.models.m3.config import CLIP_MEAN, CLIP_STD

DENSE_WEIGHTS = {
    **{"char": 2.0, "slot": 1.0, "glyph": 1.0, "objects": 0.5, "centres": 0.5, "pixels": 1.0},
    "embedding": 2.0,
}
"""Default weights of the dense losses. Letters are the hardest to learn, so they weigh the most."""


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """(batch, height, width, 3) uint8 -> (batch, 3, height, width) float32, normalised as for CLIP."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def tower_features(tower: Any, pixels: torch.Tensor, patches: torch.Tensor | None = None) -> torch.Tensor:
    """Patch features (batch, patches, width) of pictures, or of windows of pictures.

    Args:
        tower: transformers' CLIP vision tower.
        pixels: (batch, height, width, 3) uint8.
        patches: (batch, patches) int64: which patches of the whole grid the windows show. None: all.
    """
    embeddings = tower.embeddings
    content = embeddings.patch_embedding(normalised(pixels)).flatten(2).transpose(1, 2)
    positions = embeddings.position_embedding.weight
    own = positions[None, 1:] if patches is None else positions[1:][patches]
    class_token = (embeddings.class_embedding + positions[0]).expand(len(pixels), 1, -1)
    embedded = torch.cat([class_token, content + own], dim=1)
    return tower.encoder(inputs_embeds=tower.pre_layrnorm(embedded)).last_hidden_state[:, 1:]


class TinyTrainingModule(nn.Module):
    """The LLaVA in training, with symbol embeddings and dense heads beside it."""

    def __init__(self, llava: Any, prefix: list[int], stage: Stage) -> None:
        """
        Args:
            llava: the model to train.
            prefix: token ids of the prompt before the image.
            stage: decides which parts are trained, and on which losses.
        """
        super().__init__()
        width = llava.config.text_config.hidden_size
        self.llava, self.stage = llava, stage
        self.symbols = SymbolEmbedding(width)
        self.heads = DenseHeads(llava.config.vision_config.hidden_size)
        self.register_buffer("prefix", torch.tensor(prefix), persistent=False)
        self.recent_losses: dict[str, float] = {}
        """Moving averages, for the log and the progress bar."""
        self._set_trainable()

    def _set_trainable(self) -> None:
        kind = self.stage.kind
        tower = [self.llava.model.vision_tower, self.heads]
        decoder = [self.llava.model.language_model, self.llava.lm_head]
        trained = {
            "symbols": decoder + [self.symbols] * self.stage.tune_symbols,
            "tower": [*tower, self.llava.model.multi_modal_projector],
            "m3": [self.llava.model.multi_modal_projector]
            + tower * self.stage.tune_tower
            + decoder * self.stage.tune_decoder,
        }[kind]
        self.requires_grad_(False)
        for part in trained:
            part.requires_grad_(True)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        losses = getattr(self, f"_{self.stage.kind}")(batch)
        for name, loss in losses.items():
            old = self.recent_losses.get(name)
            value = float(loss.detach())
            self.recent_losses[name] = value if old is None else 0.95 * old + 0.05 * value
        return {"loss": losses["loss"]}

    def _text(self, batch: dict[str, torch.Tensor]) -> PackedText:
        return PackedText(batch["ids"], batch["labels"], batch["positions"], batch["segments"])

    def _answer_losses(
        self, features: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The M3 loss on projected features, and its part of each scale."""
        prefix: Any = self.prefix
        per_scale = m3_losses(self.llava, prefix, features, self._text(batch), self.stage.scales)
        named = {f"scale_{tokens}": loss for tokens, loss in per_scale.items()}
        return {**named, "loss": torch.stack(list(per_scale.values())).mean()}

    def _dense_losses(
        self, features: torch.Tensor, projected: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Losses of the heads, and the distance of the projector's output from the symbol embeddings."""
        losses = self.heads(features, batch["dense"])
        weights = self.stage.dense or DENSE_WEIGHTS
        if self.stage.kind == "tower" and weights.get("embedding"):
            with torch.no_grad():
                target = self.symbols(batch["dense"], batch.get("patches"))
            per_patch = patch_weights(batch["dense"])
            errors = (projected.float() - target).pow(2).mean(-1)
            losses["embedding"] = (errors * per_patch).sum() / per_patch.sum() / target.pow(2).mean()
        weighted = [weights[name] * loss for name, loss in losses.items() if weights.get(name)]
        return {**losses, "loss": torch.stack(weighted).sum()}

    # -- one method per kind of stage, called by its name ------------------------------------------------

    def _symbols(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._answer_losses(self.symbols(batch["dense"], noise=self.stage.noise), batch)

    def _tower(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        features = tower_features(self.llava.model.vision_tower, batch["pixels"], batch.get("patches"))
        return self._dense_losses(features, self.llava.model.multi_modal_projector(features), batch)

    def _m3(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.set_grad_enabled(self.stage.tune_tower):
            features = tower_features(self.llava.model.vision_tower, batch["pixels"])
        projected = self.llava.model.multi_modal_projector(features)
        losses = self._answer_losses(projected, batch)
        if self.stage.dense_weight:
            dense = self._dense_losses(features, projected, batch)
            losses["dense"] = dense["loss"]
            losses["loss"] = losses["loss"] + self.stage.dense_weight * dense["loss"]
        return losses
