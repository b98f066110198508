"""Recipes that fine-tune a LLaVA on instruction data: one TOML table of names and numbers, and [lora]."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the language model's linear layers instead of its weights."""

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05


@dataclass(frozen=True)
class Tuning:
    """One fine-tuning. Without another word it is the M3 paper's (section 4.1) for LLaVA-1.5."""

    name: str
    model: str
    """Starting weights: a hub id or folder, in LLaVA's format or transformers'."""
    data: str = ""
    """The JSON file of records."""
    image_folder: str = ""
    """Names of images count from here; by default the folder of `data`."""
    scales: tuple[int, ...] = ()
    """Visual tokens per grid; the model's whole ladder if empty, one for the scale-specific baseline."""
    epochs: int = 1
    batch_size: int = 128
    """Records per optimiser step, over all processes."""
    batch_per_device: int = 4
    """Records computed at once by a process; the rest of its share is accumulated."""
    learning_rate: float = 2e-5
    """Of the language model."""
    tower_learning_rate: float = 2e-5
    projector_learning_rate: float = 2e-5
    warmup: float = 0.03
    """Share of the steps over which learning rates rise, before they fall as a cosine."""
    weight_decay: float = 0.0
    tune_tower: bool = True
    tune_decoder: bool = True
    bf16: bool = True
    """Autocast, and the weights that are saved; the weights that learn are float32."""
    gradient_checkpointing: bool = True
    packed: bool = True
    """All scales in one pass of the language model; see packing.py."""
    attention: str = "sdpa"
    """transformers' name of an implementation, such as flash_attention_2."""
    workers: int = 4
    save_steps: int = 500
    log_steps: int = 1
    seed: int = 0
    share: float = 1.0
    """How much of the steps is taken, for trials."""
    lora: Lora | None = None

    def shortened(self, share: float) -> Tuning:
        """The same recipe with `share` of its steps (at least one)."""
        return dataclasses.replace(self, share=self.share * share)


def bundled_tunings() -> list[str]:
    """Names of the fine-tuning recipes that come with m3score."""
    folder = resources.files("m3score.calibration.training.finetune")
    names = (item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))
    return sorted(name for name in names if is_tuning(name))


def is_tuning(name_or_path: str) -> bool:
    """Whether a recipe fine-tunes a model, and doesn't build one stage by stage."""
    try:
        data = tomllib.loads(_text(name_or_path) or "")
    except tomllib.TOMLDecodeError:
        return False
    return isinstance(data.get("model"), str)


def load_tuning(name_or_path: str) -> Tuning:
    """Read a recipe; M3ScoreError on anything it can't follow."""
    text = _text(name_or_path)
    if text is None:
        raise M3ScoreError(f"{name_or_path}: no such recipe; known are {', '.join(bundled_tunings())}.")
    data = tomllib.loads(text)
    lora = data.pop("lora", None)
    given = {
        "name": Path(name_or_path).name.removesuffix(".toml"),
        "scales": tuple(data.pop("scales", ())),
        **data,
    }
    if lora is not None:
        given["lora"] = _filled(Lora, lora, f"{name_or_path}, [lora]")
    tuning = _filled(Tuning, given, name_or_path)
    check_tuning(tuning, name_or_path)
    return tuning


def check_tuning(tuning: Tuning, source: str) -> None:
    """M3ScoreError for numbers that make no sense."""
    for name in ("epochs", "batch_size", "batch_per_device", "save_steps", "log_steps"):
        if getattr(tuning, name) < 1:
            raise M3ScoreError(f"{source}: {name} is {getattr(tuning, name)}; it must be at least 1.")
    for name in ("learning_rate", "tower_learning_rate", "projector_learning_rate", "weight_decay"):
        if getattr(tuning, name) < 0:
            raise M3ScoreError(f"{source}: {name} is {getattr(tuning, name)}; it can't be negative.")
    if not 0 <= tuning.warmup < 1:
        raise M3ScoreError(f"{source}: warmup is {tuning.warmup}; it must be a share of the steps, 0 to 1.")


def _text(name_or_path: str) -> str | None:
    path = Path(name_or_path)
    bundled = resources.files("m3score.calibration.training.finetune") / f"{name_or_path}.toml"
    if "/" not in name_or_path and bundled.is_file():
        return bundled.read_text()
    return path.read_text() if path.is_file() else None


_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool}


def _filled(kind: Any, given: dict[str, Any], source: str) -> Any:
    known = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if unknown := sorted(set(given) - set(known)):
        raise M3ScoreError(f"{source}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(known))}.")
    for name, value in given.items():
        wanted = _KINDS.get(known[name])
        wrong_bool = isinstance(value, bool) and known[name] != "bool"
        if wanted and (wrong_bool or not isinstance(value, wanted)):
            raise M3ScoreError(f"{source}: {name} is {value!r}; it must be of type {known[name]}.")
    return kind(**given)
