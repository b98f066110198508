"""Tiny random checkpoints of stock vision language models: real architectures and processors, a few weights.

Nothing is downloaded. The tokenizer reads bytes; the heads of attention are 32 wide, so that servers such as
vLLM can run the checkpoints too. The weights are random: answers mean nothing, but depend on every pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

STOP, PAD = "<|im_end|>", "<|pad|>"
_SPECIAL = (
    *(PAD, STOP, "<|im_start|>", "<bos>"),
    *("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|video|>", "<img>", "</img>", "<IMG_CONTEXT>", "<boi>", "<eoi>", "<boa>", "<eoa>", "<audio>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if not (loop.last and continue_final_message) %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADS: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
_TEXT: dict[str, Any] = {
    **_HEADS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "head_dim": 32,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


def make_checkpoint(family: str, folder: Path, *, seed: int = 0, **text: Any) -> Path:
    """Write the checkpoint of one family in FAMILIES into a folder.

    Args:
        family: which.
        folder: made if need be.
        seed: of the weights.
        text: changes to the configuration of the language model.
    """
    tokenizer = _tokenizer()
    vocabulary = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<bos>"),
        "eos_token_id": tokenizer.eos_token_id,
    }
    model, processor = FAMILIES[family](tokenizer, {**_TEXT, **vocabulary, **text})
    _randomise(model, seed)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that what is seen changes what is said."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                spread = 0.1 if "embed" in name else 1.6 / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=random) * spread)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens of all families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=STOP, bos_token="<bos>", padding_side="left"
    )


def _named(tokenizer: PreTrainedTokenizerFast, **names: str) -> PreTrainedTokenizerFast:
    """The tokenizer with tokens that a family's processor looks up by name."""
    tokenizer._set_model_specific_special_tokens(special_tokens=dict(names))
    tokenizer.init_kwargs["extra_special_tokens"] = names
    return tokenizer


def _ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, Any]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _template(image: str) -> str:
    return _TEMPLATE.replace("IMAGE", image)


Made = tuple[Any, Any]


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    ids = _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    config = hf.Qwen2_5_VLConfig(
        text_config={
            **text,
            **ids,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 1,
            "out_hidden_size": text["hidden_size"],
            "fullatt_block_indexes": [0],
        },
        **ids,
    )
    image = hf.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384})
    processor = hf.Qwen2_5_VLProcessor(
        image,
        tokenizer,
        hf.Qwen2VLVideoProcessor(),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    ids = _ids(
        tokenizer,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    config = hf.Qwen3VLConfig(
        text_config={
            **text,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 1,
            "out_hidden_size": text["hidden_size"],
            "deepstack_visual_indexes": [0],
        },
        **ids,
    )
    image = hf.Qwen2VLImageProcessor(
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        patch_size=16,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = hf.Qwen3VLProcessor(
        image,
        tokenizer,
        hf.Qwen3VLVideoProcessor(),
        chat_template=_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _internvl(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    tokenizer = _named(
        tokenizer,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    config = hf.InternVLConfig(
        text_config={**text, "model_type": "qwen2"},
        vision_config={**_TOWER, "image_size": [448, 448], "patch_size": [14, 14]},
        tie_word_embeddings=False,
        **_ids(tokenizer, image_token_id="<IMG_CONTEXT>"),
    )
    image = hf.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True)
    processor = hf.InternVLProcessor(
        image, tokenizer, hf.InternVLVideoProcessor(), chat_template=_template("<IMG_CONTEXT>\n")
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _smolvlm(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    config = hf.SmolVLMConfig(
        text_config={**text, "model_type": "llama"},
        vision_config={**_TOWER, "image_size": 512, "patch_size": 16},
        scale_factor=4,
        **{"pad_token_id": tokenizer.pad_token_id, **_ids(tokenizer, image_token_id="<image>")},
    )
    sampling: Any = {"video_sampling": {"fps": 1, "max_frames": 4, "video_size": {"longest_edge": 512}}}
    image = hf.SmolVLMImageProcessor(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    processor = hf.SmolVLMProcessor(
        image,
        tokenizer,
        hf.SmolVLMVideoProcessor(
            size={"longest_edge": 512},
            max_image_size={"longest_edge": 512},
            **sampling,
        ),
        image_seq_len=64,
        chat_template=_template("<image>"),
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def _llava_onevision(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    config = hf.LlavaOnevisionConfig(
        text_config={**text, "model_type": "qwen2"},
        vision_config={
            **_TOWER,
            "model_type": "siglip_vision_model",
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        **_ids(tokenizer, image_token_index="<image>", video_token_index="<video>"),
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=_template("<image>\n"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _gemma3(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    tokenizer = _named(tokenizer, boi_token="<boi>", eoi_token="<eoi>", image_token="<image>")
    config = hf.Gemma3Config(
        text_config={**text, "query_pre_attn_scalar": 32, "sliding_window": 64},
        vision_config={
            **_TOWER,
            "model_type": "siglip_vision_model",
            "image_size": 448,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=256,
        tie_word_embeddings=False,
        **_ids(tokenizer, image_token_index="<image>", boi_token_index="<boi>", eoi_token_index="<eoi>"),
    )
    image = hf.Gemma3ImageProcessor(size={"height": 448, "width": 448})
    processor = hf.Gemma3Processor(image, tokenizer, chat_template=_template("<boi>"), image_seq_length=256)
    return hf.Gemma3ForConditionalGeneration(config), processor


def _gemma4(tokenizer: PreTrainedTokenizerFast, text: Mapping[str, Any]) -> Made:
    import transformers as hf

    tokenizer = _named(
        tokenizer,
        image_token="<image>",
        boi_token="<boi>",
        eoi_token="<eoi>",
        audio_token="<audio>",
        boa_token="<boa>",
        eoa_token="<eoa>",
    )
    config = hf.Gemma4Config(
        text_config={
            **text,
            "vocab_size_per_layer_input": text["vocab_size"],
            "hidden_size_per_layer_input": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 64,
        },
        vision_config={
            **_TOWER,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "patch_size": 16,
            "position_embedding_size": 1024,
        },
        audio_config=None,
        tie_word_embeddings=False,
        **_ids(
            tokenizer,
            image_token_id="<image>",
            boi_token_id="<boi>",
            eoi_token_id="<eoi>",
            video_token_id="<|video|>",
            audio_token_id="<audio>",
            boa_token_id="<boa>",
            eoa_token_index="<eoa>",
        ),
    )
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(),
        tokenizer,
        hf.Gemma4VideoProcessor(),
        chat_template=_template("<image>"),
    )
    return hf.Gemma4ForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[PreTrainedTokenizerFast, Mapping[str, Any]], Made]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "llava_onevision": _llava_onevision,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
}
"""By the model_type of their configurations."""
