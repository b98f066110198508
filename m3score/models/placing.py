"""Where a model's weights go, and as what: device, dtype, quantisation; and what is said when that fails.

Placing, casting and quantising are done by transformers' from_pretrained. Knows no model in particular.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from m3score.common.errors import M3ScoreError, MissingExtraError, first_line
from m3score.models.torchvision import mend_torchvision

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_QUANTIZE = ("4bit", "8bit")
# Small beside the language model, and decisive for the quality of every scale; by the families' names.
_NEVER_QUANTIZED = [
    "lm_head",
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.visual",
    "model.vision_model",
    "model.connector",
    "model.embed_vision",
]


def options(device: str | torch.device, dtype: str | torch.dtype, quantize: str | None) -> dict[str, Any]:
    """Options of from_pretrained, of load_model's arguments. M3ScoreError for what can't be had."""
    place = resolve_device(device)
    made: dict[str, Any] = {"device_map": {"": place}, "dtype": resolve_dtype(dtype, place)}
    if quantize is not None:
        made["quantization_config"] = _quantization(quantize, made["dtype"])
    return made


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


def check_complete(folder: Path, report: Mapping[str, Any]) -> None:
    """M3ScoreError if transformers' loading report names tensors that the files lack."""
    if missing := sorted(report["missing_keys"]):
        raise M3ScoreError(f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} among them.")


@contextmanager
def one_sentence(folder: Path) -> Iterator[None]:
    """Turn what transformers raises about files and options into an M3ScoreError."""
    mend_torchvision()
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
