"""All families, and how the family of a model is found. docs/models.md says how to add one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models import hub
from m3score.models.budgets.base import Family
from m3score.models.budgets.gemma import Gemma3, Gemma4
from m3score.models.budgets.internvl import InternVL
from m3score.models.budgets.llava_onevision import LlavaOnevision
from m3score.models.budgets.qwen_vl import Qwen3VL, QwenVL
from m3score.models.budgets.smolvlm import SmolVLM

FAMILIES: tuple[type[Family], ...] = (QwenVL, Qwen3VL, InternVL, SmolVLM, LlavaOnevision, Gemma3, Gemma4)
"""A new family is added here."""

_FILES = ("preprocessor_config.json", "processor_config.json")  # what the later one says counts


def family_of(model_type: str | None) -> type[Family] | None:
    """The family that a configuration's `model_type` belongs to; None if there is none."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def find_family(name: str) -> type[Family]:
    """The family of that name; M3ScoreError if there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise M3ScoreError(f"There is no family {name!r} of models; there are {', '.join(family_names())}.")


def guess_family(model: str) -> type[Family] | None:
    """The family that a model's name hints at, such as "Qwen/Qwen2.5-VL-3B-Instruct"; None if none does."""
    plain = re.sub(r"[-_. ]", "", model.lower())
    return next((family for family in FAMILIES if any(hint in plain for hint in family.hints)), None)


def family_names() -> list[str]:
    """The names of all families."""
    return [family.name for family in FAMILIES]


def read_family(folder: Path, model_type: str | None) -> Family:
    """The family of the model in a folder, with what its processor's files say.

    Raises:
        M3ScoreError: the model belongs to no family; the sentence says how to add one.
    """
    family = family_of(model_type)
    if family is None:
        raise M3ScoreError(
            f"{folder} holds a model of type {model_type!r}, whose budgets of visual tokens are not known: "
            f"m3score knows {', '.join(name for one in FAMILIES for name in one.model_types)}, and M3 models "
            "(llava_llama, llava, llava_next). CONTRIBUTING.md says how to add a family, in one file."
        )
    return make_family(family, read_settings(folder))


def make_family(family: type[Family], settings: Mapping[str, Any]) -> Family:
    """A family with a processor's settings; M3ScoreError where they can't be understood."""
    try:
        return family.from_settings(settings)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise M3ScoreError(f"The settings of the {family.name} processor can't be read: {error}.") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """What a processor's files say: its own keys, and over them those of its image processor."""
    settings: dict[str, Any] = {}
    for name in _FILES:
        content = hub.read_json_if_there(folder / name)
        settings |= {key: value for key, value in content.items() if not isinstance(value, dict)}
        settings |= {key: content[key] for key in ("size", "max_image_size") if key in content}
        settings |= content.get("image_processor") or {}
    return settings


def restore(stored: Mapping[str, Any]) -> Family:
    """The family that `Family.to_dict` wrote. M3ScoreError for what no family wrote."""
    family = find_family(str(stored.get("family")))
    names = {field.name for field in fields(family)}
    values = {key: _tuples(value) for key, value in stored.items() if key in names}
    try:
        return family(**values)
    except (TypeError, ValueError) as error:
        raise M3ScoreError(f"The stored settings of {family.name} can't be read: {error}.") from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
