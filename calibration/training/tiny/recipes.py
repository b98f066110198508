"""Training recipes: TOML files that name the model and the stages it goes through."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from m3score.calibration.drawings.canvas import GRID
from m3score.common.errors import M3ScoreError
from m3score.models.m3.ladder import default_ladder

LADDER = default_ladder(GRID)
KINDS = ("symbols", "tower", "m3")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    kind: "symbols" (the decoder alone, on label grids), "tower" (the vision tower alone, on dense labels) or
    "m3" (the M3 objective on pictures).
    """

    name: str
    kind: str
    steps: int
    batch_size: int
    learning_rate: float
    scales: tuple[int, ...] = LADDER
    tune_tower: bool = True
    tune_decoder: bool = True
    tune_symbols: bool = True
    """Symbols stage: whether the symbols' embeddings may change; not once the tower speaks in them."""
    dense: dict[str, float] = field(default_factory=dict)
    """Weights of the dense labels' losses (apprentice.DENSE_SHARES), where not the usual ones."""
    dense_weight: float = 0.0
    """Weight of the dense labels' loss beside the M3 loss."""
    window: tuple[int, int] = (GRID, GRID)
    """Tower stage: rows and columns of the window that is shown; a part costs far less than a picture."""
    warmup: float = 0.03
    noise: float = 0.5
    shares: dict[str, float] = field(default_factory=dict)
    """Odds of the kinds of drawing (drawn.KINDS), where they differ from drawn.SHARES."""
    questions: int = 4
    """At most so many questions per image."""


@dataclass(frozen=True)
class Recipe:
    """A model to build, a data seed, and stages."""

    name: str
    seed: int
    stages: tuple[Stage, ...]
    model: dict[str, int] = field(default_factory=dict)
    bf16: bool = True
    workers: int = 1
    save_steps: int = 200

    def shortened(self, share: float) -> Recipe:
        """The same recipe with `share` of the steps of each stage (at least one)."""
        stages = tuple(replace(stage, steps=max(1, round(share * stage.steps))) for stage in self.stages)
        return replace(self, stages=stages)


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with m3score and build a model stage by stage."""
    folder = resources.files("m3score.calibration.training.tiny")
    return sorted(
        item.name.removesuffix(".toml")
        for item in folder.iterdir()
        if item.name.endswith(".toml") and "stages" in tomllib.loads(item.read_text())
    )


def load_recipe(name_or_path: str) -> Recipe:
    """Read a bundled recipe by name or a TOML file by path; M3ScoreError on anything it can't follow."""
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
    """Scales from a list such as "36,144"."""
    parts = [part.strip() for part in text.split(",")]
    if any(not part.isdecimal() or int(part) not in LADDER for part in parts):
        raise M3ScoreError(
            f"--scales {text}: allowed are {', '.join(map(str, LADDER))}, separated by commas."
        )
    return tuple(sorted({int(part) for part in parts}))


def _recipe(data: dict[str, Any], source: str) -> Recipe:
    stages = tuple(_stage(item, source) for item in data.pop("stages", []))
    if not stages:
        raise M3ScoreError(f"{source}: a recipe needs at least one [[stages]] table.")
    known = {item.name for item in fields(Recipe)}
    _only(set(data), known - {"stages"}, source)
    return Recipe(**{"name": Path(source).stem, "seed": 0, **data}, stages=stages)


def _stage(item: dict[str, Any], source: str) -> Stage:
    _only(set(item), {entry.name for entry in fields(Stage)}, source)
    missing = {"name", "kind", "steps", "batch_size", "learning_rate"} - set(item)
    if missing:
        raise M3ScoreError(f"{source}: a stage lacks {', '.join(sorted(missing))}.")
    if item["kind"] not in KINDS:
        raise M3ScoreError(f"{source}: stage kind {item['kind']!r} is unknown; allowed: {', '.join(KINDS)}.")
    scales = tuple(item.get("scales", LADDER))
    wrong = sorted(set(scales) - set(LADDER))
    if wrong or not scales:
        raise M3ScoreError(
            f"{source}: scales {wrong or '[]'} are not on the ladder {', '.join(map(str, LADDER))}."
        )
    window = tuple(item.get("window", (GRID, GRID)))
    if len(window) != 2 or not all(isinstance(side, int) and 0 < side <= GRID for side in window):
        raise M3ScoreError(f"{source}: window {window} needs rows and columns from 1 to {GRID}.")
    return Stage(**{**item, "scales": scales, "window": window})


def _only(given: set[str], known: set[str], source: str) -> None:
    unknown = sorted(given - known)
    if unknown:
        raise M3ScoreError(f"{source}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(known))}.")
