"""A hash of a model's weights, so that a predictor knows which model it was calibrated on.

Reads files, imports no torch. Hashing all of 14 GB takes half a minute. Evenly spaced blocks take a moment
and tell any two trained models apart, because training changes weights everywhere. (The hash identifies
weights, but does not protect them: weights between the blocks can be changed unnoticed.)
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models import hub
from m3score.models.base import LadderAnswerer

BLOCKS = 64
"""Blocks of a file that are hashed; a file with no more bytes than these is hashed whole."""
BLOCK_BYTES = 1 << 16

_HASHED_VALUES = 4096

_PATTERNS = ("*.safetensors", "pytorch_model*.bin")  # the first that exists, as in transformers


def fingerprint(name_or_path: str | Path) -> str:
    """SHA-256 (hexadecimal) over each weight file's size and evenly spaced blocks of it.

    Args:
        name_or_path: as for load_model: a bundled name, a folder, or a hub id (downloaded if need be).

    Raises:
        M3ScoreError: there is no such model, it has no weight files, or they cannot be read.
    """
    folder = hub.locate(name_or_path)
    digest = hashlib.sha256()
    try:
        for path in _weights(folder):
            _add(digest, path)
    except OSError as error:
        raise M3ScoreError(f"{folder}: cannot read the weights ({error.strerror or error}).") from error
    return digest.hexdigest()


def calibration_identity(model: LadderAnswerer) -> str:
    """What labels and predictors say of the model that they belong to: its `identity`.

    An M3 model's is that of its weights alone, which its files tell without loading it.
    """
    return str(getattr(model, "calibration_identity", None) or model.identity)


def hash_of_tensors(hf_model: Any) -> str:
    """Hash of every tensor's name, shape and some evenly spaced values."""
    digest = hashlib.sha256()
    for name, tensor in hf_model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _HASHED_VALUES)].float().cpu().numpy()
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()


def _weights(folder: Path) -> list[Path]:
    for pattern in _PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return found
    raise M3ScoreError(f"{folder} holds no weights ({' or '.join(_PATTERNS)}).")


def _add(digest: hashlib._Hash, path: Path) -> None:
    size = os.path.getsize(path)
    digest.update(size.to_bytes(8, "little"))
    with open(path, "rb") as file:
        if size <= BLOCKS * BLOCK_BYTES:
            digest.update(file.read())
            return
        for block in range(BLOCKS):  # the first block starts the file, the last ends it
            file.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
