"""From a folder to the parts of an M3Model.

Knows both on-disk formats, and the keys of transformers' own (checkpoint.py reads the authors').
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models import hub
from m3score.models.m3.checkpoint import LlavaCheckpoint, is_llava, read_tokenizer
from m3score.models.m3.config import M3Config
from m3score.models.placing import check_complete, no_progress_bars, one_sentence


@dataclass(frozen=True)
class ModelParts:
    """The parts of an M3Model."""

    hf_model: Any
    tokenizer: Any
    config: M3Config
    folder: Path
    """Where the weights were read."""


def load(folder: Path, options: Mapping[str, Any]) -> ModelParts:
    """Load a model's parts.

    Args:
        folder: with the model's files.
        options: from placing.options.
    """
    config = hub.read_json(folder / "config.json")
    with one_sentence(folder), no_progress_bars():
        if is_llava(config):
            checkpoint = LlavaCheckpoint(folder)
            m3_config = checkpoint.m3_config()
            hf_model, report = checkpoint.load(m3_config, **options)
        else:
            m3_config = read_m3_config(folder, config)
            hf_model, report = _load_transformers(folder, config, options)
        tokenizer = read_tokenizer(folder)
    check_complete(folder, report)
    return ModelParts(hf_model.eval(), tokenizer, m3_config, folder)


def read_m3_config(folder: Path, config: Mapping[str, Any]) -> M3Config:
    """The M3Config of a folder in transformers' format: its `m3score` entry, else LLaVA's own keys.

    M3ScoreError if the model is not a LLaVA.
    """
    model_type = config.get("model_type")
    if model_type not in ("llava", "llava_next"):
        raise M3ScoreError(
            f"{folder} holds a model of type {model_type!r}; an M3 model is llava_llama (the authors' "
            "format), llava or llava_next (transformers')."
        )
    vision = {"image_size": 336, "patch_size": 14} | dict(config.get("vision_config") or {})
    preprocessor = hub.read_json_if_there(folder / "preprocessor_config.json")
    entry = {
        "ladder": config.get("matryoshka_vis_token_scale"),
        "image_aspect_ratio": config.get("image_aspect_ratio"),
        "image_mean": preprocessor.get("image_mean"),
        "image_std": preprocessor.get("image_std"),
        "max_length": config.get("tokenizer_model_max_length"),
    }
    if model_type == "llava_next":  # transformers has (height, width)
        entry["image_grid_pinpoints"] = [
            (width, height) for height, width in config.get("image_grid_pinpoints", ())
        ]
        entry |= {"image_aspect_ratio": "anyres", "merge": "spatial_unpad", "max_length": 4096}
    given = {key: value for key, value in (config.get("m3score") or {}).items() if value is not None}
    return M3Config.from_dict(
        entry | given, image_size=int(vision["image_size"]), patch_size=int(vision["patch_size"])
    )


def _load_transformers(
    folder: Path, config: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

    unpadded = config["model_type"] == "llava_next"
    kind: Any = LlavaNextForConditionalGeneration if unpadded else LlavaForConditionalGeneration
    return kind.from_pretrained(folder, output_loading_info=True, local_files_only=True, **options)
