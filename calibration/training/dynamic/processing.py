"""What goes into a Qwen2.5-VL: its tokenizer and chat template, made by code, and pictures cut into patches.

The patches are those of transformers' own processor (a test compares), which needs torchvision; this needs
torch alone. Knows no weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from m3score.calibration.drawings.boards import CLASSES, WORDINGS
from m3score.calibration.drawings.questions import SHORT
from m3score.calibration.training.tiny.module import normalised
from m3score.models.m3.config import CLIP_MEAN, CLIP_STD

PATCH, MERGE = 14, 2
TOKEN_SIDE = PATCH * MERGE
"""Pixels along the side of a visual token."""
RUNGS = (16, 64, 256, 1024)
"""Budgets of visual tokens that the model learns to answer with."""
FEWEST_TOKENS = 4
"""Smaller pictures are enlarged to so many tokens."""

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
BEFORE_IMAGE = "<|im_start|>user\n<|vision_start|>"
AFTER_IMAGE = "<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] in ('image', 'image_url') %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _corpus() -> Iterator[str]:
    """Questions and answers. Without words in capitals: these are spelt letter by letter."""
    filled = [name.lower() for name in CLASSES]
    for group in WORDINGS.values():
        for wording in group:
            for name in filled:
                yield wording.format(colour=name, key="") + SHORT
    yield "user\n assistant\n system\n"


def build_tokenizer(vocabulary: int = 480) -> Qwen2Tokenizer:
    """Qwen's tokenizer with a vocabulary of drawn questions: each capital and each digit is one token."""
    trained = Tokenizer(models.BPE(unk_token=None))
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_corpus(), trainer)
    state = json.loads(trained.to_str())["model"]
    merges: Any = [
        tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in state["merges"]
    ]
    return Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def fitted(size: tuple[int, int], budget: int) -> tuple[int, int]:
    """(width, height) that a picture is resized to for a budget of visual tokens: Qwen2-VL's rule.

    Sides are rounded to whole tokens; a picture beyond the budget is shrunk, one below FEWEST_TOKENS grows.
    """
    width, height = (max(1, round(side / TOKEN_SIDE)) for side in size)
    if width * height > budget:
        shrink = math.sqrt(size[0] * size[1] / (budget * TOKEN_SIDE**2))
        width, height = (max(1, math.floor(side / shrink / TOKEN_SIDE)) for side in size)
    elif width * height < FEWEST_TOKENS:
        grow = math.sqrt(FEWEST_TOKENS * TOKEN_SIDE**2 / (size[0] * size[1]))
        width, height = (math.ceil(side * grow / TOKEN_SIDE) for side in size)
    return width * TOKEN_SIDE, height * TOKEN_SIDE


def at_budget(image: Image.Image, budget: int) -> Image.Image:
    """The picture as the model sees it with a budget of visual tokens."""
    return image.resize(fitted(image.size, budget), Image.Resampling.BICUBIC)


def patchify(pixels: torch.Tensor) -> torch.Tensor:
    """Patches in Qwen2-VL's order: tokens in rows, and in each its 2x2 patches in rows.

    Args:
        pixels: (batch, height, width, 3) uint8, sides whole tokens.

    Returns:
        (batch, patches, 3 * 14 * 14) float32, normalised as for CLIP. (The real layout repeats each channel's
        patch, for the two frames that a video has.)
    """
    batch, height, width, _ = pixels.shape
    rows, columns = height // TOKEN_SIDE, width // TOKEN_SIDE
    blocks = normalised(pixels).reshape(batch, 3, rows, MERGE, PATCH, columns, MERGE, PATCH)
    return blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, -1, 3 * PATCH * PATCH)


def save_processor(tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write what AutoProcessor needs: the tokenizer and the image processor's settings."""
    tokenizer.save_pretrained(folder)
    area = TOKEN_SIDE**2
    settings = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": FEWEST_TOKENS * area, "longest_edge": RUNGS[-1] * area},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    video = settings | {"video_processor_type": "Qwen2VLVideoProcessor"}
    del video["image_processor_type"]
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
