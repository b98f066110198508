"""The bundled model before training: a small LLaVA in transformers' classes, and its tokenizer.

Four things are not initialised at random. The patch embedding is a whitened cosine transform, so that mean
brightness does not hide strokes. The heads of the vision tower start as shifts: each attends to the patch a
fixed step away, as in a convolutional network, so that the tower need not learn that neighbours matter. The
language model knows each patch's position, because the sine code that the tower adds is still there, pooled,
after the projector. And half of the language model's heads start as lookups: a word attends to visual tokens
with the same embedding, at any distance. Small models learn that only after a hundred thousand examples;
until then they guess the colour of the star.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from m3score.calibration.drawings.canvas import CHARS, GRID, PATCH, SIZE
from m3score.calibration.drawings.drawing import draw
from m3score.calibration.drawings.questions import SHORT, WORDINGS
from m3score.calibration.training.tiny.objective import prompt_after_image

CODE_WIDTH = 32
"""Sine and cosine of eight frequencies along x, and of eight along y."""

# Where the heads of each tower layer attend at first: steps (x, y) in patches. None stays random.
FIRST_LOOKS: tuple[tuple[tuple[int, int] | None, ...], ...] = (
    ((-1, 0), (1, 0), (0, -1), (0, 1)),
    ((-1, -1), (1, -1), (0, 2), None),
    ((-2, 0), (2, 0), (0, -2), (0, 1)),
    ((-3, 0), (3, 0), (0, 3), None),
    ((-5, 0), (2, 0), (0, -3), None),
)


def place_code() -> torch.Tensor:
    """(576, 32): sine code of each patch's column and row. Inner products depend on the distance only."""
    frequencies = 2 * np.pi * torch.arange(1, CODE_WIDTH // 4 + 1) / 32
    angles = torch.arange(GRID)[:, None] * frequencies[None, :]
    line = torch.cat([angles.cos(), angles.sin()], dim=1)
    columns = line[None].expand(GRID, GRID, -1)
    rows = line[:, None].expand(GRID, GRID, -1)
    return torch.cat([columns, rows], dim=-1).reshape(GRID * GRID, CODE_WIDTH).float()


def _shift(step: tuple[int, int]) -> torch.Tensor:
    """(32, 32): the matrix that turns a position's code into that of the position a step away."""
    quarter = CODE_WIDTH // 4
    frequencies = 2 * np.pi * torch.arange(1, quarter + 1) / 32
    out = torch.zeros(CODE_WIDTH, CODE_WIDTH)
    for axis, distance in enumerate(step):
        cos, sin = torch.diag((frequencies * distance).cos()), torch.diag((frequencies * distance).sin())
        block = torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)], dim=0)
        start = axis * 2 * quarter
        out[start : start + 2 * quarter, start : start + 2 * quarter] = block
    return out


def cosines(count: int) -> torch.Tensor:
    """(count, 3, 14, 14): the lowest cosine waves, most of brightness, some of two colour contrasts.

    Natural images have far more energy in slow waves than in fast ones; the weights compensate for that.
    """
    steps = (torch.arange(PATCH) + 0.5) * np.pi / PATCH
    waves = torch.stack([(steps * frequency).cos() for frequency in range(PATCH)])
    order = sorted(
        ((u, v) for u in range(PATCH) for v in range(PATCH)), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv)
    )
    coloured = count // 10
    mixes = [
        ((1.0, 1.0, 1.0), count - 2 * coloured),
        ((1.0, -1.0, 0.0), coloured),
        ((-0.5, -0.5, 1.0), coloured),
    ]
    out = []
    for mix, wanted in mixes:
        for u, v in order[:wanted]:
            wave = torch.tensor(mix)[:, None, None] * torch.outer(waves[u], waves[v])
            strength = 0.08 if u + v == 0 else 0.5 * min(1.0, 0.2 + (u + v) / 6)
            out.append(wave / wave.norm() * strength)
    return torch.stack(out)


@torch.no_grad()
def start_as_convolution(vision: Any, sharpness: float = 4.0) -> None:
    """Initialise a CLIP vision tower so that its heads attend to neighbouring patches.

    Sets the patch and position embeddings, and the query and key matrices.
    """
    width = vision.config.hidden_size
    heads = vision.config.num_attention_heads
    embeddings = vision.embeddings
    embeddings.patch_embedding.weight[:CODE_WIDTH] = 0
    embeddings.patch_embedding.weight[CODE_WIDTH:] = cosines(width - CODE_WIDTH)
    embeddings.position_embedding.weight.zero_()
    embeddings.position_embedding.weight[1:, :CODE_WIDTH] = place_code() * 1.5
    for layer, looks in zip(vision.encoder.layers, FIRST_LOOKS, strict=False):
        attention = layer.self_attn
        for head, step in enumerate(looks[:heads]):
            if step is None:
                continue
            rows = slice(head * width // heads, head * width // heads + CODE_WIDTH)
            everything = slice(head * width // heads, (head + 1) * width // heads)
            for matrix in (attention.q_proj, attention.k_proj):
                matrix.weight[everything] = 0
                matrix.bias[everything] = 0
            attention.q_proj.weight[rows, :CODE_WIDTH] = _shift(step) * sharpness
            attention.k_proj.weight[rows, :CODE_WIDTH] = torch.eye(CODE_WIDTH)


ROPE_THETA = 1e6
"""So large that RoPE hardly turns half of a head's dimensions over 600 tokens: these match content."""
EMBEDDING_SPREAD = 0.5


@torch.no_grad()
def start_as_lookup(llava: Any, heads: int = 2, sharpness: float = 0.12) -> None:
    """Initialise a LLaMA so that its first `heads` heads compare content, and all heads copy what they find.

    A head's queries and keys are the same random projection, in the dimensions that RoPE hardly turns, so
    that equal content attracts attention. Values pass unchanged. The output layer starts as the embeddings,
    so that the model can say what it has looked up.
    """
    config, language = llava.config.text_config, llava.model.language_model
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    language.embed_tokens.weight.normal_(0, EMBEDDING_SPREAD)
    llava.lm_head.weight.copy_(language.embed_tokens.weight * 0.12)
    quarter = size // 4
    still = torch.cat([torch.arange(quarter, 2 * quarter), torch.arange(3 * quarter, 4 * quarter)])
    for layer in language.layers:
        attention = layer.self_attn
        turn = torch.linalg.qr(torch.randn(width, width))[0]
        attention.v_proj.weight.copy_(turn)
        attention.o_proj.weight.copy_(turn.T * 0.5)
        for head in range(heads):
            compare = torch.randn(len(still), width) * sharpness
            for matrix in (attention.q_proj, attention.k_proj):
                matrix.weight[head * size : (head + 1) * size] *= 0.2
                matrix.weight[head * size + still] = compare


def _corpus() -> Iterator[str]:
    for index in range(3000):
        for item in draw(0, index).questions:
            yield f"{prompt_after_image(item.question)} {item.answer}"
    for group in WORDINGS.values():
        yield from group
    yield SHORT
    # A space and a letter are one token, so that all signs are spelt letter by letter.
    yield from (f" {char}" for char in CHARS for _ in range(50))


def build_tokenizer(vocabulary: int = 640) -> PreTrainedTokenizerFast:
    """A byte-level BPE for drawn questions: words are tokens, and each capital and digit is one."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    alone = pre_tokenizers.Split(Regex(r" ?[0-9]| ?[A-Z](?![a-z])"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [alone, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    # Not special, so that they are decoded; one token each, so that prompts are short.
    tokenizer.add_tokens([AddedToken("USER:", normalized=False), AddedToken("ASSISTANT:", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int, **sizes: int) -> LlavaForConditionalGeneration:
    """An untrained m3-tiny in float32: a CLIP-like tower (336 px, patches of 14) and a small LLaMA.

    Args:
        tokenizer: determines the vocabulary and the special tokens.
        seed: of the random weights.
        sizes: `width`, `heads`, `tower_layers` or `layers`, where they differ from the bundled model's.
    """
    torch.manual_seed(seed)
    width, heads = sizes.get("width", 192), sizes.get("heads", 4)
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=sizes.get("tower_layers", 5),
        num_attention_heads=heads,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 32 * 32,
        num_hidden_layers=sizes.get("layers", 4),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=int(tokenizer.vocab["<image>"]),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    start_as_convolution(model.model.vision_tower)
    start_as_lookup(model)
    return model
