"""Made-up tables and pictures for tests of the report: no model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LADDER = (1, 9, 36, 144, 576)


def score_rows(count: int, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a score table: levels in turn, every sixth unsolved, every seventh not monotone."""
    rows = []
    for i in range(count):
        tokens = (*LADDER, None)[i % 6]
        agreement = {f"agreement_{t}": 1.0 if t >= (tokens or 576) else 0.4 for t in LADDER}
        rows.append(
            {"path": names[i] if names else f"pictures/{i % 2}/{i:05}.png"}
            | {"complexity": round(i / count, 4), "effective_tokens": 576 ** (i / count)}
            | {"required_tokens": tokens, "solved": tokens is not None, "monotone": i % 7 != 6}
            | agreement
            | {"questions": 1, "width": 80, "height": 60}
        )
    return rows


def looked_rows(count: int, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a score table by vision; there is more to read than to see in every third picture."""
    rows = []
    for i in range(count):
        tokens = 576.0 ** (i / count)
        demands = {"distinct_tokens": tokens, "reading_tokens": 0.5, "letter_height": None}
        if i % 3 == 2:
            demands = {"distinct_tokens": 1.0, "reading_tokens": tokens, "letter_height": 5.0}
        rows.append(
            {"path": names[i] if names else f"pictures/{i:05}.png", "complexity": i / count}
            | {"effective_tokens": tokens, "required_tokens": next(t for t in LADDER if t >= tokens)}
            | {"judged_by": "vision", "width": 80, "height": 60, **demands}
            | {f"kept_{t}": t / 576 for t in LADDER[:-1]}
        )
    return rows


def trace_rows(scores: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a trace table that fit: one question with a known answer per picture."""
    return [
        {"image": row["path"], "question_id": 0, "question": f"What is in {row['path']}?", "tokens": tokens}
        | {"visual_tokens": tokens, "agreement": row[f"agreement_{tokens}"], "model": "made up"}
        | {"answer": "yes" if _right(row, tokens) else "no", "consistent": _right(row, tokens)}
        | {"correct": _right(row, tokens), "references": ["yes"]}
        for row in scores
        for tokens in LADDER
    ]


def _right(row: dict[str, Any], tokens: int) -> bool:
    return row["required_tokens"] is not None and tokens >= row["required_tokens"]


def folder_of_pictures(folder: Path, count: int) -> list[str]:
    """Little coloured pictures; their names."""
    names = [f"{i:03}.png" for i in range(count)]
    for i, name in enumerate(names):
        colour = np.random.default_rng(i).integers(0, 256, 3)
        Image.new("RGB", (80, 60), tuple(map(int, colour))).save(folder / name)
    return names
