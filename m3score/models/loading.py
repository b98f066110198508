"""From a name to a model in memory: which kind it is, and who loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from m3score.common.errors import M3ScoreError
from m3score.models import hub, placing
from m3score.models.budgets.table import read_family
from m3score.models.m3.checkpoint import is_llava
from m3score.models.m3.model import M3Model, load_m3
from m3score.models.stock.model import load_stock

if TYPE_CHECKING:
    import torch

M3_TYPES = ("llava", "llava_next")
"""`model_type` of M3 models in transformers' format."""


@overload
def load_model(
    name_or_path: Literal["m3-tiny"],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    revision: str | None = None,
    rungs: None = None,
) -> M3Model: ...


@overload
def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    revision: str | None = None,
    rungs: Sequence[int] | None = None,
) -> Any: ...


def load_model(
    name_or_path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: Literal["4bit", "8bit"] | None = None,
    revision: str | None = None,
    rungs: Sequence[int] | None = None,
) -> Any:
    """Load a model: a Matryoshka multimodal model, or another vision language model of a known family.

    Args:
        name_or_path: a bundled model ("m3-tiny"), a folder or a hub id. A Matryoshka model is in the M3
            authors' format (such as "mucai/llava-v1.5-7b-m3") or in transformers' (model_type llava or
            llava_next, as `M3Model.save` writes it). Any other model's type belongs to a family of
            models/budgets, such as "Qwen/Qwen2.5-VL-3B-Instruct".
        device: "auto" (cuda, else mps, else cpu) or a torch device.
        dtype: "auto" (bfloat16 or float16 on a GPU, float32 on a CPU), "float32", "float16" or "bfloat16".
        quantize: "4bit" or "8bit": the language model's weights in fewer bits, through bitsandbytes.
        revision: branch, tag or commit on the hub.
        rungs: the ladder of budgets of visual tokens, for a model that is no Matryoshka model; by default
            its family's. A Matryoshka model has the ladder that it was trained with.

    Returns:
        An M3Model, or a StockModel.

    Raises:
        M3ScoreError: the model can't be loaded; the sentence names what is allowed.
        MissingExtraError: a package is needed that is not installed.
    """
    if str(name_or_path).startswith(("http://", "https://")):
        raise M3ScoreError(
            f"{name_or_path} is the address of a server: give it by --endpoint, or to m3score.load_endpoint."
        )
    options = placing.options(device, dtype, quantize)  # wrong ones are told of before a download
    folder = hub.locate(name_or_path, revision)
    config = hub.read_json(folder / "config.json")
    model_type = config.get("model_type")
    if is_llava(config) or model_type in M3_TYPES:
        if rungs is not None:
            raise M3ScoreError(f"{name_or_path} has the ladder that it was trained with: leave rungs out.")
        return load_m3(folder, options, str(name_or_path))
    family = read_family(folder, model_type)
    return load_stock(folder, family, options, str(name_or_path), rungs)
