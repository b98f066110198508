"""The M3 authors' on-disk format: their configuration keys and tensor names, translated for transformers.

Knows files and names, not how to run a model. The language model, the projector and the vision tower are
transformers' own. This file builds their configuration, and passes every tensor to `from_pretrained` under
the name that it has in LLaVA models on the hub; `from_pretrained` places, casts and quantises them.

A checkpoint is a LLaMA config.json (model_type `llava_llama`) with extra keys. It does not hold the shape of
its vision tower: that comes from the CLIP model that `mm_vision_tower` names. The vision weights are inside
if `unfreeze_mm_vision_tower` is set (they were tuned); else they come from that CLIP model, too.
"""

from __future__ import annotations

import ast
import logging
import pickle
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from m3score.common.errors import M3ScoreError
from m3score.models import hub
from m3score.models.m3.config import M3Config

logger = logging.getLogger(__name__)

# Prefixes: theirs -> the hub's. The first that matches counts.
_VISION_INSIDE = "model.vision_tower.vision_tower."
_RENAMED = (
    (_VISION_INSIDE, "vision_tower."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", "image_newline"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
# Stored by older versions of transformers; newer ones compute them.
_BUFFERS = (".rotary_emb.inv_freq", ".embeddings.position_ids")

_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
    *("rope_theta", "rope_scaling", "attention_bias", "attention_dropout", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)

_VISION_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "projection_dim"),
)

# OpenAI's ViT-L/14 at 336 px, for use without the hub. M3Config's defaults are its preprocessing.
_VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


def is_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in the LLaVA authors' format, not transformers' own."""
    return config.get("model_type") == "llava_llama" or "mm_vision_tower" in config


class LlavaCheckpoint:
    """One folder in the authors' format, read lazily."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = hub.read_json(folder / "config.json")
        tower = self.config.get("mm_vision_tower") or self.config.get("vision_tower")
        if not tower:
            raise M3ScoreError(f"{folder / 'config.json'} names no mm_vision_tower.")
        self.clip = _Clip(str(tower), folder)
        self._check_shape()

    def _check_shape(self) -> None:
        for key, default in (("mm_projector_type", "mlp2x_gelu"), ("mm_vision_select_feature", "patch")):
            if (value := self.config.get(key) or default) != default:
                raise M3ScoreError(f"{key} is {value!r} in {self.folder}; only {default!r} is supported.")

    def m3_config(self) -> M3Config:
        """Ladder, image handling and limits. M3ScoreError for values that no M3 model has."""
        vision, preprocessor = self.clip.vision_config(), self.clip.preprocessor_config()
        entry = {
            "ladder": _literal(self.config.get("matryoshka_vis_token_scale")),
            "image_aspect_ratio": self.config.get("image_aspect_ratio") or "square",
            "image_grid_pinpoints": _literal(self.config.get("image_grid_pinpoints")),
            "merge": self.config.get("mm_patch_merge_type") or "flat",
            "image_mean": preprocessor.get("image_mean"),
            "image_std": preprocessor.get("image_std"),
            "conversation": "vicuna_v1",
            "max_length": self.config.get("tokenizer_model_max_length"),
        }
        if entry["ladder"] is None:
            logger.warning(
                "%s names no matryoshka_vis_token_scale: taken for an M3 model all the same.", self.folder
            )
        return M3Config.from_dict(entry, image_size=vision["image_size"], patch_size=vision["patch_size"])

    def load(self, m3_config: M3Config, **options: Any) -> tuple[Any, dict[str, Any]]:
        """transformers' model with this checkpoint's weights, and transformers' report of missing tensors.

        Args:
            m3_config: from `m3_config()`; becomes part of the model's configuration.
            options: for from_pretrained: dtype, device_map, quantization_config.
        """
        from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

        unpadded = m3_config.merge == "spatial_unpad"
        kind: Any = LlavaNextForConditionalGeneration if unpadded else LlavaForConditionalGeneration
        config = kind.config_class(**self._configuration(m3_config, unpadded))
        return kind.from_pretrained(
            None, config=config, state_dict=self.weights(), output_loading_info=True, **options
        )

    def _configuration(self, m3_config: M3Config, unpadded: bool) -> dict[str, Any]:
        text = {key: self.config[key] for key in _TEXT_KEYS if self.config.get(key) is not None}
        configuration = {
            "text_config": {"model_type": "llama", **text},
            "vision_config": {"model_type": "clip_vision_model", **self.clip.vision_config()},
            # Outside the vocabulary: images are inserted as features, never as token ids.
            "image_token_index": int(text.get("vocab_size", 32000)),
            "image_seq_length": m3_config.grid**2,
            "vision_feature_layer": int(self.config.get("mm_vision_select_layer", -2)),
            "vision_feature_select_strategy": "default",
            "m3score": m3_config.to_dict(),
        }
        if unpadded:  # transformers has (height, width)
            pinpoints = [[height, width] for width, height in m3_config.image_grid_pinpoints]
            configuration["image_grid_pinpoints"] = pinpoints
        return configuration

    def weights(self) -> dict[str, torch.Tensor]:
        """All tensors of the model, under their names in LLaVA models on the hub."""
        stored = read_weights(self.folder)
        # As in the authors' loader, vision weights inside count only if they were tuned.
        inside = bool(self.config.get("unfreeze_mm_vision_tower")) and any(
            name.startswith(_VISION_INSIDE) for name in stored
        )
        weights = {}
        for name, tensor in stored.items():
            if not name.endswith(_BUFFERS) and (inside or not name.startswith(_VISION_INSIDE)):
                weights[_renamed(name)] = tensor
        if not inside:
            weights.update(self.clip.weights())
        return weights


class _Clip:
    """The CLIP model that a checkpoint names: a folder near it, or a hub id."""

    def __init__(self, name: str, near: Path) -> None:
        self.name = name
        self._local = next((path for path in _candidates(name, near) if path.is_dir()), None)

    @cached_property
    def _small_files(self) -> Path | None:
        """The folder with the configurations, downloaded if need be; None: use the built-in ones."""
        if self._local is not None:
            return self._local
        try:
            return hub.fetch(self.name, ["config.json", "preprocessor_config.json"])
        except M3ScoreError as error:
            if "vit-large-patch14-336" not in self.name.lower():
                raise M3ScoreError(
                    f"The vision tower {self.name!r} is neither a folder beside the checkpoint nor to be "
                    f"had from the hub, and its shape is not built in. {error}"
                ) from error
            logger.warning(
                "%s is neither a folder beside the checkpoint nor to be had from the hub: "
                "using what is built in about the shape and preprocessing of CLIP ViT-L/14 at 336 px.",
                self.name,
            )
            return None

    def vision_config(self) -> dict[str, Any]:
        """Values for transformers' CLIPVisionConfig; patch and image size are always among them."""
        config = self._json("config.json")
        if not config:
            return dict(_VIT_L_14_336)
        vision = config.get("vision_config", config)  # of a whole CLIP model, or of its vision half
        given = {key: vision[key] for key in _VISION_KEYS if vision.get(key) is not None}
        return {"image_size": 224, "patch_size": 32, **given}  # CLIPVisionConfig's own defaults

    def preprocessor_config(self) -> dict[str, Any]:
        return self._json("preprocessor_config.json")

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors of the vision half; a LLaVA model does not use the text half."""
        stored = read_weights(self._local or hub.locate(self.name))
        return {
            f"vision_tower.{name}": tensor
            for name, tensor in stored.items()
            if name.startswith("vision_model.") and not name.endswith(_BUFFERS)
        }

    def _json(self, file: str) -> dict[str, Any]:
        return hub.read_json_if_there(self._small_files / file) if self._small_files else {}


def _candidates(name: str, near: Path) -> list[Path]:
    """A relative name is looked up in the folder above the checkpoint, then in the checkpoint itself."""
    return [near.absolute().parent / name, near / name, Path(name).expanduser()]


def _renamed(name: str) -> str:
    for theirs, ours in _RENAMED:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def _literal(value: Any) -> Any:
    """A list, which some configurations hold as text: "[(336, 672)]"."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise M3ScoreError(f"The configuration holds {value!r}, which is no list.") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder by their stored names, memory-mapped if the format allows it.

    Reads model.safetensors or pytorch_model.bin (unpickled with weights_only), one file or shards.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in _weight_files(folder):
        weights.update(_read_file(file))
    return weights


def _weight_files(folder: Path) -> list[Path]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            shards = sorted(set(hub.read_json(index).get("weight_map", {}).values()))
            if missing := [shard for shard in shards if not (folder / shard).is_file()]:
                raise M3ScoreError(f"{folder} lacks {', '.join(missing)}, which {index.name} lists.")
            return [folder / shard for shard in shards]
    raise M3ScoreError(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor their index."
    )


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return _unpickle(file)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise M3ScoreError(
            f"{file} is damaged, or holds more than tensors: {error}".splitlines()[0]
        ) from error


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # torch's format from before 1.6 can't be memory-mapped
        return torch.load(file, map_location="cpu", weights_only=True)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, as a fast one that adds a begin token.

    Reads tokenizer.json if there is one, else tokenizer.model with sentencepiece (transformers would need
    protobuf for it).
    """
    from transformers import AutoTokenizer, LlamaTokenizer

    if (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(folder)
    if not (folder / "tokenizer.model").is_file():
        raise M3ScoreError(f"{folder} has no tokenizer: neither tokenizer.json nor tokenizer.model.")
    vocabulary, merges = _sentencepiece_bpe(folder / "tokenizer.model")
    given = hub.read_json_if_there(folder / "tokenizer_config.json")
    special = {key: _text(given.get(key), default) for key, default in _SPECIAL_TOKENS.items()}
    return LlamaTokenizer(
        vocab=vocabulary,
        merges=merges,
        legacy=given.get("legacy") is not False,  # absent: True, as when these files were written
        add_bos_token=given.get("add_bos_token", True),
        add_eos_token=False,
        model_max_length=given.get("model_max_length", 2048),
        **special,
    )


_SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}


def _text(token: Any, default: str) -> str:
    """A special token, which is stored as text or as an object with flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return str(token or default)


def _sentencepiece_bpe(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a sentencepiece BPE model: a piece is a merge of any two pieces that form it.

    Pieces with better scores are merged earlier; ties go to the pieces with lower ids.
    """
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise M3ScoreError(f"{file} is no sentencepiece model: {error}") from error
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    ranked = []
    for index, piece in enumerate(pieces):
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        for left, right in halves:
            if left in vocabulary and right in vocabulary:
                order = -processor.get_score(index), vocabulary[left], vocabulary[right]
                ranked.append((order, (left, right)))
    return vocabulary, [merge for _, merge in sorted(ranked)]
