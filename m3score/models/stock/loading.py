"""From a folder to the parts of a StockModel: the network and its processor.

Knows transformers' automatic classes, and which packages they need.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError, MissingExtraError
from m3score.models.budgets.base import Family
from m3score.models.placing import check_complete, no_progress_bars, one_sentence

_NEEDED = ("torchvision", "num2words")
"""What processors of images import, beside transformers."""


@dataclass(frozen=True)
class StockParts:
    """The parts of a StockModel."""

    hf_model: Any
    processor: Any
    folder: Path
    """Where the weights were read."""


def load(folder: Path, family: Family, options: Mapping[str, Any]) -> StockParts:
    """Load a model's parts.

    Args:
        folder: with the model's files, in transformers' format.
        family: the model's.
        options: from placing.options.

    Raises:
        MissingExtraError: its processor needs a package that is not installed.
        M3ScoreError: it can't be loaded, or can't be talked to.
    """
    with one_sentence(folder), no_progress_bars():
        from transformers import AutoModelForImageTextToText, AutoProcessor

        with _processor_packages(family):
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        kind: Any = AutoModelForImageTextToText
        hf_model, report = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **options
        )
    check_complete(folder, report)
    if not getattr(processor, "chat_template", None):
        raise M3ScoreError(
            f"{folder} has no chat template: take the variant that was trained to follow instructions."
        )
    return StockParts(hf_model.eval(), processor, folder)


@contextmanager
def _processor_packages(family: Family) -> Iterator[None]:
    """Say in one sentence what a processor lacks."""
    try:
        yield
    except (ImportError, RuntimeError, ValueError) as error:
        if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
            raise MissingExtraError(
                f"A model of the family {family.name} ({' and '.join(missing)})", "vlm"
            ) from error
        if "torchvision::" in str(error):
            raise M3ScoreError(
                "The installed torchvision does not fit the installed torch: install the pair that "
                "https://pytorch.org/get-started names for this machine."
            ) from error
        raise
