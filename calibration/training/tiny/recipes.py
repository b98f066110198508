"""Recipes that build a model stage by stage: TOML files with the model's sizes and its [[stages]]."""

from __future__ import annotations

import tomllib
from dataclasses import field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from m3score.calibration.drawings.canvas import GRID
from m3score.common.errors import M3ScoreError
from m3score.common.schema import STRICT, List, checked
from m3score.models.m3.ladder import default_ladder

LADDER = default_ladder(GRID)


def _on_the_ladder(scales: tuple[int, ...]) -> tuple[int, ...]:
    if not scales or not set(scales) <= set(LADDER):
        raise ValueError(f"it must list some of {', '.join(map(str, LADDER))}")
    return scales


def _within_the_grid(window: tuple[int, ...]) -> tuple[int, ...]:
    if len(window) != 2 or not all(0 < side <= GRID for side in window):
        raise ValueError(f"it must list rows and columns, from 1 to {GRID}")
    return window


@dataclass(frozen=True, config=STRICT)
class Stage:
    """One stage of training."""

    name: str
    kind: Literal["symbols", "tower", "m3"]
    """"symbols": the decoder alone, on label grids; "tower": the vision tower alone, on dense labels; "m3":
    the M3 objective on pictures."""
    steps: int
    batch_size: int
    learning_rate: float
    scales: Annotated[List[int], AfterValidator(_on_the_ladder)] = LADDER
    tune_tower: bool = True
    tune_decoder: bool = True
    tune_symbols: bool = True
    """In a symbols stage: train the symbol embeddings too. Not once the tower has learnt to produce them."""
    dense: dict[str, float] = field(default_factory=dict)
    """Weights of the dense losses; module.DENSE_WEIGHTS if empty."""
    dense_weight: float = 0.0
    """Weight of the dense losses beside the M3 loss, in an m3 stage."""
    window: Annotated[List[int], AfterValidator(_within_the_grid)] = (GRID, GRID)
    """In a tower stage: rows and columns of the part of the grid that is shown. A part costs far less."""
    warmup: float = 0.03
    noise: float = 0.5
    shares: dict[str, float] = field(default_factory=dict)
    """Probability of each kind of drawing (drawing.KINDS); drawing.SHARES if empty."""
    questions: int = 4
    """Most questions per image."""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A model to build, the seed of its drawings, and the stages of its training."""

    name: str
    seed: int
    stages: List[Stage]
    model: dict[str, int] = field(default_factory=dict)
    """Sizes that differ from the bundled model's; see model.build_model."""
    bf16: bool = True
    workers: int = 1
    save_steps: int = 200

    def shortened(self, share: float) -> Recipe:
        """The same recipe with `share` of the steps of each stage (at least one)."""
        stages = tuple(replace(stage, steps=max(1, round(share * stage.steps))) for stage in self.stages)
        return replace(self, stages=stages)


def bundled_recipes() -> list[str]:
    """Names of the bundled recipes that build a model stage by stage."""
    folder = resources.files("m3score.calibration.training.tiny")
    return sorted(
        item.name.removesuffix(".toml")
        for item in folder.iterdir()
        if item.name.endswith(".toml") and "stages" in tomllib.loads(item.read_text())
    )


def load_recipe(name_or_path: str) -> Recipe:
    """Read a bundled recipe by its name or a TOML file by its path.

    M3ScoreError for anything that can't be followed.
    """
    path = Path(name_or_path)
    if not path.suffix and name_or_path in bundled_recipes():
        text = (resources.files("m3score.calibration.training.tiny") / f"{name_or_path}.toml").read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise M3ScoreError(
            f"{name_or_path}: no such recipe; give a .toml file or one of {', '.join(bundled_recipes())}."
        )
    try:
        return _recipe(tomllib.loads(text), name_or_path)
    except tomllib.TOMLDecodeError as error:
        raise M3ScoreError(f"{name_or_path}: not valid TOML ({error}).") from None


def parse_scales(text: str) -> tuple[int, ...]:
    """Scales from a list such as "36,144"; M3ScoreError for one that is not on the ladder."""
    parts = [part.strip() for part in text.split(",")]
    if any(not part.isdecimal() or int(part) not in LADDER for part in parts):
        raise M3ScoreError(
            f"--scales {text}: allowed are {', '.join(map(str, LADDER))}, separated by commas."
        )
    return tuple(sorted({int(part) for part in parts}))


def _recipe(data: dict[str, Any], source: str) -> Recipe:
    tables = data.pop("stages", None)
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise M3ScoreError(f"{source}: a recipe needs at least one [[stages]] table.")
    stages = tuple(
        checked(Stage, table, f"{source}, stage {number}") for number, table in enumerate(tables, start=1)
    )
    return checked(Recipe, {"name": Path(source).stem, "seed": 0, **data, "stages": stages}, source)
