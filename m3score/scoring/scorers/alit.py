"""Adaptive-length image tokens: how many tokens a small recurrent tokenizer needs to rebuild a picture.

Knows the errors after each round and what they say of complexity; the tokenizer is in alit_model.py.
Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.scoring.base import BatchScorer, ScorerOptions

AROUND = tuple(2 ** (step / 4) for step in range(-4, 5))
"""Complexity is a mean over so many times the threshold, from half of it to twice: so few pictures tie."""


@dataclass(frozen=True)
class AlitScore:
    """What the tokenizer makes of one picture."""

    tokens: int | None
    """The fewest tokens whose error is under the threshold; None: not even all of them."""
    error: float
    """The error with all tokens."""
    complexity: float
    """In [0, 1]: the share of all tokens after which the error falls under the threshold (`passed`), the mean
    over stricter and looser thresholds (`AROUND`). 0: the mean colour does; 1: all tokens don't."""


def score_errors(errors: Sequence[float], counts: Sequence[int], threshold: float) -> AlitScore:
    """Errors (of the plain mean colour, then after each round) as a score."""
    needed = next(
        (t for t, error in zip((counts[0], *counts), errors, strict=True) if error < threshold), None
    )
    complexity = fmean(passed(errors, counts, factor * threshold) for factor in AROUND)
    return AlitScore(needed, float(errors[-1]), complexity)


def passed(errors: Sequence[float], counts: Sequence[int], threshold: float) -> float:
    """The share of all tokens after which the error is under a threshold, between two rounds by a line.

    0: the plain mean colour's is; 1: with all tokens it isn't.
    """
    places = (0, *counts)
    first = next((k for k, error in enumerate(errors) if error < threshold), None)
    if not first:
        return 1.0 if first is None else 0.0
    before, after = errors[first - 1], errors[first]
    share = (before - threshold) / (before - after)
    return float((places[first - 1] + share * (places[first] - places[first - 1])) / counts[-1])


def alit_folder(name: str | None) -> Path:
    """The folder that is named, without a name assets/alit-tiny; M3ScoreError if there is no tokenizer."""
    folder = Path(str(resources.files("m3score"))) / "assets" / "alit-tiny" if name is None else Path(name)
    if not (folder / "config.json").is_file():
        missing = (
            "No tokenizer comes with this version" if name is None else f"There is no tokenizer in {name}"
        )
        raise M3ScoreError(
            f"{missing}: train one with python -m m3score.calibration.training.alit --out FOLDER, and give "
            "--alit-model FOLDER."
        )
    return folder


@dataclass(frozen=True)
class AlitOptions(ScorerOptions):
    """What the scorer `alit` may be told."""

    alit_model: str | None = None
    """A folder with a tokenizer; by default the bundled one."""
    alit_threshold: float | None = None
    """In place of the tokenizer's own; above 0 and at most 1."""
    device: str = "auto"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.alit_threshold is not None and not 0 < self.alit_threshold <= 1:
            raise M3ScoreError(f"--alit-threshold must be above 0 and at most 1, not {self.alit_threshold}.")
        alit_folder(self.alit_model)


class AlitScorer(BatchScorer):
    """Adaptive-length tokens: how many of them a picture takes."""

    Options = AlitOptions
    columns = ("alit_tokens", "alit_error")
    BATCH = 32

    def __init__(self, options: AlitOptions) -> None:
        super().__init__(options)
        from m3score.models.loading import resolve_device
        from m3score.scoring.scorers.alit_model import load_alit

        self._folder = alit_folder(options.alit_model)
        self._model = load_alit(options.alit_model, resolve_device(options.device))
        threshold = options.alit_threshold
        self._threshold = self._model.settings.threshold if threshold is None else threshold

    def identity(self) -> Mapping[str, Any]:
        """The tokenizer's weights and the threshold."""
        from m3score.models.fingerprint import fingerprint

        return {"--alit-model": fingerprint(self._folder), "--alit-threshold": self._threshold}

    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """One pass for all rounds."""
        from m3score.scoring.scorers.alit_model import score_images

        return [
            {"complexity": one.complexity, "alit_tokens": one.tokens, "alit_error": one.error, "error": None}
            for one in score_images(self._model, images, self._threshold)
        ]
