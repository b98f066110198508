"""What there is to read in a picture: where text is, and how high its letters are.

A convolutional net of a few thousand weights, trained on drawn print alone (calibration/training/reader.py),
the same for every model. It looks at the picture's own resolution, up to LONGEST pixels, and once more at a
quarter of it for large letters. Knows pixels and letters, no models of language and no scores.

A token can hold two letters side by side and two lines of them (LETTERS_PER_TOKEN_SIDE). `Reading.tokens` is
the number of squares, twice as high as the capital letters there, that hold text: (side / (2 height))^2 for a
picture that is nothing but text. It follows the number of letters, so a sign has few and a page of small
print has hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from m3score.common.errors import M3ScoreError

STRIDE = 4
"""Pixels a side of the cells in which the net answers."""
SMALLEST, LARGEST = 5.0, 24.0
"""Heights in pixels of the capital letters that the net is taught to find at one resolution."""
_COARSER = 4
_HANDOVER = 20.0
"""Height in pixels from which letters are left to the coarser look."""
_SURE = 1.0
"""Log-odds from which a cell is taken for text."""
_AROUND, _NEIGHBOURS = 7, 0.15
"""Text comes in lines: so many of the cells in this square around must be text as well."""
LETTERS_PER_TOKEN_SIDE = 2.0
"""Letters that a token can hold, in height and as many in width. A LLaVA's patches are 14 pixels a side, and
letters of 7 pixels are the smallest that such models read."""
_SCALE = 10.0
"""Pixels; the net tells the logarithm of the height as a multiple of it."""
MAP_SIDE = 24
_MULTIPLE = 64
"""Pixels; sides are continued to multiples of it, so that the net's products come in few shapes. oneDNN
prepares each shape and keeps it, which takes tens of megabytes for sides as they come."""
_ASSET = "assets/reader.safetensors"


class ReaderNet(nn.Module):
    """Luminance -> text or not, and how high the letters are, for cells of 4x4 pixels."""

    def __init__(self, stem: int = 24, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 2 * STRIDE, STRIDE, padding=STRIDE // 2)
        self.spread, self.mix = nn.ModuleList(), nn.ModuleList()
        for dilation, channels in ((1, stem), (2, width), (4, width)):
            self.spread.append(
                nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
            )
            self.mix.append(nn.Conv2d(channels, width, 1))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, luminance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            luminance: (n, 1, height, width) in [0, 1]; sides are multiples of STRIDE.

        Returns:
            Logits of being text and ln(height of the capitals / 10 px), both (n, height / 4, width / 4).
        """
        hidden = _convolved(luminance - 0.5, self.stem).relu_()
        for spread, mix in zip(self.spread, self.mix, strict=True):
            hidden = _convolved(_convolved(hidden, spread), mix).relu_()
        out = _convolved(hidden, self.head)
        return out[:, 0], out[:, 1]


def _convolved(values: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """`layer(values)`; torch by itself leaves small pictures to code that takes several times as long."""
    if torch.is_grad_enabled() or values.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return layer(values)
    layer = cast(nn.Conv2d, layer)
    padding = cast("tuple[int, int]", layer.padding)
    return torch.mkldnn_convolution(
        values, layer.weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups
    )


@dataclass(frozen=True, eq=False)
class Reading:
    """What there is to read in one picture."""

    tokens: float
    """Squares of twice the letters' height that hold text: 0 where there is nothing to read."""
    letter_height: float | None
    """Height of the capitals, were the picture's longest side 336 pixels: the median over those squares. None
    without text."""
    cells: np.ndarray
    """float32 (24, 24): the squares' number by place, the picture being stretched to a square."""


@cache
def bundled_reader() -> ReaderNet:
    """The net that ships with the package. Raises M3ScoreError where its file is missing."""
    path = Path(str(resources.files("m3score"))) / _ASSET
    if not path.is_file():
        raise M3ScoreError("The bundled reader is missing from this installation: install m3score anew.")
    net = ReaderNet()
    net.load_state_dict(load_file(path))
    net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


@torch.inference_mode()
def read(pictures: Sequence[np.ndarray], net: ReaderNet | None = None) -> list[Reading]:
    """What there is to read in each picture.

    Args:
        pictures: uint8 (height, width) each, what prepare.luminance makes of a picture.
        net: by default the one that ships with the package.
    """
    net = net or bundled_reader()
    return [_read(net, grey) for grey in pictures]


def _read(net: ReaderNet, grey: np.ndarray) -> Reading:
    height, width = grey.shape
    pixels = torch.from_numpy(grey.astype(np.float32) / 255)[None, None]
    # Continued, not cut: the last rows and columns may hold text, and a black rim would look like a stroke.
    across, down = -width % _MULTIPLE, -height % _MULTIPLE
    pixels = functional.pad(pixels, (0, across, 0, down), mode="replicate")
    fine = _letters(net, pixels, 1, grey.shape)
    coarse = _letters(net, functional.avg_pool2d(pixels, _COARSER), _COARSER, grey.shape)
    rows, columns, count, heights = (np.concatenate(pair) for pair in zip(fine, coarse, strict=True))
    side = max(height, width)
    cells = np.zeros((MAP_SIDE, MAP_SIDE), np.float32)
    place = tuple(
        np.clip(at * MAP_SIDE / length, 0, MAP_SIDE - 1).astype(int)
        for at, length in ((rows, height), (columns, width))
    )
    np.add.at(cells, place, count)
    common = _weighted_median(heights, count) * 336 / side if len(count) else None
    return Reading(float(count.sum()), common, cells)


def _letters(
    net: ReaderNet, pixels: torch.Tensor, scale: int, shape: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    """Row, column, tokens and height of letters of every place of the picture that shows text.

    In pixels of the finest look, of which this one's are `scale` a side, and the picture's `shape` is told.
    """
    rows, columns = (-(-side // (STRIDE * scale)) for side in shape)
    found = net(pixels.contiguous(memory_format=torch.channels_last))
    logits, ln_height = (values[:, :rows, :columns] for values in found)
    sure = logits[0] > _SURE
    around = functional.avg_pool2d(sure[None, None].float(), _AROUND, stride=1, padding=_AROUND // 2)
    sure &= around[0, 0] > _NEIGHBOURS
    tall = ln_height[0] >= np.log(_HANDOVER / _SCALE / scale)
    down, across = torch.nonzero(sure & (tall == (scale > 1)), as_tuple=True)
    heights = ln_height[0, down, across].exp().clamp(SMALLEST / _SCALE / 1.5, 2 * LARGEST / _SCALE) * _SCALE
    count = (STRIDE / (LETTERS_PER_TOKEN_SIDE * heights)) ** 2
    middle = STRIDE * scale
    return (
        (down.numpy() + 0.5) * middle,
        (across.numpy() + 0.5) * middle,
        count.numpy(),
        heights.numpy() * scale,
    )


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
