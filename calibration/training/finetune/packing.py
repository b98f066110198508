"""The M3 objective on conversations, with one pass of the vision tower and one of the language model.

The authors run the whole model once per scale. Here an image is encoded once, and copies of its conversation,
one per scale, form one sequence. Each copy has its own positions, from 0, and attends to itself only. The
loss is the same, and so is the language model's work per copy, but weights are fetched (and under FSDP
gathered) once instead of five times. A conversation without images is the same at every scale, and is
computed once.

transformers itself keeps attention within a copy: it starts a new sequence wherever positions restart at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from m3score.calibration.training.finetune.instructions import Example
from m3score.calibration.training.losses import answer_token_losses
from m3score.models.m3 import conversation
from m3score.models.m3.encoder import Embedder, EncodedImage
from m3score.models.m3.preprocess import Tiles


@dataclass(frozen=True, eq=False)
class Copy:
    """A conversation at one scale; one without images stands for all scales."""

    sequence: torch.Tensor
    """(length, hidden) input embeddings."""
    targets: torch.Tensor
    """(length,) int64: the id that each position predicts; NOT_SUPERVISED where none counts."""
    weights: torch.Tensor
    """(scales,) 1.0 for the scales that this copy counts for, else 0.0."""


def summed_losses(
    model: Embedder,
    examples: Sequence[Example],
    scales: Sequence[int],
    *,
    train_vision: bool,
    packed: bool = True,
) -> torch.Tensor:
    """(scales,) float32: summed cross-entropy over the answers' tokens per scale, differentiable.

    Args:
        model: the model.
        examples: conversations with the tiles of their images; may be empty.
        scales: visual tokens per grid.
        train_vision: let gradients reach the vision tower.
        packed: all scales in one pass of the language model; else one pass per scale, which is cheaper where
            attention costs more than the rest (small models on a CPU).

    Every trained part is used in every call, with a weight of zero if need be: processes that train together
    wait for one another's gradients.
    """
    encoded, unused = _encode(model, examples, train_vision)
    rows = [_copies(model, *pair, scales) for pair in zip(examples, encoded, strict=True)]
    rows = rows or [[_empty_copy(model, len(scales))]]
    groups = [rows]
    if not packed:
        deepest = max(map(len, rows))
        groups = [[[row[depth]] for row in rows if depth < len(row)] for depth in range(deepest)]
    elif model.hf_model.config.text_config._attn_implementation.startswith("flash"):
        groups = [[[copy for row in rows for copy in row]]]  # one row of any length, without padding
    return torch.stack([_forward(model, group) for group in groups]).sum(dim=0) + unused


def _encode(
    model: Embedder, examples: Sequence[Example], train_vision: bool
) -> tuple[list[list[EncodedImage]], torch.Tensor]:
    """Each example's encoded images, and a zero that connects unused parts to the loss."""
    tiles = [tile for example in examples for tile in example.tiles]
    side = model.config.image_size
    blank = Tiles(np.zeros((1, 3, side, side), dtype=np.float32), (side, side), None)
    done = model.project(tiles or [blank], train_vision=train_vision)
    newline = getattr(model.hf_model.model, "image_newline", None)
    unused = torch.zeros((), device=model.device)
    if newline is not None:
        unused = unused + 0.0 * newline.float().sum()
    if not tiles:
        unused = unused + 0.0 * done[0].features.float().sum()
    pending = iter(done if tiles else [])
    return [[next(pending) for _ in example.tiles] for example in examples], unused


def _copies(
    model: Embedder, example: Example, images: Sequence[EncodedImage], scales: Sequence[int]
) -> list[Copy]:
    everywhere = torch.ones(len(scales), device=model.device)
    if not images:
        return [_copy(model, example, images, scales[0], everywhere)]
    single = torch.eye(len(scales), device=model.device)
    return [_copy(model, example, images, scale, own) for scale, own in zip(scales, single, strict=True)]


def _copy(
    model: Embedder, example: Example, images: Sequence[EncodedImage], tokens: int, weights: torch.Tensor
) -> Copy:
    sequence = model.embed(example.ids, images, tokens, truncate=True)
    visual = [model.visual_token_count(image, tokens) for image in images]
    labels = conversation.expand_labels(example.ids, example.labels, visual)[: len(sequence)]
    targets = torch.tensor([*labels[1:], conversation.NOT_SUPERVISED], device=model.device)
    return Copy(sequence, targets, weights)


def _empty_copy(model: Embedder, scales: int) -> Copy:
    """One token that predicts nothing, for a process that has no readable record."""
    table = model.hf_model.get_input_embeddings()
    sequence = table(torch.zeros(1, dtype=torch.long, device=model.device))
    targets = torch.full((1,), conversation.NOT_SUPERVISED, device=model.device)
    return Copy(sequence, targets, torch.zeros(scales, device=model.device))


def _forward(model: Embedder, rows: Sequence[Sequence[Copy]]) -> torch.Tensor:
    """(scales,) summed losses of rows of copies: one batch of the language model."""
    embedded = pad_sequence([torch.cat([copy.sequence for copy in row]) for row in rows], batch_first=True)
    targets = pad_sequence(
        [torch.cat([copy.targets for copy in row]) for row in rows],
        batch_first=True,
        padding_value=conversation.NOT_SUPERVISED,
    )
    # All padding has position 0, so that each padded position is a sequence of its own.
    positions = pad_sequence(
        [torch.cat([torch.arange(len(copy.sequence), device=model.device) for copy in row]) for row in rows],
        batch_first=True,
    )
    alone = all(len(row) == 1 for row in rows)  # then padding comes after every supervised position
    hidden = model.hf_model.model.language_model(
        inputs_embeds=embedded, position_ids=None if alone else positions, use_cache=False
    ).last_hidden_state
    errors = answer_token_losses(model.hf_model, hidden, targets)
    weights = torch.cat([copy.weights.expand(int(_supervised(copy)), -1) for row in rows for copy in row])
    return (weights * errors[:, None]).sum(dim=0)


def _supervised(copy: Copy) -> torch.Tensor:
    return (copy.targets != conversation.NOT_SUPERVISED).sum()
