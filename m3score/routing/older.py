"""Predictors of feature version 2, read as if fitted on today's features.

Version 3 measures all that version 2 did, to the bit, and some more. What an older file holds takes no notice
of the new features, so it predicts and promises what it always did; but for the complexity of an empty
picture that nothing is asked about, which version 2 had a rule for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m3score.routing.features.image import FEATURE_VERSION, IMAGE_FEATURES

READ = 2
"""The older feature version that is read."""
_ADDED = frozenset(("pixels", "native_2048", "native_1024", "native_512", "letters", "letters_share"))
_FAR = np.float32(1e30)
"""A scale on which every feature is at the middle."""


def can_be_read(facts: Mapping[str, Any]) -> bool:
    """Whether a file's facts are those of a version that `brought_up_to_date` takes."""
    return facts.get("feature_version") == READ and (
        facts.get("feature_set") != "pixels" or facts.get("image_features") == _before()
    )


def brought_up_to_date(
    arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A file's arrays and facts as this version writes them.

    Args:
        arrays: of the file; not checked yet.
        facts: for which `can_be_read` is true.
    """
    told = {**facts, "feature_version": FEATURE_VERSION}
    if facts.get("feature_set") != "pixels":  # the model's own features have not changed
        return dict(arrays), told
    told["image_features"] = list(IMAGE_FEATURES)
    return {name: _moved(name, array) for name, array in arrays.items()}, told


def _before() -> list[str]:
    return [name for name in IMAGE_FEATURES if name not in _ADDED]


def _moved(name: str, array: np.ndarray) -> np.ndarray:
    """An array with its image features where they are now; what is no such array, or damaged, as it is."""
    places = np.array([IMAGE_FEATURES.index(feature) for feature in _before()])
    count, more = len(places), len(_ADDED)
    part, _, what = name.rpartition("/")
    if part == "familiar":
        return _familiar(what, array, places)
    if what == "feature" and array.dtype == np.int32:
        known = (array >= 0) & (array < count)
        moved = np.where(array >= count, array + more, array)  # features of the question
        moved[known] = places[array[known]]
        return moved.astype(np.int32)
    if what == "coefficients" and array.ndim == 1 and len(array) >= count:
        wider = np.zeros(len(array) + more, array.dtype)
        wider[places], wider[count + more :] = array[:count], array[count:]
        return wider
    return array


def _familiar(what: str, array: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A mixture's array, with new features on which nothing differs from anything."""
    count, size = len(places), len(IMAGE_FEATURES)
    if what in ("middle", "scale") and array.shape == (count,):
        wider = np.full(size, _FAR if what == "scale" else 0, array.dtype)
        wider[places] = array
        return wider
    if what == "means" and array.ndim == 2 and array.shape[1] == count:
        means = np.zeros((len(array), size), array.dtype)
        means[:, places] = array
        return means
    if what == "factors" and array.ndim == 2 and array.shape[1] == count * (count + 1) // 2:
        rows, columns = np.triu_indices(count)
        whole = np.zeros((len(array), size, size), array.dtype)
        whole[:, places[rows], places[columns]] = array
        return whole[:, *np.triu_indices(size)]
    return array
