"""The untrained model, in transformers' Qwen2.5-VL classes, and a forward pass for batches of one size.

As in the bundled model (tiny/model.py) heads start as what small models learn late: the vision tower's look
at neighbouring patches, the language model's look things up by content.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from m3score.calibration.training.dynamic.processing import MERGE, PATCH, patchify
from m3score.calibration.training.tiny.model import FIRST_LOOKS, cosines, start_as_lookup

HEAD = 64
_TURNS = 5
"""How many of the rotary frequencies of an axis a head that looks at a neighbour uses: the fastest."""
_SHARPNESS = 5.0


def build_model(tokenizer: Any, seed: int, **sizes: int) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained model in float32, with full attention in its vision tower.

    Args:
        tokenizer: determines the vocabulary and the special tokens.
        seed: of the random weights.
        sizes: `width` and `heads` (of 64), or `tower_layers`, `layers`, where they differ.
    """
    torch.manual_seed(seed)
    heads = sizes.get("heads", 4)
    width = HEAD * heads
    depth = sizes.get("tower_layers", 6)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": 5 * width // 2,
            "num_heads": heads,
            "out_hidden_size": width,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 8 * PATCH,
            "fullatt_block_indexes": list(range(depth)),
            "initializer_range": 0.04,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 5 * width // 2,
            "num_hidden_layers": sizes.get("layers", 4),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 2048,
            "initializer_range": 0.06,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    model = Qwen2_5_VLForConditionalGeneration(config)
    start_as_neighbours(model.model.visual)
    start_as_lookup(model, heads=min(2, heads))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def start_as_neighbours(visual: Any) -> None:
    """Let heads of the vision tower attend to the patch a fixed step away, at any resolution.

    A rotary embedding turns a query's and a key's bias by their places, so that their product hangs on the
    distance alone: with phases that a step of (x, y) turns, it is highest at that step. The patch embedding
    starts as a whitened cosine transform.
    """
    embedding = visual.patch_embed.proj.weight
    waves = cosines(len(embedding))
    embedding[: len(waves)] = waves[:, :, None] / embedding.shape[2]
    speeds = visual.rotary_pos_emb.inv_freq
    quarter = len(speeds)
    for block, looks in zip(visual.blocks, FIRST_LOOKS, strict=False):
        attention = block.attn
        query, key, _ = attention.qkv.bias.view(3, attention.num_heads, 4 * quarter)
        for head, step in enumerate(looks[: attention.num_heads]):
            if step is None:
                continue
            for axis, distance in ((0, step[1]), (1, step[0])):
                fast = slice(axis * quarter, axis * quarter + _TURNS)
                slow = slice((axis + 2) * quarter, (axis + 2) * quarter + _TURNS)
                key[head, fast] = _SHARPNESS
                query[head, fast] = _SHARPNESS * (speeds[:_TURNS] * distance).cos()
                query[head, slow] = _SHARPNESS * (speeds[:_TURNS] * distance).sin()


def _patch_places(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """(patches, 2): row and column of each patch, in patchify's order; for a grid of tokens."""
    y, x = torch.meshgrid(
        torch.arange(MERGE * rows, device=device), torch.arange(MERGE * columns, device=device), indexing="ij"
    )
    order = [part.reshape(rows, MERGE, columns, MERGE).transpose(1, 2).flatten() for part in (y, x)]
    return torch.stack(order, dim=-1)


def encode(visual: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Visual tokens of pictures of one size: what the vision tower makes of each, all at once.

    Args:
        visual: a Qwen2.5-VL vision tower whose layers all have full attention.
        pixels: (batch, height, width, 3) uint8, sides whole tokens.

    Returns:
        (batch, tokens, width of the language model).
    """
    kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames show the same picture
    hidden = functional.linear(patchify(pixels), kernel)
    rows, columns = (side // (MERGE * PATCH) for side in pixels.shape[1:3])
    turns = visual.rotary_pos_emb(hidden, _patch_places(rows, columns, pixels.device))
    for block in visual.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), turns)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden).view(len(pixels), rows * columns, -1)


def _attend(attention: Any, hidden: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    batch, patches, _ = hidden.shape
    query, key, value = attention.qkv(hidden).view(batch, patches, 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, *turns)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value)
    return attention.proj(out.transpose(1, 2).flatten(2))


def place_ids(before: int, grid: tuple[int, int], text: torch.Tensor) -> torch.Tensor:
    """Rotary places of a prompt: (3, batch, before + tokens + length), for time, row and column.

    Args:
        before: tokens ahead of the image.
        grid: (rows, columns) of visual tokens.
        text: (batch, length) places of what comes after the image, counted from its end.
    """
    rows, columns = grid
    device = text.device
    y, x = torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )
    image = torch.stack([torch.zeros_like(y), y, x]).flatten(1) + before
    ahead = torch.cat([torch.arange(before, device=device).expand(3, -1), image], dim=1)
    after = text + before + max(grid)
    return torch.cat([ahead[:, None].expand(-1, len(text), -1), after.expand(3, -1, -1)], dim=2)


def save_model(model: Any, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the weights in files below 10 MB, and the configuration."""
    state = {name: value.detach().to("cpu", dtype) for name, value in model.state_dict().items()}
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict=state, max_shard_size="10MB")
