"""Pictures -> what the projector gets of them, as fast as the device can.

On a CPU the vision tower runs outside of transformers: the same sums from the same weights, but query, key
and value in one product, the scales of attention and normalisation folded into weights, nothing computed that
the projector does not read, and a thread for each picture instead of all threads for each product. On other
devices, and for towers that are no CLIP, transformers' own code runs. Knows the vision tower of transformers'
LLaVA models; knows neither projector nor language model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn import functional

from m3score.models.m3.preprocess import Tiles

if TYPE_CHECKING:
    from m3score.models.m3.encoder import Embedder

Part = TypeVar("Part")
Result = TypeVar("Result")

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_AT_ONCE = 2
"""Pictures that a thread takes through the tower together: few, so that they stay in its cache."""


@torch.inference_mode()
def patch_features(model: Embedder, images: Sequence[Tiles]) -> list[torch.Tensor]:
    """Features of the patches, without the class token, from the layer that the projector reads.

    Args:
        model: whose vision tower.
        images: preprocessed pictures, see `Embedder.tiles`.

    Returns:
        Per picture (grids, tokens, width) in the tower's type of numbers, on its device.
    """
    core, layer = model.hf_model.model, model.hf_model.config.vision_feature_layer
    pixels = torch.cat([torch.from_numpy(image.pixel_values) for image in images])
    pixels = pixels.to(model.device, core.vision_tower.dtype)
    fast = fast_tower(core.vision_tower, layer)
    if fast is not None:
        patches = fast(pixels)
    else:
        patches = core.vision_tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
    return list(patches.split([len(image.pixel_values) for image in images]))


def fast_tower(tower: Any, layer: int) -> FastTower | None:
    """The tower's fast copy, made at its first use; None where there is none for it."""
    if not _fits(tower, layer):
        return None
    known = getattr(tower, "_m3score_fast", None)
    if known is None or known.layer != layer:
        known = FastTower(tower, layer)
        object.__setattr__(tower, "_m3score_fast", known)  # not a part of it: it isn't saved, nor moved
    return known


def _fits(tower: Any, layer: Any) -> bool:
    config, weight = tower.config, next(tower.parameters())
    return (
        config.model_type == "clip_vision_model"
        and isinstance(layer, int)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and config.hidden_act in _ACTIVATIONS
        and config.attention_dropout == 0
        and not tower.training
    )


class _Linear:
    """A product with a weight and a bias, laid out for oneDNN where torch was built with it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, activation: str = "none") -> None:
        self._activation = activation
        self._bias = bias.detach().contiguous()
        self._weight = weight.detach().contiguous()
        self._packed = None
        if torch.backends.mkldnn.is_available() and activation in ("none", "gelu"):
            # torch's own compiler uses these; the plain product below does without.
            with contextlib.suppress(AttributeError, RuntimeError):
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, None)
                self(torch.zeros(1, self._weight.shape[1]))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(
                values, self._packed, self._bias, self._activation, [], "none"
            )
        return _ACTIVATIONS[self._activation](functional.linear(values, self._weight, self._bias))


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's products."""

    query_key_value: _Linear
    out: _Linear
    up: _Linear
    down: _Linear


class FastTower:
    """A CLIP vision tower for pictures on a CPU; equal to transformers' within rounding."""

    @torch.inference_mode()
    def __init__(self, tower: Any, layer: int) -> None:
        """
        Args:
            tower: transformers' CLIPVisionModel, float32, on the CPU.
            layer: index of the hidden states that are wanted, as transformers counts them.
        """
        inner = getattr(tower, "vision_model", tower)
        config, embeddings = tower.config, inner.embeddings
        wanted = layer % (config.num_hidden_layers + 1)
        self.layer = layer
        self._heads = config.num_attention_heads
        self._patch = config.patch_size
        self._epsilon = config.layer_norm_eps
        kernel = embeddings.patch_embedding
        self._embed = kernel.weight.flatten(1), kernel.bias
        self._places = embeddings.position_embedding.weight.detach()
        self._class = (embeddings.class_embedding + self._places[0]).detach()
        self._before = inner.pre_layrnorm.weight.detach(), inner.pre_layrnorm.bias.detach()
        self._layers = [
            _folded(block, self._heads, config.hidden_act) for block in inner.encoder.layers[:wanted]
        ]

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, side, side) -> (n, patches, width)"""
        return torch.cat(in_threads(self._forward, pixels.split(_AT_ONCE)))

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor) -> torch.Tensor:
        count, channels, height, width = pixels.shape
        size = self._patch
        rows, columns = height // size, width // size
        patches = pixels.reshape(count, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        states = torch.empty(count, 1 + rows * columns, len(self._class))
        states[:, 0] = self._class
        embedded = functional.linear(patches.reshape(count, rows * columns, -1), *self._embed)
        torch.add(embedded, self._places[1:], out=states[:, 1:])
        shape = states.shape[-1:]
        states = functional.layer_norm(states, shape, *self._before, self._epsilon)
        for layer in self._layers:
            normal = functional.layer_norm(states, shape, eps=self._epsilon)
            states += self._attend(layer, normal)
            normal = functional.layer_norm(states, shape, eps=self._epsilon)
            states += layer.down(layer.up(normal))
        return states[:, 1:]

    def _attend(self, layer: _Layer, normal: torch.Tensor) -> torch.Tensor:
        count, tokens, width = normal.shape
        mixed = layer.query_key_value(normal)
        query, key, value = mixed.view(count, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        return layer.out(found.transpose(1, 2).reshape(count, tokens, width))


def _folded(block: Any, heads: int, activation: str) -> _Layer:
    """A layer's weights with the normalisation's gain and shift, and the scale of attention, in them."""
    attention, mlp = block.self_attn, block.mlp
    scale = (attention.q_proj.out_features // heads) ** -0.5
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = torch.cat([projection.weight for projection in projections])
    bias = torch.cat([projection.bias for projection in projections])
    weight, bias = _after_norm(block.layer_norm1, weight, bias)
    weight[: len(weight) // 3] *= scale
    bias[: len(bias) // 3] *= scale
    return _Layer(
        _Linear(weight, bias),
        _Linear(attention.out_proj.weight, attention.out_proj.bias),
        _Linear(*_after_norm(block.layer_norm2, mlp.fc1.weight, mlp.fc1.bias), activation),
        _Linear(mlp.fc2.weight, mlp.fc2.bias),
    )


def _after_norm(norm: Any, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weight * norm.weight, bias + weight @ norm.bias


def in_threads(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """`work` on each part, on a CPU: a thread for each part instead of all threads for each product.

    Threads that share a product wait for one another; this way they meet at the end only. Within `work` torch
    computes with one thread.
    """
    threads = min(torch.get_num_threads(), len(parts))
    if threads <= 1:
        return [work(part) for part in parts]
    return list(_single_threads(threads).map(work, parts))


@cache
def _single_threads(count: int) -> ThreadPoolExecutor:
    """Threads each of which computes alone."""
    return ThreadPoolExecutor(count, "m3score-tower", initializer=torch.set_num_threads, initargs=(1,))


if hasattr(os, "register_at_fork"):  # threads do not live on in a forked process
    os.register_at_fork(after_in_child=_single_threads.cache_clear)
