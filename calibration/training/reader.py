"""Train the reader (m3score/models/vision/reader.py) on drawn print and drawings that only look like it.

    python -m m3score.calibration.training.reader --out reader.safetensors

About half an hour on one core. Drawings depend on the machine's fonts: the more scripts and styles, the
better.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from safetensors.torch import save_file
from torch.nn import functional

from m3score.calibration.drawings.unasked.print import SIDE, draw_print
from m3score.calibration.drawings.unasked.typefaces import FOLDERS, Typeface, find_typefaces
from m3score.models.vision.reader import _SCALE, LARGEST, SMALLEST, STRIDE, ReaderNet

UNSEEN = 1_000_003
"""Added to the seed: the stream of drawings that nothing is learnt from."""
_CROP = 160
_UNCLEAR = (4.0, 32.0)
"""Heights next to what the net is taught to find: those between are neither text nor not."""


def cells(height: np.ndarray) -> np.ndarray:
    """Heights per pixel, 0 without text -> float16 (side / 4, side / 4, 2): coverage, and height where
    any."""
    side = len(height) // STRIDE
    blocks = height.reshape(side, STRIDE, side, STRIDE).transpose(0, 2, 1, 3).reshape(side, side, -1)
    covered = (blocks > 0).mean(axis=2)
    return np.stack([covered, blocks.max(axis=2)], axis=2).astype(np.float16)


def _draw(index: int, seed: int, faces: Sequence[Typeface]) -> tuple[np.ndarray, np.ndarray]:
    drawn = draw_print(np.random.default_rng((seed, index)), faces)
    return drawn.pixels, cells(drawn.height)


def draw_pool(
    seed: int, count: int, faces: Sequence[Typeface], processes: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Drawings and their labels: uint8 (count, 256, 256) and float16 (count, 64, 64, 2)."""
    draw = partial(_draw, seed=seed, faces=faces)
    if processes > 1:
        from multiprocessing import get_context

        with get_context("spawn").Pool(processes) as pool:
            drawn = pool.map(draw, range(count), chunksize=16)
    else:
        drawn = [draw(index) for index in range(count)]
    pixels, labels = zip(*drawn, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels))


def loss_of(net: ReaderNet, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Text or not, and the logarithm of the height where there is text of a height that can be told."""
    logits, ln_height = net(pixels)
    covered, height = labels.float().unbind(-1)
    text = covered > 0.5
    found = text & (height >= SMALLEST) & (height <= LARGEST)
    unclear = (covered > 0) & (~text | ((height > _UNCLEAR[0]) & (height < _UNCLEAR[1]))) & ~found
    weights = (~unclear).float()
    kind = functional.binary_cross_entropy_with_logits(logits, found.float(), reduction="none")
    wanted = torch.log(height.clamp(min=1) / _SCALE)
    size = functional.smooth_l1_loss(ln_height, wanted, reduction="none", beta=0.1)
    return (kind * weights).sum() / weights.sum() + 0.5 * (size * found).sum() / found.sum().clamp(min=1)


def _batch(
    pixels: torch.Tensor, labels: torch.Tensor, size: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut at random places, flipped: mirrored text is text. Whole cells, so that labels stay exact."""
    room = (SIDE - _CROP) // STRIDE + 1
    seen, wanted = [], []
    for index in torch.randint(len(pixels), (size,), generator=random).tolist():
        y, x = torch.randint(room, (2,), generator=random).tolist()
        flips = [axis for axis in (0, 1) if torch.rand((), generator=random) < 0.3]
        part = pixels[index, STRIDE * y : STRIDE * y + _CROP, STRIDE * x : STRIDE * x + _CROP].float() / 255
        gain = 0.6 + 0.4 * torch.rand((), generator=random)
        if torch.rand((), generator=random) < 0.3:
            gain = -gain
        seen.append((gain * (part - 0.5) + 0.5).flip(flips))
        count = _CROP // STRIDE
        wanted.append(labels[index, y : y + count, x : x + count].flip(flips))
    return torch.stack(seen)[:, None], torch.stack(wanted)


@torch.no_grad()
def judge(net: ReaderNet, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Recall of cells that are text, false alarms per thousand cells that are none, and the height's
    error."""
    logits, ln_height = (
        torch.cat(parts) for parts in zip(*map(net, (pixels[:, None].float() / 255).split(32)), strict=True)
    )
    covered, height = labels.float().unbind(-1)
    text = (covered > 0.5) & (height >= SMALLEST) & (height <= LARGEST)
    said = logits > 0
    error = (ln_height - torch.log(height.clamp(min=1) / _SCALE)).abs()[text & said]
    return {
        "recall": float(said[text].float().mean()),
        "false_per_thousand": 1000 * float(said[covered == 0].float().mean()),
        "height_error": float(error.median()),
    }


def train(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    steps: int,
    batch_size: int = 16,
    rate: float = 4e-3,
) -> ReaderNet:
    """A net that has learnt from a pool of drawings; deterministic for a seed."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    net: ReaderNet = ReaderNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(steps):
        loss = loss_of(net, *_batch(pixels, labels, batch_size, random))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def main(
    out: Annotated[Path, typer.Option(help="Where the weights go: .safetensors.")],
    pool: Annotated[int, typer.Option(min=64, help="Drawings to learn from.")] = 8192,
    steps: Annotated[int, typer.Option(min=1, help="Batches of 16.")] = 8000,
    seed: Annotated[int, typer.Option(help="Of drawings, weights and batches.")] = 0,
    fonts: Annotated[list[str] | None, typer.Option(help="Folders with fonts; may be repeated.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 1,
) -> None:
    """Draw a pool, train the reader, judge it on drawings it has not seen, write its weights."""
    console, start = Console(stderr=True), time.time()
    faces = find_typefaces(fonts or FOLDERS)
    console.print(f"{len(faces)} typefaces, {sum(face.latin for face in faces)} of them Latin")
    pixels, labels = draw_pool(seed, pool, faces, processes)
    console.print(f"{pool} drawings after {time.time() - start:.0f} s")
    net = train(pixels, labels, seed=seed, steps=steps)
    figures = judge(net, *draw_pool(seed + UNSEEN, 512, faces, processes))
    told = {name: f"{value:.4g}" for name, value in figures.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, out, told)
    console.print(f"{out}: {told} after {time.time() - start:.0f} s")


if __name__ == "__main__":
    typer.run(main)
