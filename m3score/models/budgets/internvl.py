"""InternVL: a picture is stretched to a grid of square tiles, with a thumbnail beside them.

Of the grids with at most so many tiles the one whose shape is nearest to the picture's is taken; of equally
near ones a larger one, unless it has over twice the picture's pixels. One tile has no thumbnail beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from m3score.models.budgets.base import Size, Square, SteppedFamily, known, number, side_of

_LARGEST = 40
_PATCHES = (1, 4, 6)


@dataclass(frozen=True)
class InternVL(SteppedFamily):
    """InternVL 2.5 to 3.5 in transformers' format (names that end in -hf)."""

    name: ClassVar[str] = "internvl"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    hints: ClassVar[tuple[str, ...]] = ("internvl",)

    tile_side: int = 448
    tile_tokens: int = 256
    max_patches: int = 12
    """Tiles, without the thumbnail, unless the processor is told otherwise."""
    min_patches: int = 1

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See Family."""
        return cls(
            **known(
                tile_side=side_of(settings.get("size")),
                tile_tokens=number(settings, "image_seq_length"),
                max_patches=number(settings, "max_patches"),
                min_patches=number(settings, "min_patches"),
            )
        )

    def steps(self) -> dict[int, int]:
        """See SteppedFamily: numbers of tiles."""
        return {
            self._tokens(patches): patches
            for patches in range(self.min_patches, max(_LARGEST, self.max_patches) + 1)
        }

    @property
    def default_rungs(self) -> tuple[int, ...]:
        """See Family."""
        patches = [n for n in _PATCHES if self.min_patches <= n < self.max_patches]
        return tuple(self._tokens(n) for n in (*patches, self.max_patches))

    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """See Family."""
        return {"max_patches": self.knob(budget)}

    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """See Family."""
        columns, rows = self._tiles(size, budget)
        return self._tokens(columns * rows)

    def client_size(self, size: Size, budget: int) -> Size:
        """See Family: the grid itself, stretched as the processor would; a server finds the same grid."""
        columns, rows = self._tiles(size, budget)
        return columns * self.tile_side, rows * self.tile_side

    def square(self) -> Square:
        """See Family."""
        return Square(self.tile_side, round(self.tile_tokens**0.5), self._tokens(1))

    def _tokens(self, patches: int) -> int:
        return self.tile_tokens * (patches + (patches > 1))

    def _tiles(self, size: Size, budget: int | None) -> Size:
        """(columns, rows)"""
        most = self.max_patches if budget is None else self.knob(budget)
        ratio, area = size[0] / size[1], size[0] * size[1]
        best, least = (1, 1), float("inf")
        for grid in _grids(self.min_patches, most):
            distance = abs(ratio - grid[0] / grid[1])
            roomy = area > 0.5 * self.tile_side**2 * grid[0] * grid[1]
            if distance < least or (distance == least and roomy):
                best, least = grid, distance
        return best


@cache
def _grids(fewest: int, most: int) -> list[Size]:
    """(columns, rows) of all grids with so many tiles, those with few tiles first."""
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if fewest <= columns * rows <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
