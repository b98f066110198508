"""The types of the columns that map_batch adds to a data set of the `datasets` library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

COLUMNS = {
    "predicted_tokens": "int32",
    "predicted_complexity": "float64",
    "certified": "bool",
    "prediction_error": "string",
}
"""Name and type of each column of predict.map_batch, in its order."""


def map_features(features: datasets.Features) -> datasets.Features:
    """Features of a data set after `map(m3score.map_batch, batched=True)`, to be given to it as `features`.

    Without them `datasets` takes each column's type from the first batch, which fails where no image of that
    batch can be read and a later one can.

    Args:
        features: those of the data set before; columns of the same names are replaced.
    """
    import datasets

    return datasets.Features({**features, **{name: datasets.Value(kind) for name, kind in COLUMNS.items()}})
