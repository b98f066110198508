"""Predictions as columns of a data set of the `datasets` library, and the types of these columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from m3score.common.errors import M3ScoreError
from m3score.routing.predict import predict_many

if TYPE_CHECKING:
    import datasets

    from m3score.routing.predictor import Predictor

COLUMNS = {
    "predicted_tokens": "int32",
    "predicted_complexity": "float64",
    "certified": "bool",
    "uncertified_reason": "string",
    "prediction_error": "string",
}
"""Name and type of each column of map_batch, in its order."""


def map_features(features: datasets.Features) -> datasets.Features:
    """Features of a data set after `map(m3score.map_batch, batched=True)`, to be given to it as `features`.

    Without them `datasets` takes each column's type from the first batch, which fails where no image of that
    batch can be read and a later one can.

    Args:
        features: those of the data set before; columns of the same names are replaced.
    """
    import datasets

    return datasets.Features({**features, **{name: datasets.Value(kind) for name, kind in COLUMNS.items()}})


def map_batch(
    batch: Mapping[str, Sequence[Any]],
    *,
    image: str = "image",
    question: str | None = None,
    max_drop: float | None = 0.02,
    confidence: float = 0.95,
    per: str = "image",
    mean_tokens: float | None = None,
    predictor: str | os.PathLike[str] | Predictor = "m3-tiny",
    workers: int | None = None,
) -> dict[str, list[Any]]:
    """New columns for `datasets.Dataset.map(m3score.map_batch, batched=True, fn_kwargs={...})`.

    Args:
        batch: columns of a data set.
        image: the column with the images: decoded, or {"path", "bytes"}, or paths.
        question: the column with the questions, if they are to be used.

    The other arguments are those of predict_scale.

    Returns:
        The columns of COLUMNS, one entry per row. An image that cannot be used has None in the first three.
        uncertified_reason says why no promise holds for it, prediction_error what is wrong with it; both
        are "" where there is nothing to say (not None: a data set fixes the type of a column by what it sees
        first).

    Raises:
        M3ScoreError: no such column, or an argument that cannot be used.
    """
    for column in filter(None, (image, question)):
        if column not in batch:
            raise M3ScoreError(f"the data set has no column {column!r}; it has {', '.join(map(str, batch))}.")
    results = list(
        predict_many(
            [_undecoded(value) for value in batch[image]],
            None if question is None else list(batch[question]),
            max_drop=max_drop,
            confidence=confidence,
            per=per,
            mean_tokens=mean_tokens,
            predictor=predictor,
            workers=workers,
        )
    )
    return {
        "predicted_tokens": [result.tokens for result in results],
        "predicted_complexity": [result.complexity for result in results],
        "certified": [result.certified for result in results],
        "uncertified_reason": [result.reason or "" for result in results],
        "prediction_error": [result.error or "" for result in results],
    }


def _undecoded(value: Any) -> Any:
    """What open_image takes of a row: data sets with decode=False hold {"path", "bytes"}."""
    if not isinstance(value, Mapping):
        return value
    return value.get("bytes") or value.get("path")
