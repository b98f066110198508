"""Recipes for fine-tuning a LLaVA on instruction data: one TOML table of names and numbers, and [lora]."""

from __future__ import annotations

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from m3score.common.errors import M3ScoreError
from m3score.common.schema import STRICT, List, checked

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Lora:
    """Low-rank updates of the language model's linear layers, trained instead of its weights."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True, config=STRICT)
class FinetuneConfig:
    """One fine-tuning run. The defaults are those of the M3 paper (section 4.1) for LLaVA-1.5."""

    name: str
    model: str
    """Starting weights: a hub id or folder, in LLaVA's format or transformers'."""
    data: str = ""
    """The JSON file of records."""
    image_folder: str = ""
    """Image names are relative to this folder; by default the folder of `data`."""
    scales: List[int] = ()
    """Visual tokens per grid; empty: the model's whole ladder. One gives the scale-specific baseline."""
    epochs: Count = 1
    batch_size: Count = 128
    """Records per optimiser step, over all processes."""
    batch_per_device: Count = 4
    """Records that a process computes at once; the rest of its share is accumulated."""
    learning_rate: Rate = 2e-5
    """Of the language model."""
    tower_learning_rate: Rate = 2e-5
    projector_learning_rate: Rate = 2e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps over which the learning rates rise, before they fall as a cosine."""
    weight_decay: Rate = 0.0
    tune_tower: bool = True
    tune_decoder: bool = True
    bf16: bool = True
    """Autocast in bfloat16, and save in bfloat16; the weights being trained are float32."""
    gradient_checkpointing: bool = True
    packed: bool = True
    """All scales in one pass of the language model; see packing.py."""
    attention: str = "sdpa"
    """transformers' name of an attention implementation, such as flash_attention_2."""
    workers: int = 4
    save_steps: Count = 500
    log_steps: Count = 1
    seed: int = 0
    share: float = 1.0
    """Share of the steps to take, for trials."""
    lora: Lora | None = None

    def shortened(self, share: float) -> FinetuneConfig:
        """The same recipe with `share` of its steps (at least one)."""
        return dataclasses.replace(self, share=self.share * share)


def bundled_configs() -> list[str]:
    """Names of the fine-tuning recipes that come with m3score."""
    folder = resources.files("m3score.calibration.training.finetune")
    names = (item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))
    return sorted(name for name in names if is_finetune_config(name))


def is_finetune_config(name_or_path: str) -> bool:
    """Whether a recipe fine-tunes an existing model; other recipes build one stage by stage."""
    try:
        data = tomllib.loads(_text(name_or_path) or "")
    except tomllib.TOMLDecodeError:
        return False
    return isinstance(data.get("model"), str)


def load_config(name_or_path: str) -> FinetuneConfig:
    """Read a recipe by its bundled name or its path; M3ScoreError for anything that can't be followed."""
    text = _text(name_or_path)
    if text is None:
        raise M3ScoreError(f"{name_or_path}: no such recipe; known are {', '.join(bundled_configs())}.")
    try:
        values = {"name": Path(name_or_path).name.removesuffix(".toml"), **tomllib.loads(text)}
    except tomllib.TOMLDecodeError as error:
        raise M3ScoreError(f"{name_or_path}: not valid TOML ({error}).") from None
    if isinstance(values.get("lora"), dict):
        values["lora"] = checked(Lora, values["lora"], f"{name_or_path}, [lora]")
    return checked(FinetuneConfig, values, name_or_path)


def _text(name_or_path: str) -> str | None:
    path = Path(name_or_path)
    bundled = resources.files("m3score.calibration.training.finetune") / f"{name_or_path}.toml"
    if "/" not in name_or_path and bundled.is_file():
        return bundled.read_text()
    return path.read_text() if path.is_file() else None
