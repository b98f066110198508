"""LLaVA-OneVision: an overview tile, and the picture on the grid of tiles that shows most of its pixels.

The padding of the grid is cut off, each row of tokens ends in a newline token, and a grid with many more
tokens than nine tiles have is scaled down to those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from m3score.models.budgets.base import Size, Square, SteppedFamily, known, number, side_of

_TILES = (1, 2, 4, 9)
_TOLERATED = 1.1
"""A grid of up to this many times the side is left as it is."""
_MOST_A_SIDE = 6


@dataclass(frozen=True)
class LlavaOnevision(SteppedFamily):
    """LLaVA-OneVision in transformers' format. Its processor does not take the budget with a call."""

    name: ClassVar[str] = "llava-onevision"
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    hints: ClassVar[tuple[str, ...]] = ("llavaonevision", "onevision")
    per_call: ClassVar[bool] = False

    tile_side: int = 384
    tile_tokens: int = 729
    canvases: tuple[Size, ...] = tuple(
        (384 * columns, 384 * rows)
        for rows in range(1, _MOST_A_SIDE + 1)
        for columns in range(1, _MOST_A_SIDE + 1)
    )
    """(width, height) of the grids that there are (the files have height first)."""
    most_tiles: int = 9
    """How many tiles' tokens a larger grid is scaled down to."""
    without_class_token: bool = False
    """Whether the tower's first token is left out, which the count then lacks."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See Family."""
        points = settings.get("image_grid_pinpoints")
        shape = settings.get("vision_aspect_ratio")
        strategy = settings.get("vision_feature_select_strategy")
        return cls(
            **known(
                tile_side=side_of(settings.get("size")),
                tile_tokens=number(settings, "num_image_tokens"),
                canvases=tuple((int(width), int(height)) for height, width in points) if points else None,
                most_tiles=int(shape.rpartition("_")[2]) if shape else None,
                without_class_token=strategy == "default" if strategy else None,
            )
        )

    def steps(self) -> dict[int, int]:
        """See SteppedFamily: numbers of tiles, without the overview."""
        return _steps(self)

    @property
    def default_rungs(self) -> tuple[int, ...]:
        """See Family."""
        budgets = {tiles: budget for budget, tiles in self.steps().items()}
        return (*(budgets[n] for n in _TILES if n in budgets and n < max(budgets)), max(self.steps()))

    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """See Family."""
        return {"image_grid_pinpoints": [[height, width] for width, height in self._allowed(budget)]}

    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """See Family."""
        return self._tokens(*self._shown(size, self._canvas(size, budget)))

    def same_pixels(self, size: Size, one: int, other: int) -> bool:
        """See Family: grids of different sizes may have equally many tokens once they are scaled down."""
        return self._canvas(size, one) == self._canvas(size, other)

    def client_size(self, size: Size, budget: int) -> Size:
        """See Family: what fits on the budget's canvas; a picture is never enlarged."""
        canvas = self._canvas(size, budget)
        scale = min(1.0, canvas[0] / size[0], canvas[1] / size[1])
        return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))

    def square(self) -> Square:
        """See Family."""
        return Square(self.tile_side, round(self.tile_tokens**0.5), min(self.steps()))

    def count_tiles(self, canvas: Size) -> int:
        """Tiles of a canvas, without the overview."""
        return (canvas[0] // self.tile_side) * (canvas[1] // self.tile_side)

    def largest(self, tiles: int) -> int:
        """The most tokens that a picture can have on grids of at most so many tiles."""
        return max(
            self._tokens(*shown)
            for canvas in self.canvases
            if self.count_tiles(canvas) <= tiles
            for shown in self._cuts(canvas)
        )

    def _allowed(self, budget: int | None) -> list[Size]:
        tiles = None if budget is None else self.knob(budget)
        return [canvas for canvas in self.canvases if tiles is None or self.count_tiles(canvas) <= tiles]

    def _canvas(self, size: Size, budget: int | None) -> Size:
        """The canvas that shows most pixels of the picture; of equal ones the first that wastes fewest."""
        area = size[0] * size[1]

        def merit(canvas: Size) -> tuple[int, int]:
            scale = min(canvas[0] / size[0], canvas[1] / size[1])
            shown = min(int(size[0] * scale) * int(size[1] * scale), area)
            return shown, shown - canvas[0] * canvas[1]

        return max(self._allowed(budget), key=merit)

    def _shown(self, size: Size, canvas: Size) -> Size:
        """(columns, rows) of the canvas's tokens that show the picture and not its padding."""
        side = round(self.tile_tokens**0.5)
        columns, rows = (length // self.tile_side * side for length in canvas)
        if size[0] / size[1] > columns / rows:
            rows -= (rows - int(round(size[1] * (columns / size[0]), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(size[0] * (rows / size[1]), 7))) // 2 * 2
        return columns, rows

    def _cuts(self, canvas: Size) -> Iterator[Size]:
        """All that may be left of a canvas's tokens once its padding is cut off."""
        side = round(self.tile_tokens**0.5)
        columns, rows = (length // self.tile_side * side for length in canvas)
        yield from ((columns, rows - cut) for cut in range(0, rows, 2))
        yield from ((columns - cut, rows) for cut in range(0, columns, 2))

    def _tokens(self, columns: int, rows: int) -> int:
        """Of the overview, of a grid with so many columns and rows, and of its newlines."""
        ratio = math.sqrt(columns * rows / (self.most_tiles * self.tile_tokens))
        if ratio > _TOLERATED:
            columns, rows = int(columns // ratio), int(rows // ratio)
        return self.tile_tokens + (columns + 1) * rows - self.without_class_token


@cache
def _steps(family: LlavaOnevision) -> dict[int, int]:
    """The budgets: the most tokens of each number of tiles; of equal ones that with most tiles."""
    tiles = sorted({family.count_tiles(canvas) for canvas in family.canvases})
    return {family.largest(count): count for count in tiles}
