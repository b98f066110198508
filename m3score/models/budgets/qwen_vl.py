"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: a picture keeps its shape, and its pixels are bounded from both sides.

A token stands for a square of 28 (Qwen3-VL: 32) pixels a side. Sides are rounded to multiples of that, and a
picture with too many or too few pixels is scaled (`smart_resize` in transformers, and in Qwen's own code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from m3score.common.errors import M3ScoreError
from m3score.models.budgets.base import Family, Size, Square, known, number

LONGEST_RATIO = 200
"""A picture may be this many times as long as wide."""
_RUNGS = (64, 256, 1024, 4096)
_LEAST_BUDGET = 4
_GRID = 24


@dataclass(frozen=True)
class QwenVL(Family):
    """Qwen2-VL and Qwen2.5-VL; a token is 28 pixels a side.

    The default ladder ends at 4096 tokens although the processor allows 16384: few pictures have so many
    pixels, and the language model's context is seldom so long. The budget is an upper bound but for pictures
    that are more than some 60 times as long as wide, of which the processor shows at least one row.
    """

    name: ClassVar[str] = "qwen2.5-vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "qwen2_vl")
    hints: ClassVar[tuple[str, ...]] = ("qwen25vl", "qwen2vl")

    token_side: int = 28
    """Pixels a side of what one token stands for."""
    least: int = 56 * 56
    """Pixels up to which a smaller picture is enlarged."""
    most: int = 28 * 28 * 16384
    """Pixels that a picture may have unless the processor is told otherwise."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See Family."""
        size = settings.get("size") or {}
        patch, merge = settings.get("patch_size"), settings.get("merge_size")
        return cls(
            **known(
                token_side=int(patch) * int(merge or 2) if patch else None,
                least=number({**size, **_pixels(settings)}, "min_pixels", "shortest_edge"),
                most=number({**size, **_pixels(settings)}, "max_pixels", "longest_edge"),
            )
        )

    @property
    def default_rungs(self) -> tuple[int, ...]:
        """See Family."""
        most = min(_RUNGS[-1], self.most // self.token_side**2)
        return (*(rung for rung in _RUNGS if rung < most), most)

    def check_budget(self, budget: int) -> None:
        """See Family."""
        if budget < _LEAST_BUDGET:
            raise M3ScoreError(
                f"{self.name} has no budget of {budget} visual tokens; it takes any number from "
                f"{_LEAST_BUDGET} on."
            )

    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """See Family. What is small is enlarged to at most a quarter of the budget: rounding up could
        overstep it otherwise."""
        least, most = self._bounds(budget)
        return {"size": {"shortest_edge": least, "longest_edge": most}}

    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """See Family."""
        width, height = self._resized(size, *self._bounds(budget))
        return width * height // self.token_side**2

    def client_size(self, size: Size, budget: int) -> Size:
        """See Family. Sent without loss, as PNG, the picture is not resized again. It may overstep a budget
        that is hardly more than what the server enlarges pictures to."""
        least, most = self._bounds(budget)
        return self._resized(self._resized(size, least, min(self.most, most)), self.least, self.most)

    def square(self) -> Square:
        """See Family."""
        return Square(_GRID * self.token_side, _GRID, _GRID**2)

    def _bounds(self, budget: int | None) -> tuple[int, int]:
        """The fewest and the most pixels."""
        if budget is None:
            return self.least, self.most
        self.check_budget(budget)
        most = budget * self.token_side**2
        return min(self.least, most // 4), most

    def _resized(self, size: Size, least: int, most: int) -> Size:
        """What the processor makes of a picture's size."""
        width, height = size
        side = self.token_side
        if max(size) / min(size) > LONGEST_RATIO:
            raise M3ScoreError(
                f"a picture of {width}x{height} pixels is too long for {self.name}: it takes those that are "
                f"at most {LONGEST_RATIO} times as long as wide."
            )
        rounded = round(width / side) * side, round(height / side) * side
        if rounded[0] * rounded[1] > most:
            shrink = math.sqrt(height * width / most)
            wide, high = (max(side, math.floor(length / shrink / side) * side) for length in size)
            return wide, high
        if rounded[0] * rounded[1] < least:
            grow = math.sqrt(least / (height * width))
            wide, high = (math.ceil(length * grow / side) * side for length in size)
            return wide, high
        return rounded


@dataclass(frozen=True)
class Qwen3VL(QwenVL):
    """Qwen3-VL: as Qwen2.5-VL, with tokens of 32 pixels a side and a larger least size."""

    name: ClassVar[str] = "qwen3-vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    hints: ClassVar[tuple[str, ...]] = ("qwen3vl",)

    token_side: int = 32
    least: int = 256 * 256
    most: int = 4096 * 4096


def _pixels(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds as older files have them."""
    return known(min_pixels=settings.get("min_pixels"), max_pixels=settings.get("max_pixels"))
