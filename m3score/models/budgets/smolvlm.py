"""SmolVLM and Idefics3: a picture's longest side is scaled to a fixed length and cut into square tiles.

Small pictures are enlarged to that length too. With more than one tile there is a thumbnail beside them. Each
tile has the same number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from m3score.models.budgets.base import Size, Square, SteppedFamily, known, number, side_of

_LONGEST = 4096
"""Pixels that no side exceeds."""


@dataclass(frozen=True)
class SmolVLM(SteppedFamily):
    """SmolVLM, SmolVLM2 and Idefics3. A budget is that of a square picture; others have fewer tiles."""

    name: ClassVar[str] = "smolvlm"
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3")
    hints: ClassVar[tuple[str, ...]] = ("smolvlm", "idefics3", "granitedocling")

    tile_side: int = 512
    tile_tokens: int = 64
    longest_edge: int = 2048
    """Pixels of the longest side unless the processor is told otherwise."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See Family."""
        return cls(
            **known(
                tile_side=side_of(settings.get("max_image_size")),
                tile_tokens=number(settings, "image_seq_len"),
                longest_edge=side_of(settings.get("size")),
            )
        )

    def steps(self) -> dict[int, int]:
        """See SteppedFamily: pixels of the longest side."""
        return {
            self._tokens(tiles * tiles): tiles * self.tile_side
            for tiles in range(1, _LONGEST // self.tile_side + 1)
        }

    @property
    def default_rungs(self) -> tuple[int, ...]:
        """See Family."""
        longest = max(self.tile_side, min(self.longest_edge, _LONGEST))
        return tuple(budget for budget, side in self.steps().items() if side <= longest)

    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """See Family."""
        return {"size": {"longest_edge": self.knob(budget)}}

    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """See Family."""
        longest = self.longest_edge if budget is None else self.knob(budget)
        width, height = self._on_tiles(_scaled(size, longest))
        columns, rows = math.ceil(width / self.tile_side), math.ceil(height / self.tile_side)
        return self._tokens(columns * rows)

    def square(self) -> Square:
        """See Family."""
        return Square(self.tile_side, round(self.tile_tokens**0.5), self._tokens(1))

    def _tokens(self, tiles: int) -> int:
        return self.tile_tokens * (tiles + (tiles > 1))

    def _on_tiles(self, size: Size) -> Size:
        """A picture's size after its longer side, and then the other, was rounded up to whole tiles."""
        width, height = size
        shape, side = width / height, self.tile_side
        if width >= height:
            width = math.ceil(width / side) * side
            height = math.ceil(int(width / shape) / side) * side
        else:
            height = math.ceil(height / side) * side
            width = math.ceil(int(height * shape) / side) * side
        return width, height


def _scaled(size: Size, longest: int) -> Size:
    """A picture's size once its longest side has this length, and no side more than is allowed."""
    width, height = size
    shape = width / height
    if width >= height:
        width, height = longest, _even(int(longest / shape))
    else:
        width, height = _even(int(longest * shape)), longest
    width, height = max(width, 1), max(height, 1)
    shape = width / height
    if width >= height and width > _LONGEST:
        width, height = _LONGEST, int(_LONGEST / shape)
    elif height > width and height > _LONGEST:
        width, height = int(_LONGEST * shape), _LONGEST
    return max(width, 1), max(height, 1)


def _even(length: int) -> int:
    return length + length % 2
