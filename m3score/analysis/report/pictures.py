"""Pictures of a report: thumbnails of bounded size, and maps of lost detail or of complexity."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from m3score.analysis.where import Where, grid_box, where
from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image, open_reduced

if TYPE_CHECKING:
    from m3score.models.m3.model import M3Model
    from m3score.models.vision.complexity import VisionScore

SIDE = 320
"""Longest side of a thumbnail, in pixels."""
BYTES = 24_000
"""Most bytes of one thumbnail."""
ALL_BYTES = 6_500_000
"""Most bytes of all thumbnails together; base64 adds a third."""
_QUALITIES = ((1.0, 72), (1.0, 50), (0.8, 40), (0.6, 35), (0.45, 30), (0.3, 25), (0.2, 20))
"""(share of SIDE, WebP quality), tried in turn until the thumbnail is small enough."""
_LEVELS = 16
_BATCH = 8
_ALIKE = 0.02
"""Complexities that differ by more are not of one model and picture, whatever the device and precision."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, or why there is none."""

    data: str | None
    """base64 of a WebP file."""
    width: int | None
    height: int | None
    """Of the full picture, in pixels."""
    error: str | None


def thumbnails(paths: Sequence[str], find: Callable[[str], str]) -> Iterator[Thumbnail]:
    """One thumbnail per path, in order; together at most ALL_BYTES."""
    limit = min(BYTES, ALL_BYTES // max(1, len(paths)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(lambda path: _thumbnail(path, find, limit), paths)


def _thumbnail(path: str, find: Callable[[str], str], limit: int) -> Thumbnail:
    file = path
    try:
        file = find(path)
        picture, (width, height) = open_reduced(file, SIDE)
    except M3ScoreError as error:
        return Thumbnail(None, None, None, error.reason)
    content = b""
    for share, quality in _QUALITIES:
        small = picture.copy()
        small.thumbnail((max(1, int(SIDE * share)),) * 2)
        buffer = io.BytesIO()
        small.save(buffer, "webp", quality=quality)
        content = buffer.getvalue()
        if len(content) <= limit:
            break
    return Thumbnail(base64.b64encode(content).decode(), width, height, None)


@dataclass(frozen=True)
class DetailMap:
    """Where in a picture a scale's tokens lose detail of the finest ones."""

    loss: dict[int, np.ndarray]
    """By tokens: float (grid, grid), distance of each patch's projected feature from the pooled one it goes
    into, relative to the mean length of the picture's features."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the grid, as shares of the picture's sides; it may reach beyond them."""


def detail_maps(
    model: M3Model, paths: Sequence[str], find: Callable[[str], str] = lambda path: path
) -> Iterator[DetailMap | None]:
    """One map per path, in order, of the overview grid; None for a picture that can't be opened."""
    for start in range(0, len(paths), _BATCH):
        pictures = [_opened(path, find) for path in paths[start : start + _BATCH]]
        encoded = iter(model.encode([picture for picture in pictures if picture is not None]))
        for picture in pictures:
            if picture is None:
                yield None
                continue
            features = next(encoded).features[:1].float().cpu()
            box = grid_box(picture.size, model.config.image_aspect_ratio)
            yield DetailMap(_losses(features, model.ladder), box)


def _opened(path: str, find: Callable[[str], str]) -> Any:
    try:
        return open_image(find(path))
    except M3ScoreError:
        return None


def _losses(features: Any, ladder: Sequence[int]) -> dict[int, np.ndarray]:
    """features: (1, grid * grid, hidden)"""
    from m3score.models.m3.ladder import pool, pool_kernel

    grid = round(features.shape[1] ** 0.5)
    fine = features[0].numpy().reshape(grid, grid, -1)
    length = float(np.linalg.norm(fine, axis=-1).mean()) or 1.0
    losses = {}
    for tokens in ladder:
        kernel = pool_kernel(tokens, grid)
        if kernel == 1:
            continue
        side = grid // kernel
        coarse = pool(features, tokens)[0].numpy().reshape(side, side, -1)
        places = np.minimum(np.arange(grid) // kernel, side - 1)
        losses[tokens] = np.linalg.norm(fine - coarse[places][:, places], axis=-1) / length
    return losses


def as_digits(maps: Sequence[DetailMap | None]) -> list[dict[str, Any] | None]:
    """The maps as the page's script reads them: per scale, one hexadecimal digit per cell, row by row.

    All maps use the same range: "0" is the 10 % quantile over all cells and scales, "f" the 99.5 % quantile.
    """
    values = [loss.ravel() for one in maps if one for loss in one.loss.values()]
    low, high = np.quantile(np.concatenate(values), (0.1, 0.995)) if values else (0.0, 1.0)
    span = float(max(high - low, 1e-9))
    return [_digits(one, float(low), span) if one else None for one in maps]


def _digits(one: DetailMap, low: float, span: float) -> dict[str, Any]:
    scales = {}
    for tokens, loss in one.loss.items():
        levels = np.clip(np.rint((loss - low) / span * (_LEVELS - 1)), 0, _LEVELS - 1).astype(int)
        scales[str(tokens)] = "".join(f"{level:x}" for level in levels.ravel())
    means = {str(tokens): round(float(loss.mean()), 3) for tokens, loss in one.loss.items()}
    grid = len(next(iter(one.loss.values()))) if one.loss else 0
    return {"grid": grid, "box": [round(v, 4) for v in one.box], "scales": scales, "mean": means}


def where_maps(
    model: M3Model, rows: Sequence[Mapping[str, Any]], find: Callable[[str], str] = lambda path: path
) -> Iterator[Where | None]:
    """Where the complexity is, one map per row of a score table judged by vision, in order.

    None for a picture that can't be opened, and where the model gives another score than the table has: that
    was made with another model, or of another picture. Ends early where the first ones all are like that.
    """
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        pictures = [_opened(row.get("path", ""), find) for row in part]
        scores = iter(model.vision_score([picture for picture in pictures if picture is not None]))
        found = [
            None if picture is None else _where(next(scores), row)
            for row, picture in zip(part, pictures, strict=True)
        ]
        yield from found
        if start == 0 and not any(found):
            return


def _where(score: VisionScore, row: Mapping[str, Any]) -> Where | None:
    return where(score) if abs(score.complexity - row["complexity"]) <= _ALIKE else None


def where_digits(found: Where | None) -> dict[str, Any] | None:
    """A map as the page's script reads it: one hexadecimal digit per cell, "f" for `top` tokens and more."""
    if found is None:
        return None
    levels = np.clip(np.rint(found.tokens / found.top * (_LEVELS - 1)), 0, _LEVELS - 1).astype(int)
    return {
        "grid": len(found.tokens),
        "box": [round(v, 4) for v in found.box],
        "where": "".join(f"{level:x}" for level in levels.ravel()),
        "top": round(found.top, 3),
    }
