"""A predictor's file: safetensors with one JSON text, read without executing anything.

Layout: arrays `image_only/*` and `with_question/*` (ensemble.py), `image_only_gains/0/*` and so on for each
step of the ladder (gains.py), `vision/distinct/*`
and `vision/reading/*` (demands.py), `calibration/*` and `questions/*` (record.py),
`familiar/*` (familiar.py), and under the metadata key "m3score_predictor" a JSON object with everything else.
Older files lack what is familiar, the gains, the questions and the regressor of the vision score.

What a file says is not trusted: the JSON's types, the arrays' types, shapes and values and the trees'
structure are checked before a predictor is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from m3score.common.errors import M3ScoreError, one_line
from m3score.routing.features.image import FEATURE_VERSION
from m3score.routing.older import brought_up_to_date, can_be_read
from m3score.routing.promises.familiar import Familiarity
from m3score.routing.record import CalibrationRecord, QuestionRecord
from m3score.routing.regression.demands import Demands
from m3score.routing.regression.ensemble import Ensemble
from m3score.routing.regression.gains import Gains
from m3score.tables.io import read_whole, write_whole
from m3score.tables.schema import printable

FORMAT_VERSION = 1
SUFFIX = ".predictor"
MAX_PREDICTOR_BYTES = 256 << 20
"""Larger files are refused: a predictor has a few megabytes."""

_KEY = "m3score_predictor"
_FORMS = ("image_only", "with_question")
_DEMANDS = ("distinct", "reading")
_KINDS = {
    "feature_version": (int, "a whole number"),
    "model": (str, "text"),
    "fingerprint": (str, "text"),
    "feature_set": (str, "text"),
    "ladder": (list, "a list"),
    "image_features": (list, "a list"),
    "question_features": (list, "a list"),
    "data": (dict, "an object"),
    "card": (str, "text"),
}


def save(contents: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a predictor's contents, whole or not at all.

    Args:
        contents: the facts of _KINDS, and image_only and with_question (Ensemble), their gains, vision
            (Demands), calibration (CalibrationRecord) and familiar (Familiarity) by these names; None for
            what there is not.
        path: must end in SUFFIX.

    Raises:
        M3ScoreError: another suffix, a place that is closed, or facts that are no JSON.
    """
    name = printable(str(path))
    if not str(path).endswith(SUFFIX):
        raise M3ScoreError(f"{name}: a predictor's file name must end in {SUFFIX}.")
    facts = {"format_version": FORMAT_VERSION} | {key: contents[key] for key in _KINDS}
    try:
        text = json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise M3ScoreError(f"{name}: the predictor's data must be JSON-ready ({error}).") from None
    write_whole(path, safetensors.numpy.save(_arrays(contents), metadata={_KEY: text}))


def _arrays(contents: Mapping[str, Any]) -> dict[str, np.ndarray]:
    record: CalibrationRecord = contents["calibration"]
    arrays = {"calibration/image_only": record.image_only, "calibration/sufficient": record.sufficient}
    if record.with_question is not None:
        arrays["calibration/with_question"] = record.with_question
    for form in _FORMS:
        kept, gains = getattr(record, f"gains_{form}"), contents[f"{form}_gains"]
        if kept is not None and gains is not None:
            arrays[f"calibration/gains_{form}"] = kept
            for k, step in enumerate(gains.steps):
                arrays |= {f"{form}_gains/{k}/{name}": array for name, array in step.arrays().items()}
        if (ensemble := contents[form]) is not None:
            arrays |= {f"{form}/{name}": array for name, array in ensemble.arrays().items()}
    if (vision := contents["vision"]) is not None:
        for part in _DEMANDS:
            arrays |= {f"vision/{part}/{name}": a for name, a in getattr(vision, part).arrays().items()}
        arrays["vision/floor"] = np.array([vision.floor])
    if (asked := record.questions) is not None:
        held = {
            "image": asked.image,
            "most": np.array([asked.most], np.int32),
            "sufficient": asked.sufficient,
        }
        held |= {form: getattr(asked, form) for form in _FORMS if getattr(asked, form) is not None}
        arrays |= {f"questions/{name}": array for name, array in held.items()}
    if (familiar := contents["familiar"]) is not None:
        arrays |= {f"familiar/{name}": array for name, array in familiar.arrays().items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` was given. Whether the parts fit together is for whoever makes something of them.

    Raises:
        M3ScoreError: one sentence that names the file: not there, too large, no predictor's file, damaged, or
            of another format or feature version.
    """
    name = printable(str(path))
    arrays, facts = _contents(path, name)
    if can_be_read(facts):
        arrays, facts = brought_up_to_date(arrays, facts)
    _check_facts(facts, name)
    forms = {form: _ensemble(form, arrays, name) for form in _FORMS}
    parts, asked, known = (_under(prefix, arrays) for prefix in ("calibration/", "questions/", "familiar/"))
    if forms["image_only"] is None or not {"image_only", "sufficient"} <= parts.keys():
        raise M3ScoreError(f"{name}: damaged predictor: the form image_only or its calibration is missing.")
    record = CalibrationRecord(
        parts["image_only"],
        parts.get("with_question"),
        parts["sufficient"],
        parts.get("gains_image_only"),
        parts.get("gains_with_question"),
        _questions(asked, name) if asked else None,
    )
    familiar = Familiarity.from_arrays(known, f"{name}: damaged predictor: familiar") if known else None
    gains = {f"{form}_gains": _gains(f"{form}_gains", arrays, name) for form in _FORMS}
    facts = {key: tuple(v) if isinstance(v, list) else v for key, v in facts.items() if key in _KINDS}
    vision = _demands(arrays, name)
    return {"calibration": record, "familiar": familiar, "vision": vision, **forms, **gains, **facts}


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def _questions(arrays: Mapping[str, np.ndarray], name: str) -> QuestionRecord:
    most = arrays.get("most")
    whole = {"image", "image_only", "sufficient"} <= arrays.keys()
    if not whole or most is None or most.dtype != np.int32 or most.shape != (1,):
        raise M3ScoreError(f"{name}: damaged predictor: the calibration's questions are not whole.")
    return QuestionRecord(
        arrays["image"],
        int(most[0]),
        arrays["image_only"],
        arrays.get("with_question"),
        arrays["sufficient"],
    )


def _contents(path: str | os.PathLike[str], name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON object of a file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise M3ScoreError(f"{name}: not a file.")
    if os.path.isfile(path) and os.path.getsize(path) > MAX_PREDICTOR_BYTES:
        raise M3ScoreError(f"{name}: larger than {MAX_PREDICTOR_BYTES >> 20} MiB, so no predictor.")
    content = read_whole(os.path.abspath(path))
    try:
        arrays = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (
        Exception
    ) as error:  # safetensors' own errors, types it has no numpy type for, nested too deep, ...
        reason = one_line(error, 120)
        raise M3ScoreError(f"{name}: not a predictor's file, or damaged ({reason}).") from None
    text = (header.get("__metadata__") or {}).get(_KEY)
    if text is None:
        raise M3ScoreError(f"{name}: a safetensors file, but no predictor's.")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise M3ScoreError(f"{name}: damaged predictor: its description is no JSON ({error}).") from None
    if not isinstance(facts, dict):
        raise M3ScoreError(f"{name}: damaged predictor: its description is no JSON object.")
    return arrays, facts


def _check_facts(facts: Mapping[str, Any], name: str) -> None:
    written, version = facts.get("format_version"), facts.get("feature_version")
    if written != FORMAT_VERSION:
        raise M3ScoreError(
            f"{name}: format version {repr(written)[:60]}; this m3score reads {FORMAT_VERSION}."
        )
    if version != FEATURE_VERSION:  # before anything that another version may have changed
        raise M3ScoreError(
            f"{name}: fitted on feature version {repr(version)[:60]}, but this m3score computes version "
            f"{FEATURE_VERSION}: calibrate anew with `m3score calibrate`."
        )
    for key, (kind, wanted) in _KINDS.items():
        if type(facts.get(key)) is not kind:
            raise M3ScoreError(f"{name}: damaged predictor: {key!r} must be {wanted}.")
    for key in ("image_features", "question_features"):
        if not all(isinstance(feature, str) for feature in facts[key]):
            raise M3ScoreError(f"{name}: damaged predictor: {key!r} must hold names.")


def _gains(key: str, arrays: Mapping[str, np.ndarray], name: str) -> Gains | None:
    held = {array.split("/")[1] for array in arrays if array.startswith(f"{key}/")}
    if not held:
        return None
    if held != {str(k) for k in range(len(held))}:
        raise M3ScoreError(f"{name}: damaged predictor: {key} must have steps that are numbered from 0 on.")
    steps = tuple(_ensemble(f"{key}/{k}", arrays, name) for k in range(len(held)))
    try:
        return Gains(tuple(step for step in steps if step is not None))
    except M3ScoreError as error:
        raise M3ScoreError(f"{name}: damaged predictor: {key}: {error}") from None


def _demands(arrays: Mapping[str, np.ndarray], name: str) -> Demands | None:
    parts = {part: _ensemble(f"vision/{part}", arrays, name) for part in _DEMANDS}
    distinct, reading = (parts[part] for part in _DEMANDS)
    if distinct is None and reading is None:
        return None
    if distinct is None or reading is None:
        raise M3ScoreError(f"{name}: damaged predictor: the vision score needs {' and '.join(_DEMANDS)}.")
    floor = arrays.get("vision/floor", np.zeros(1))
    if floor.dtype != np.float64 or floor.shape != (1,):
        raise M3ScoreError(f"{name}: damaged predictor: 'vision/floor' must be one number.")
    try:
        return Demands(distinct, reading, float(floor[0]))
    except M3ScoreError as error:
        raise M3ScoreError(f"{name}: damaged predictor: {error}") from None


def _ensemble(form: str, arrays: Mapping[str, np.ndarray], name: str) -> Ensemble | None:
    kept = _under(f"{form}/", arrays)
    return Ensemble.from_arrays(kept, where=f"{name}, {form}") if kept else None
