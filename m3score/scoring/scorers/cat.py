"""CAT's complexity: a picture is described, and a language model that doesn't see it rates the description.

After Shen et al., arXiv 2501.03120: ratings from 1 to 9, which stand for three compressions (8, 16 and 32 a
side). Prompts and ratings are in cat_prompts.py, the models in cat_models.py. Importing this imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.scoring.base import BatchScorer, ScorerOptions
from m3score.scoring.scorers.cat_prompts import read_prompts


@dataclass(frozen=True)
class CatOptions(ScorerOptions):
    """Options of the scorer `cat`."""

    cat_llm: str | None = None
    """Hub id or folder of the language model that rates descriptions; needed."""
    cat_prompts: str | None = None
    """A file of prompts in place of assets/cat.toml."""
    model: str = "m3-tiny"
    """The model that describes pictures."""
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    """Of `model`."""
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.cat_llm is None:
            raise M3ScoreError("the scorer cat needs --cat-llm: a hub id or folder of a chat model.")


class CatScorer(BatchScorer):
    """A language model rates a description of the picture."""

    Options = CatOptions
    columns = ("caption", "cat_score", "cat_compression")

    def __init__(self, options: CatOptions) -> None:
        super().__init__(options)
        from m3score.scoring.scorers import cat_models

        self._cat = cat_models.load(
            options.model,
            options.cat_llm or "",
            read_prompts(options.cat_prompts),
            device=options.device,
            dtype=options.dtype,
            revision=options.revision,
        )

    def identity(self) -> Mapping[str, Any]:
        """Both models and the prompts."""
        return self._cat.identity()

    def score(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Described, then rated."""
        return [rating.to_row() for rating in self._cat.rate(images)]
