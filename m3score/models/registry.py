"""A model by its name. Importing this module needs no torch; loading a model does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from m3score.models.m3.model import M3Model


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    revision: str | None = None,
) -> M3Model:
    """Load a Matryoshka multimodal model.

    Args:
        name_or_path: a bundled model ("m3-tiny"), a folder or a hub id; in the M3 authors' format (such as
            "mucai/llava-v1.5-7b-m3") or in transformers' (model_type llava or llava_next, as `M3Model.save`
            writes it).
        device: "auto" (cuda, else mps, else cpu) or a torch device.
        dtype: "auto" (bfloat16 or float16 on a GPU, float32 on a CPU), "float32", "float16" or "bfloat16".
        quantize: "4bit" or "8bit": the language model's weights in fewer bits, through bitsandbytes.
        revision: branch, tag or commit on the hub.

    Raises:
        M3ScoreError: the model can't be loaded; the sentence names what is allowed.
        MissingExtraError: `quantize` needs bitsandbytes, which is not installed.
    """
    from m3score.models import loading
    from m3score.models.m3.model import M3Model

    parts = loading.load(name_or_path, device=device, dtype=dtype, quantize=quantize, revision=revision)
    return M3Model(parts.hf_model, parts.tokenizer, parts.config, str(name_or_path), parts.folder)
