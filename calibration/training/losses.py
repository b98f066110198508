"""The cross-entropy of answer tokens: the part that every M3 training loss shares.

Knows hidden states and targets; does not know how sequences were packed or what a batch averages over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from m3score.models.m3.conversation import NOT_SUPERVISED


def answer_token_losses(llava: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats) of every supervised position, in row-major order: float32 (supervised,).

    Args:
        llava: a transformers LLaVA model; only its output embeddings are used.
        hidden: (batch, length, width), the language model's last hidden states.
        targets: (batch, length) int64, the id that each position predicts; NOT_SUPERVISED where none counts.
    """
    supervised = targets != NOT_SUPERVISED
    logits = llava.get_output_embeddings()(hidden[supervised]).float()
    return functional.cross_entropy(logits, targets[supervised], reduction="none")
