"""Pictures -> what the projector gets of them, as fast as the device can.

Knows the vision tower of transformers' LLaVA models; knows neither projector nor language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from m3score.models.m3.preprocess import Tiles

if TYPE_CHECKING:
    from m3score.models.m3.encoder import Embedder


@torch.inference_mode()
def vision_features(model: Embedder, images: Sequence[Tiles]) -> list[torch.Tensor]:
    """Features of the patches, without the class token, from the layer that the projector reads.

    Args:
        model: whose vision tower.
        images: preprocessed pictures, see `Embedder.tiles`.

    Returns:
        Per picture (grids, tokens, width) in the tower's type of numbers, on its device.
    """
    core = model.hf_model.model
    pixels = torch.cat([torch.from_numpy(image.pixel_values) for image in images])
    pixels = pixels.to(model.device, core.vision_tower.dtype)
    states = core.vision_tower(pixels, output_hidden_states=True).hidden_states
    patches = states[model.hf_model.config.vision_feature_layer][:, 1:]
    return list(patches.split([len(image.pixel_values) for image in images]))
