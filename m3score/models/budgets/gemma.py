"""Gemma 3, which may look at crops of a long picture too, and Gemma 4, whose processor has five budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from m3score.common.errors import M3ScoreError
from m3score.models.budgets.base import Size, Square, SteppedFamily, known, number, side_of

_SOFT_TOKENS = (70, 140, 280, 560, 1120)


@dataclass(frozen=True)
class Gemma3(SteppedFamily):
    """Gemma 3: a square picture of 256 tokens and, with "pan and scan", as many for each crop.

    Crops are cut along the longer side of pictures that are at least 1.2 times as long as wide. The default
    ladder is the picture alone, as the processor has it unless told otherwise, and with at most two crops:
    with the picture alone there would be no ladder.
    """

    name: ClassVar[str] = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    hints: ClassVar[tuple[str, ...]] = ("gemma3",)

    image_side: int = 896
    image_tokens: int = 256
    crops: int = 0
    """The most crops unless the processor is told otherwise; 0 for none."""
    least_crop: int = 256
    """Pixels that a crop's shorter side must have."""
    least_ratio: float = 1.2
    """How long a picture must be, compared with its width, to be cut."""

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See Family."""
        crops = number(settings, "pan_and_scan_max_num_crops") or 4
        ratio = settings.get("pan_and_scan_min_ratio_to_activate")
        return cls(
            **known(
                image_side=side_of(settings.get("size")),
                image_tokens=number(settings, "image_seq_length"),
                crops=crops if settings.get("do_pan_and_scan") else None,
                least_crop=number(settings, "pan_and_scan_min_crop_size"),
                least_ratio=None if ratio is None else float(ratio),
            )
        )

    def steps(self) -> dict[int, int]:
        """See SteppedFamily: numbers of crops."""
        return {self.image_tokens * (1 + crops): crops for crops in (0, 2, 3, 4)}

    @property
    def default_rungs(self) -> tuple[int, ...]:
        """See Family."""
        return tuple(self.image_tokens * (1 + crops) for crops in (0, self.crops or 2))

    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """See Family."""
        if not (crops := self.knob(budget)):
            return {"do_pan_and_scan": False}
        return {"do_pan_and_scan": True, "pan_and_scan_max_num_crops": crops}

    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """See Family."""
        return self.image_tokens * (
            1 + self._crops(size, self.crops if budget is None else self.knob(budget))
        )

    def square(self) -> Square:
        """See Family."""
        return Square(self.image_side, round(self.image_tokens**0.5), self.image_tokens)

    def _crops(self, size: Size, most: int) -> int:
        long, short = max(size), min(size)
        if not most or long / short < self.least_ratio:
            return 0
        crops = min(math.floor(long / self.least_crop), math.floor(long / short + 0.5))
        crops = min(most, max(2, crops))
        return crops if min(math.ceil(long / crops), short) >= self.least_crop else 0


@dataclass(frozen=True)
class Gemma4(SteppedFamily):
    """Gemma 4: a picture keeps its shape and is scaled, up or down, to fill the budget.

    The default ladder ends at what the processor does unless told otherwise, 280 tokens; 560 and 1120 have to
    be asked for.
    """

    name: ClassVar[str] = "gemma4"
    model_types: ClassVar[tuple[str, ...]] = ("gemma4",)
    hints: ClassVar[tuple[str, ...]] = ("gemma4",)

    token_side: int = 48
    """Pixels a side of what one token stands for."""
    max_soft_tokens: int = 280

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """See Family."""
        patch, pooled = settings.get("patch_size"), settings.get("pooling_kernel_size")
        return cls(
            **known(
                token_side=int(patch) * int(pooled or 3) if patch else None,
                max_soft_tokens=number(settings, "max_soft_tokens"),
            )
        )

    def steps(self) -> dict[int, int]:
        """See SteppedFamily."""
        return {tokens: tokens for tokens in _SOFT_TOKENS}

    @property
    def default_rungs(self) -> tuple[int, ...]:
        """See Family."""
        return tuple(tokens for tokens in _SOFT_TOKENS if tokens <= self.max_soft_tokens)

    def processor_kwargs(self, budget: int) -> dict[str, Any]:
        """See Family."""
        return {"max_soft_tokens": self.knob(budget)}

    def visual_tokens(self, size: Size, budget: int | None = None) -> int:
        """See Family."""
        most = self.max_soft_tokens if budget is None else self.knob(budget)
        scale = math.sqrt(most * self.token_side**2 / (size[0] * size[1]))
        columns, rows = (math.floor(length * scale / self.token_side) for length in size)
        if columns == rows == 0:
            raise M3ScoreError(f"a picture of {size[0]}x{size[1]} pixels is too small for {self.name}.")
        if not columns or not rows:  # very long: one row
            return min(max(size) // min(size), most)
        return columns * rows

    def square(self) -> Square:
        """See Family."""
        grid = math.isqrt(self.max_soft_tokens)
        return Square(grid * self.token_side, grid, self.max_soft_tokens)
