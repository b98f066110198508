"""Labels of a predictor: traces and features as arrays, and their split into three by image.

Knows tables and numbers; knows no models and no regressors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from m3score.common.errors import M3ScoreError
from m3score.models.base import LOGITS
from m3score.routing.features.question import question_features
from m3score.scoring.oracle import score_trace
from m3score.scoring.rules import required_tokens
from m3score.scoring.traces import TraceRow, incomplete, rows_of

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("fit", "calibrate", "test")
SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True, eq=False)
class Labels:
    """Questions (m of them) about images, with the scales at which the model's answers suffice."""

    model: str
    ladder: tuple[int, ...]
    images: np.ndarray
    """(m,) text: each question's image."""
    keys: np.ndarray
    """(m,) text, equal for copies of an image: what splits and folds go by."""
    questions: np.ndarray
    """(m,) text."""
    sizes: np.ndarray
    """(m, 2) int: the image's width and height in pixels."""
    features: np.ndarray
    """float32 (m, image features)"""
    sufficient: np.ndarray
    """bool (m, scales), coarsest first."""
    by_truth: np.ndarray
    """bool (m,): judged by a ground truth, else by consistency with the finest scale's answer."""
    sources: np.ndarray
    """(m,) text: the part of the data that a question comes from."""
    spent: np.ndarray
    """float (m, scales): visual tokens of the question's image at each scale. Where the scales are budgets,
    those that the image really has; else the ladder's tokens per grid."""
    agreement_from: str = LOGITS
    """What agreement was worked out from."""
    failed: int = 0
    """Images without labels: they could not be read, or the model failed."""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Labels:
        """Some of the questions: a mask, or positions."""
        arrays = {name: value[rows] for name, value in self.__dict__.items() if isinstance(value, np.ndarray)}
        return Labels(self.model, self.ladder, **arrays, agreement_from=self.agreement_from)

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """ln(required tokens) under the rule "stays", and which questions are unsolved (ln(finest) there)."""
        needed = [required_tokens(list(row), self.ladder) for row in self.sufficient]
        unsolved = np.array([tokens is None for tokens in needed], bool)
        filled = [self.ladder[-1] if tokens is None else tokens for tokens in needed]
        return np.log(np.array(filled, float)), unsolved

    def exact(self) -> np.ndarray | None:
        """`spent`; None where it is the ladder itself in every row, which figures are cheaper of."""
        return None if (self.spent == np.array(self.ladder)).all() else self.spent

    def ends(self) -> tuple[float, float]:
        """Mean visual tokens at the coarsest and at the finest scale."""
        coarsest, *_, finest = self.spent.mean(axis=0)
        return float(coarsest), float(finest)

    def question_features(self) -> np.ndarray:
        """float32 (m, question features)"""
        told: dict[str, np.ndarray] = {text: question_features(text) for text in set(self.questions)}
        return np.stack([told[text] for text in self.questions])

    def size_features(self) -> np.ndarray:
        """float64 (m, 3): ln(width), ln(height), ln(area); the baseline that sees nothing else."""
        logs = np.log(np.maximum(self.sizes, 1).astype(float))
        return np.column_stack([logs, logs.sum(axis=1)])

    def split(self, seed: int = 0, shares: Sequence[float] = SHARES) -> dict[str, Labels]:
        """Three disjoint parts by image (and its copies), by a seeded hash: the same for any order or number.

        Raises M3ScoreError for shares that are not three positive numbers, or a part without images.
        """
        which = split_of(self.keys, seed, shares)
        parts = {name: self.take(which == i) for i, name in enumerate(SPLITS)}
        if empty := [name for name, part in parts.items() if not len(part)]:
            raise M3ScoreError(
                f"too few images ({len(set(self.keys))}) to split into {', '.join(SPLITS)}: "
                f"{empty[0]} has none."
            )
        return parts

    def one_per_image(self, seed: int = 0) -> Labels:
        """One question of each image, drawn by a seed and not by its answers: rows that are independent."""
        return self.take(np.sort([drawn[0] for drawn in self._drawn(seed).values()]).astype(int))

    def at_most_per_image(self, most: int, seed: int = 0) -> Labels:
        """So many questions of each image at most, drawn alike; the rows of an image follow each other, and
        images come in the order of their keys, which is none that answers know of."""
        drawn = self._drawn(seed)
        return self.take(np.array([i for key in sorted(drawn) for i in sorted(drawn[key][:most])], int))

    def _drawn(self, seed: int) -> dict[str, list[int]]:
        """Positions of each image's questions, in an order by lot."""
        met: dict[str, int] = {}
        places: dict[str, list[tuple[float, int]]] = {}
        for i, key in enumerate(self.keys):
            met[key] = met.get(key, 0) + 1
            places.setdefault(key, []).append((_place(f"{key}\0{met[key]}", seed), i))
        return {key: [i for _, i in sorted(found)] for key, found in places.items()}


def split_of(keys: np.ndarray, seed: int, shares: Sequence[float]) -> np.ndarray:
    """(n,) positions in SPLITS of images by their keys; M3ScoreError for shares that are not three positive
    numbers."""
    if len(shares) != len(SPLITS) or min(shares) <= 0:
        raise M3ScoreError(f"--shares needs {len(SPLITS)} positive numbers ({', '.join(SPLITS)}).")
    ends = np.cumsum(shares) / sum(shares)
    places = np.array([_place(key, seed) for key in keys])
    return np.minimum(np.searchsorted(ends, places, side="right"), len(SPLITS) - 1)


def _place(text: str, seed: int) -> float:
    """A number in [0, 1) that the text and the seed make."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def label(
    traces: pd.DataFrame,
    features: Mapping[str, tuple[str, np.ndarray | None]],
    *,
    sufficiency: str = "auto",
    source: str = "",
    ladder: Sequence[int] | None = None,
) -> Labels:
    """Labels of a trace table.

    Args:
        traces: a trace table.
        features: of each image by name: its key and its features (None if it can't be read).
        sufficiency: "auto", "correct" or "consistent", as in oracle.py.
        source: what this part of the data is called.
        ladder: the ladder that the traces should have; any by default.

    Raises:
        M3ScoreError: no questions at all, rows of several models, another ladder, or "correct" without a
            ground truth.
    """
    rows, errors = rows_of(traces)
    broken = {*errors, *incomplete(rows)}
    usable = [
        row for row in rows if row.image not in broken and features.get(row.image, ("", None))[1] is not None
    ]
    lost = len(broken | {row.image for row in rows} - {row.image for row in usable})
    if not usable:
        raise M3ScoreError(f"{source or 'the traces'}: no image has both a trace and features.")
    scored = score_trace(usable, sufficiency=sufficiency)
    first = next(iter(scored.values()))
    if ladder is not None and first.ladder != tuple(ladder):
        raise M3ScoreError(f"{source or 'the traces'}: ladder {first.ladder}, not {tuple(ladder)}.")
    asked = [(name, image, question) for name, image in scored.items() for question in image.questions]
    return Labels(
        model=first.model,
        ladder=first.ladder,
        images=np.array([name for name, _, _ in asked], object),
        keys=np.array([features[name][0] for name, _, _ in asked], object),
        questions=np.array([question.question for _, _, question in asked], object),
        sizes=np.array([(image.width, image.height) for _, image, _ in asked], int),
        features=np.stack([features[name][1] for name, _, _ in asked]).astype(np.float32),  # type: ignore[misc]
        sufficient=np.array([question.sufficient for _, _, question in asked], bool),
        by_truth=np.array([question.judged_by == "correct" for _, _, question in asked], bool),
        sources=np.array([source] * len(asked), object),
        spent=_spent(usable, [name for name, _, _ in asked], first.ladder),
        agreement_from=first.agreement_from,
        failed=lost,
    )


def _spent(rows: Sequence[TraceRow], images: Sequence[str], ladder: Sequence[int]) -> np.ndarray:
    """Labels.spent. A scale is a budget where no image has more visual tokens than it says."""
    told = {(row.image, row.tokens): row.visual_tokens for row in rows}
    if any(seen > tokens for (_, tokens), seen in told.items()):
        return np.tile(np.array(ladder, float), (len(images), 1))
    return np.array([[told[image, tokens] for tokens in ladder] for image in images], float)


def join(parts: Sequence[Labels]) -> Labels:
    """Several parts as one. M3ScoreError if they are of several models, ladders or feature sets."""
    if len({(part.model, part.ladder, part.features.shape[1]) for part in parts}) != 1:
        held = sorted({f"{part.model} {part.ladder}" for part in parts})
        raise M3ScoreError(f"labels of one model, ladder and feature set are needed, not {', '.join(held)}.")
    if len(sources := sorted({part.agreement_from for part in parts})) != 1:
        raise M3ScoreError(f"labels with agreement from {' and '.join(sources)} do not go together.")
    first = parts[0]
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name, value in first.__dict__.items()
        if isinstance(value, np.ndarray)
    }
    failed = sum(part.failed for part in parts)
    return Labels(first.model, first.ladder, **arrays, agreement_from=first.agreement_from, failed=failed)
