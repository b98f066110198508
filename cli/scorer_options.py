"""Options that belong to scorers: how the command line spells them, and how they become a scorer's own.

A scorer's options class says what it takes (m3score.scoring.registry); nothing here knows which has what.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer

from m3score.common.errors import M3ScoreError

SCORERS = "Other scorers"


def scorers_like(incomplete: str) -> list[str]:
    """Names of scorers for the shell to complete."""
    from m3score.scoring.registry import scorer_names

    return [name for name in scorer_names() if name.startswith(incomplete)]


ScorerName = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        metavar="NAME",
        autocompletion=scorers_like,
        help="vision: how many distinct visual tokens the model's vision tower sees, or it takes to read the "
        "picture. model: ask it at every scale. predictor: predict complexity from cheap features, faster. "
        "cascade: the predictor scores all, the model what the predictor is unsure of. jpeg, edges, entropy: "
        "simple measures of pixels. cat: --model describes the image and --cat-llm rates that. alit: how "
        "many adaptive tokens rebuild it. Installed packages may bring others.",
        show_default="vision without a question, model with one",
    ),
]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--scorer-option",
        metavar="KEY=VALUE",
        help="An option of the scorer that has no name of its own here. Repeatable.",
        rich_help_panel=SCORERS,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SHARE",
        help="With --scorer cascade: the share of the images that the model is asked about.",
        show_default="10%",
    ),
]
MaxModelImages = Annotated[
    int | None,
    typer.Option(
        "--max-model-images", min=0, metavar="N", help="The same as a number of images.", show_default=False
    ),
]
CatLlm = Annotated[
    str | None,
    typer.Option(
        "--cat-llm",
        metavar="NAME",
        help="The language model that rates descriptions: a hub id or a folder.",
        rich_help_panel=SCORERS,
    ),
]
CatPrompts = Annotated[
    str | None,
    typer.Option(
        "--cat-prompts",
        metavar="FILE",
        help="What is asked, and what ratings mean (.toml).",
        show_default="the bundled cat.toml",
        rich_help_panel=SCORERS,
    ),
]
AlitModel = Annotated[
    str | None,
    typer.Option(
        "--alit-model",
        metavar="FOLDER",
        help="A tokenizer that python -m m3score.calibration.training.alit wrote. "
        "\\[default: a small bundled one]",
        rich_help_panel=SCORERS,
    ),
]
AlitThreshold = Annotated[
    float | None,
    typer.Option(
        "--alit-threshold",
        metavar="SHARE",
        help="The mean error per channel, of 1, that a rebuilt image has to stay under.",
        show_default="the tokenizer's own",
        rich_help_panel=SCORERS,
    ),
]

_FIELDS = {"answers": "coarse_answers"}
"""Where an option and the field of a scorer's options class are called differently."""
_OF_SCORERS = (
    *("model", "device", "dtype", "quantize", "revision", "rungs", "batch_size", "max_new_tokens"),
    *("question", "questions", "answers", "rule", "sufficiency", "frames"),
    *("budget", "max_model_images", "predictor", "max_drop", "confidence", "per", "mean_tokens"),
    "written_as",
    *("cat_llm", "cat_prompts", "alit_model", "alit_threshold"),
    *("endpoint", "knob", "family", "key_env", "concurrency", "timeout", "thinking", "price_in", "price_out"),
)
"""Options of commands that belong to scorers."""


def spelled(field: str) -> str:
    """How the command line calls a field of a scorer's options class."""
    name = next((option for option, other in _FIELDS.items() if other == field), field)
    if name not in _OF_SCORERS:
        return f"--scorer-option {field}=..."
    return f"--{name.replace('_', '-')}"


def given_to_scorer(
    ctx: typer.Context, known: Sequence[str], pairs: Sequence[str] | None = None
) -> dict[str, Any]:
    """What the user gave of a scorer's options, by the names of the fields of its options class.

    Args:
        ctx: of the command.
        known: the fields of that class. What is given by environment variables counts for these only.
        pairs: of --scorer-option.
    """
    given: dict[str, Any] = {}
    for option in _OF_SCORERS:
        source, field = getattr(ctx.get_parameter_source(option), "name", ""), _FIELDS.get(option, option)
        if source == "COMMANDLINE" or (source == "ENVIRONMENT" and field in known):
            given[field] = _plain_value(ctx.params[option])
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals:
            raise M3ScoreError(f"--scorer-option {pair}: give KEY=VALUE.")
        given[key.strip().replace("-", "_")] = value
    return given


def _plain_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_value(one) for one in value]
    if isinstance(value, StrEnum):
        return value.value
    return as_utf8(value) if isinstance(value, str) else value


def as_utf8(text: str) -> str:
    """Text of an option, which Python took apart into bytes where the locale is not UTF-8."""
    if not any("\udc80" <= char <= "\udcff" for char in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise M3ScoreError(f"{text.encode(errors='backslashreplace').decode()!r}: not UTF-8.") from None


def columns_of(options: Mapping[str, Any]) -> Any:
    """Columns of the options --image-column, --question-column and --answers-column.

    What --question says is asked in place of what a source asks, unless a column was named for that.
    """
    from m3score.data.item import Columns

    question = options["question_column"]
    return Columns(
        options["image_column"],
        "" if options.get("question") and question is None else question,
        options["answers_column"],
    )
