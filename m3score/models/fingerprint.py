"""A model's identity: a hash of its weights, so that a predictor knows whom it was calibrated on.

Reads files, imports no torch. Hashing 14 GB whole takes half a minute; evenly spaced blocks take a moment and
tell any two trainings apart, for training changes weights everywhere. (It is an identity, not a signature:
somebody who wants to can change weights between the blocks.)
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from m3score.common.errors import M3ScoreError
from m3score.models import hub

BLOCKS = 64
"""Blocks of a file that are read; a file of fewer bytes than these hold is read whole."""
BLOCK_BYTES = 1 << 16

_PATTERNS = ("*.safetensors", "pytorch_model*.bin")  # as transformers looks for them: the first that is there


def fingerprint(name_or_path: str | Path) -> str:
    """SHA-256 (hexadecimal) over each weight file's size and evenly spaced blocks of it.

    Args:
        name_or_path: what load_model takes: a bundled name, a folder, or a hub id (then downloaded if need
            be).

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
        for block in range(BLOCKS):  # the first block is the file's beginning, the last its end
            file.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
