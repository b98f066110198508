"""Find and load predictors, and see whether one may route a model.

Knows files and models' names, no images. Warnings are given once per process.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.common.files import printable
from m3score.models import hub
from m3score.models.fingerprint import fingerprint
from m3score.routing.codec import SUFFIX
from m3score.routing.predictor import Predictor

BUNDLED = ("m3-tiny",)
"""Predictors shipped inside the package, named after the models that they route."""

_warned: set[tuple[str, ...]] = set()


def load_predictor(name_or_path: str | os.PathLike[str] = "m3-tiny", *, model: Any = None) -> Predictor:
    """A predictor by name or from its file.

    Args:
        name_or_path: a name in BUNDLED, or a file that Predictor.save wrote. Read once per content.
        model: the target model: a name, a folder, a hub id or a loaded model. Another model than the one
            it was calibrated on is warned about, once.

    Raises:
        M3ScoreError: no such predictor, a damaged file, another feature version, or a model with another
            ladder.
    """
    path = _locate(name_or_path)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        raise M3ScoreError(
            f"There is no predictor {printable(str(name_or_path))!r}. Bundled: {', '.join(BUNDLED)}. Also "
            f"allowed: a file (*{SUFFIX}) that `m3score calibrate` wrote."
        ) from None
    predictor = _loaded(os.path.abspath(path), status.st_mtime_ns, status.st_size)
    if model is not None:
        check_model(predictor, model)
    return predictor


def _locate(name_or_path: str | os.PathLike[str]) -> str:
    if name_or_path in BUNDLED:
        path = Path(str(resources.files("m3score"))) / "assets" / f"{name_or_path}{SUFFIX}"
        if not path.is_file():
            raise M3ScoreError(
                f"The bundled predictor {name_or_path!r} is missing from this installation: install m3score "
                "anew."
            )
        return str(path)
    return os.fspath(name_or_path)


def predictor_digest(name_or_path: str | os.PathLike[str]) -> str:
    """SHA-256 (hexadecimal) of a predictor's file: what its predictions depend on.

    M3ScoreError if the file cannot be read.
    """
    path = _locate(name_or_path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise M3ScoreError(f"{printable(path)}: cannot read ({error.strerror or error}).") from error


@lru_cache(maxsize=8)
def _loaded(path: str, mtime_ns: int, size: int) -> Predictor:
    """The file as it is: time and size are there to see when it changed."""
    return Predictor.load(path)


def check_model(predictor: Predictor, model: Any) -> None:
    """Whether a predictor may route a model: other weights are warned about, once.

    Args:
        model: a name, a folder, a hub id, or a loaded model (anything with `name` and `ladder`).

    Raises:
        M3ScoreError: the model has another ladder, or there is no such model.
    """
    name = str(model if isinstance(model, str | os.PathLike) else model.name)
    ladder = _stated_ladder(name) if isinstance(model, str | os.PathLike) else tuple(model.ladder)
    if ladder is not None and ladder != predictor.ladder:
        raise M3ScoreError(
            f"the predictor of {predictor.model} chooses among {predictor.ladder} tokens, but {name} has the "
            f"ladder {ladder}: calibrate one for it with `m3score calibrate`."
        )
    if _weights(name) != predictor.fingerprint:
        warn_once(
            f"The predictor was calibrated on {predictor.model} (weights {predictor.fingerprint[:12]}); what "
            f"it promises does not hold for {name}, whose weights are others: use `m3score calibrate`.",
            "model",
            predictor.fingerprint,
            name,
        )


def _stated_ladder(name: str) -> tuple[int, ...] | None:
    """The ladder that a model's config.json names, if it does."""
    config = hub.read_json(hub.locate(name) / "config.json")
    scales = (config.get("m3score") or {}).get("ladder") or config.get("matryoshka_vis_token_scale")
    if not isinstance(scales, list) or not all(type(scale) is int for scale in scales):
        return None
    return tuple(sorted(scales))


@lru_cache(maxsize=8)
def _weights(name: str) -> str | None:
    try:
        return fingerprint(name)
    except M3ScoreError:
        return None  # a loaded model whose files are gone: not known to be the same


def warn_once(text: str, *key: str) -> None:
    """A warning that is given once per key."""
    if key not in _warned:
        _warned.add(key)
        warnings.warn(text, UserWarning, stacklevel=3)
