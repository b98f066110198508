"""Where a model's files are: bundled with the package, in a folder, or on the Hugging Face hub.

Knows names, folders and downloads; knows nothing about the content of the files, except that some are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError, first_line

BUNDLED = ("m3-tiny",)
"""Models inside the package; they load without a network."""
AUTHORS = ("mucai/llava-v1.5-7b-m3", "mucai/llava-next-vicuna-7b-m3")
"""The checkpoints that the M3 paper's authors published, on the hub."""
STOCK = "Qwen/Qwen2.5-VL-3B-Instruct"
"""An example of a model that was not trained for a ladder of visual tokens."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL_FILES = ("*.json", "*.model", "*.jinja", "*.txt")


def locate(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder with the model's files, downloaded first if need be.

    Args:
        name_or_path: a name in BUNDLED, a folder, or a hub id such as "owner/name".
        revision: branch, tag or commit on the hub.

    Raises:
        M3ScoreError: there is no such model, or the hub can't be reached.
    """
    name = str(name_or_path)
    if name in BUNDLED:
        return _bundled(name)
    if name and Path(name).is_dir():
        return Path(name)
    if _HUB_ID.fullmatch(name) and not Path(name).exists():
        folder = fetch(name, [*_SMALL_FILES, "*.safetensors"], revision)
        if not any(folder.glob("*.safetensors")):  # older repositories hold pickled weights only
            folder = fetch(name, [*_SMALL_FILES, "pytorch_model*.bin"], revision)
        return folder
    raise M3ScoreError(
        f"There is no model {name!r}. Bundled: {', '.join(BUNDLED)}. Also allowed: a folder with a LLaVA-M3 "
        "checkpoint (the authors' format or transformers') or with another vision language model of a family "
        f"that m3score knows, or a hub id such as {AUTHORS[0]} or {STOCK}."
    )


def _bundled(name: str) -> Path:
    folder = Path(str(resources.files("m3score"))) / "assets" / name
    if not (folder / "config.json").is_file():
        raise M3ScoreError(
            f"The bundled model {name!r} is missing from this installation: install m3score anew."
        )
    return folder


def fetch(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download a hub repository's matching files, or find them in the cache. Raises M3ScoreError."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub client and the network raise a dozen kinds
        reason = first_line(error)
        raise M3ScoreError(
            f"Could not get {repo_id!r} from the Hugging Face hub; check the name, the network and, "
            f"for a private model, the token ({reason})."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises M3ScoreError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise M3ScoreError(f"{path.parent} has no {path.name}: it holds no model.") from error
    except (OSError, ValueError) as error:
        raise M3ScoreError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise M3ScoreError(f"{path} doesn't hold a JSON object.")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    return read_json(path) if path.is_file() else {}
