"""From a name to a model in memory: its files, its device, its dtype.

Knows both on-disk formats, and the keys of transformers' own (checkpoint.py reads the authors'). Placing,
casting and quantising are done by transformers' from_pretrained.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3score.common.errors import M3ScoreError, MissingExtraError, first_line
from m3score.models import hub
from m3score.models.m3.checkpoint import LlavaCheckpoint, is_llava, read_tokenizer
from m3score.models.m3.config import M3Config

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_QUANTIZE = ("4bit", "8bit")
# Small beside the language model, and decisive for the quality of every scale.
_NEVER_QUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]


@dataclass(frozen=True)
class ModelParts:
    """The parts of an M3Model."""

    hf_model: Any
    tokenizer: Any
    config: M3Config
    folder: Path
    """Where the weights were read."""


def load(
    name_or_path: str | Path,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    quantize: str | None,
    revision: str | None,
) -> ModelParts:
    """Load a model's parts; the arguments are those of m3score.load_model.

    Options are checked before anything is downloaded.
    """
    place = resolve_device(device)
    options: dict[str, Any] = {"device_map": {"": place}, "dtype": resolve_dtype(dtype, place)}
    if quantize is not None:
        options["quantization_config"] = _quantization(quantize, options["dtype"])
    folder = hub.locate(name_or_path, revision)
    config = hub.read_json(folder / "config.json")
    with _one_sentence(folder), no_progress_bars():
        if is_llava(config):
            checkpoint = LlavaCheckpoint(folder)
            m3_config = checkpoint.m3_config()
            hf_model, report = checkpoint.load(m3_config, **options)
        else:
            m3_config = read_m3_config(folder, config)
            hf_model, report = _load_transformers(folder, config, options)
        tokenizer = read_tokenizer(folder)
    if missing := sorted(report["missing_keys"]):
        raise M3ScoreError(f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} among them.")
    return ModelParts(hf_model.eval(), tokenizer, m3_config, folder)


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of that name; "auto" is cuda, else mps, else cpu. M3ScoreError if it is not available."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise M3ScoreError(f"{device!r} is no device: use auto, cpu, cuda, cuda:1 or mps.") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise M3ScoreError(
            f"Device {str(device)!r} isn't available here ({torch.cuda.device_count()} CUDA devices)."
        )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise M3ScoreError("Device 'mps' isn't available here.")
    if place.type not in ("cpu", "cuda", "mps"):
        raise M3ScoreError(f"{str(device)!r} is no device to run on: use auto, cpu, cuda, cuda:1 or mps.")
    return place


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto": float32 on a CPU, on a GPU bfloat16 if supported, else float16."""
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    if dtype == "auto":
        if device.type == "cpu":
            return torch.float32
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if dtype not in _DTYPES:
        raise M3ScoreError(f"{str(dtype)!r} is no dtype: use auto, {', '.join(_DTYPES)}.")
    return _DTYPES[str(dtype)]


def _quantization(quantize: str, dtype: torch.dtype) -> Any:
    if quantize not in _QUANTIZE:
        raise M3ScoreError(
            f"quantize is {quantize!r}; it must be one of {', '.join(map(repr, _QUANTIZE))}, or None."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(f"Loading in {quantize}", "quantize")
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_NEVER_QUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_NEVER_QUANTIZED,
    )


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
    folder: Path, config: Mapping[str, Any], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    from transformers import LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

    unpadded = config["model_type"] == "llava_next"
    kind: Any = LlavaNextForConditionalGeneration if unpadded else LlavaForConditionalGeneration
    return kind.from_pretrained(folder, output_loading_info=True, local_files_only=True, **options)


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Turn what transformers raises about files and options into an M3ScoreError."""
    try:
        yield
    except (M3ScoreError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError) as error:
        reason = first_line(error)
        raise M3ScoreError(f"The model in {folder} can't be loaded: {reason}") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch transformers' progress bars off, which it draws even for tiny models."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
