"""The M3 objective: every scale's cross-entropy on the same conversations, and their plain mean.

Knows losses; knows no optimiser, no data set and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from m3score.common.errors import M3ScoreError
from m3score.images.decode import ImageSource
from m3score.models.m3 import conversation
from m3score.models.m3.encoder import Embedder, EncodedImage


@dataclass(frozen=True, eq=False)
class ScaleLosses:
    """The M3 training objective on a batch of conversations (arXiv 2405.17430, section 3)."""

    per_scale: dict[int, torch.Tensor]
    """Mean cross-entropy (nats) over the answers' tokens, end tokens included, per scale."""

    @property
    def average(self) -> torch.Tensor:
        """The plain mean over scales: what training minimises."""
        return torch.stack(list(self.per_scale.values())).mean()


def training_loss(
    model: Embedder,
    images: Sequence[ImageSource | EncodedImage],
    conversations: Sequence[Sequence[Mapping[str, str]]],
    scales: Sequence[int] | None = None,
    *,
    train_vision: bool = False,
) -> ScaleLosses:
    """The M3 objective on a batch, differentiable.

    Args:
        model: the model.
        images: one per conversation. Raw images are encoded here, with gradients in the projector; encoded
            ones are taken as they are.
        conversations: see conversation.training_example. One without an `<image>` gets it in front.
        scales: visual tokens per grid; the whole ladder unless given.
        train_vision: let gradients reach the vision tower. (The authors' code doesn't; their paper says that
            the tower was tuned.)

    Returns:
        The losses per scale. Sequences are cut at the model's longest length, as in the authors' training.
    """
    if len(images) != len(conversations) or not images:
        raise M3ScoreError("Training needs as many images as conversations, and at least one.")
    encoded = _encode(model, images, train_vision)
    examples = [
        conversation.training_example(turns, model.tokenizer, model.settings.conversation)
        for turns in conversations
    ]
    return ScaleLosses(
        {tokens: _scale_loss(model, encoded, examples, tokens) for tokens in scales or model.ladder}
    )


def _encode(model: Embedder, images: Sequence[Any], train_vision: bool) -> list[EncodedImage]:
    raw = {i: model.tiles(image) for i, image in enumerate(images) if not isinstance(image, EncodedImage)}
    done = model.project(list(raw.values()), train_vision=train_vision) if raw else []
    encoded = dict(zip(raw, done, strict=True))
    return [encoded.get(i, image) for i, image in enumerate(images)]


def _scale_loss(
    model: Embedder,
    encoded: Sequence[EncodedImage],
    examples: Sequence[tuple[list[int], list[int]]],
    tokens: int,
) -> torch.Tensor:
    """Mean cross-entropy at one scale over all answer tokens of the batch."""
    sequences, labels = [], []
    for image, (ids, own) in zip(encoded, examples, strict=True):
        sequence = model.embed(ids, [image], tokens, truncate=True)
        expanded = conversation.expand_labels(ids, own, [model.visual_token_count(image, tokens)])
        sequences.append(sequence)
        labels.append(torch.tensor(expanded[: len(sequence)], device=model.device))
    padded = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    targets = torch.nn.utils.rnn.pad_sequence(
        labels, batch_first=True, padding_value=conversation.NOT_SUPERVISED
    )
    counted = targets[:, 1:] != conversation.NOT_SUPERVISED
    if not bool(counted.any()):
        limit = model.settings.max_length
        raise M3ScoreError(f"Nothing is left to learn: no answer lies within the first {limit} tokens.")
    # Right padding stands behind all that counts, and attention is causal: no mask is needed.
    hidden = model.hf_model.model.language_model(inputs_embeds=padded, use_cache=False).last_hidden_state
    logits = model.hf_model.get_output_embeddings()(hidden[:, :-1][counted]).float()
    return torch.nn.functional.cross_entropy(logits, targets[:, 1:][counted])
