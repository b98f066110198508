"""What the errors after each round of a tokenizer say of a picture's complexity, and where tokenizers lie.

Knows numbers and folders; the tokenizer is in alit_model.py. Importing this imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean

from m3score.common.errors import M3ScoreError

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
