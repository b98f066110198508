"""Adaptive-length image tokens: how many tokens a small recurrent tokenizer needs to rebuild a picture.

The tokenizer is in alit_model.py, and what its errors say of complexity in alit_score.py. Importing this
imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.scoring.base import BatchScorer, ScorerOptions
from m3score.scoring.scorers.alit_score import alit_folder


@dataclass(frozen=True)
class AlitOptions(ScorerOptions):
    """Options of the scorer `alit`."""

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
        from m3score.models.placing import resolve_device
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
