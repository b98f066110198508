"""The M3 objective: the plain mean over the ladder of each scale's answer-token cross-entropy.

Several questions about one image share its visual tokens in one sequence. Each question attends to the image
and to itself, not to other questions, and has the positions that it would have alone. So the loss is that of
asking one by one ("Matryoshka Multimodal Models", arXiv 2405.17430, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from m3score.calibration.training.losses import answer_token_losses
from m3score.models.m3.conversation import IMAGE_TAG, NOT_SUPERVISED, build_prompt
from m3score.models.m3.ladder import pool

CONVERSATION = "short"
"""The template (a name in conversation.CONVERSATIONS) of drawn questions."""
BEFORE_IMAGE = build_prompt("", CONVERSATION).split(IMAGE_TAG)[0]
"""The prompt before the image."""


def prompt_after_image(question: str) -> str:
    """The prompt after the image."""
    return build_prompt(question, CONVERSATION).split(IMAGE_TAG)[1]


@dataclass(frozen=True)
class PackedText:
    """A batch's text after the image: per row, questions and answers one after the other.

    All fields are (batch, length) int64.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    """The id that each position predicts; NOT_SUPERVISED where none counts."""
    positions: torch.Tensor
    """Counted from the end of the image."""
    segments: torch.Tensor
    """Number of the question, from 1; 0 for padding."""


def pack_questions(
    tokenizer: Any,
    conversations: Sequence[Sequence[tuple[str, str]]],
    prompt: Callable[[str], str] = prompt_after_image,
    gap: str = " ",
) -> PackedText:
    """Tokenise and pack the (question, answer) pairs of each image.

    Args:
        tokenizer: the model's.
        conversations: each image's pairs.
        prompt: what stands between the image and the answer, for a question.
        gap: what stands before an answer and is learnt with it.
    """
    rows = []
    for pairs in conversations:
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []
        segments: list[int] = []
        for number, (question, answer) in enumerate(pairs, start=1):
            asked = tokenizer.encode(prompt(question), add_special_tokens=False)
            said = [*tokenizer.encode(f"{gap}{answer}", add_special_tokens=False), tokenizer.eos_token_id]
            ids += asked + said
            labels += [NOT_SUPERVISED] * (len(asked) - 1) + said + [NOT_SUPERVISED]
            positions += range(len(asked) + len(said))
            segments += [number] * (len(asked) + len(said))
        rows.append((ids, labels, positions, segments))
    longest = max(len(row[0]) for row in rows)
    fills = (tokenizer.pad_token_id, NOT_SUPERVISED, 0, 0)
    columns = [
        torch.tensor([row[part] + [fill] * (longest - len(row[part])) for row in rows])
        for part, fill in enumerate(fills)
    ]
    return PackedText(*columns)


def allowed_attention(segments: torch.Tensor, before: int) -> torch.Tensor:
    """Where attention is allowed: bool (batch, 1, L, L), L = before + length."""
    batch, length = segments.shape
    total = before + length
    allowed = torch.ones(total, total, dtype=torch.bool, device=segments.device).tril().repeat(batch, 1, 1)
    allowed[:, before:, before:] &= segments[:, :, None] == segments[:, None, :]
    return allowed[:, None]


def _mask(segments: torch.Tensor, before: int) -> torch.Tensor:
    """The same as an additive mask: 0 where attention is allowed, else very low."""
    forbidden = ~allowed_attention(segments, before)
    return torch.zeros((), device=segments.device).masked_fill(forbidden, torch.finfo(torch.bfloat16).min)


def scale_loss(llava: Any, prefix: torch.Tensor, visual: torch.Tensor, text: PackedText) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens of a batch at one scale.

    Args:
        llava: a transformers LLaVA model.
        prefix: (P,) ids before the image.
        visual: (batch, n, width) pooled visual tokens.
        text: the packed questions and answers.
    """
    language, embed = llava.model.language_model, llava.model.language_model.embed_tokens
    batch, before = len(visual), len(prefix) + visual.shape[1]
    start = embed(prefix)[None].expand(batch, -1, -1)
    words = embed(text.ids)
    embeds = torch.cat([start.to(words.dtype), visual.to(words.dtype), words], dim=1)
    ahead = torch.arange(before, device=embeds.device)[None].expand(batch, -1)
    positions = torch.cat([ahead, text.positions + before], dim=1)
    hidden = language(
        inputs_embeds=embeds,
        attention_mask=_mask(text.segments, before),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, before:]
    return answer_token_losses(llava, hidden, text.labels).mean()


def m3_losses(
    llava: Any, prefix: torch.Tensor, features: torch.Tensor, text: PackedText, scales: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The loss at each scale; the M3 loss is their plain mean.

    Args:
        llava, prefix, text: as in `scale_loss`.
        features: (batch, grid * grid, width), projected, before pooling.
        scales: visual tokens per grid.
    """
    return {tokens: scale_loss(llava, prefix, pool(features, tokens), text) for tokens in scales}
