"""What the numbers of a score table are: it depends on what judged its rows (column judged_by).

A table has one leading number, and the terminal, the report and the demo say the same about it:

- vision, where no question was asked: *effective tokens*. Complexity is their logarithm, and
  `required_tokens` the smallest scale that holds them.
- answers of a model: *tokens needed*, `required_tokens`. Complexity says how far answers change on the way.
- a predictor: *tokens predicted*.

Knows rows and words, not where they are shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Any

from m3score.tables.schema import absent

ANSWERS = "answers"
"""What judged rows of tables that have no column judged_by yet."""
PREDICTION = "prediction"
_BY_ANSWERS = frozenset({ANSWERS, "agreement", "right answers", "mixed"})
_PATCH, _SMALLEST = 14, 7
"""Pixels of a vision tower's patch, and of the smallest letters that such models read."""


class Mode(StrEnum):
    """What a table's leading number is."""

    vision = "vision"
    answers = "answers"
    predicted = "predicted"
    several = "several"
    """Rows that were judged by different things: their complexities are different quantities."""
    other = "other"
    """Complexity alone, as of measures of pixels."""


def judge_of(row: Mapping[Any, Any]) -> str | None:
    """What judged a row that has a score: its judged_by, else what its columns tell; None for a measure."""

    def given(column: str) -> bool:
        return not absent(row.get(column))

    if given("judged_by"):
        return str(row["judged_by"])
    if given("required_tokens") or given("solved"):
        return ANSWERS
    return PREDICTION if given("predicted_tokens") else None


def mode_of(judges: Collection[str | None]) -> Mode:
    """What leads in a table whose rows were judged by these. A cascade's predictions count as answers: they
    were put onto the scale of these."""
    kinds = {Mode.answers if judge in _BY_ANSWERS else judge for judge in judges}
    if kinds == {Mode.answers, PREDICTION}:
        return Mode.answers
    if len(kinds) > 1:
        return Mode.several
    modes: dict[str | None, Mode] = {
        "vision": Mode.vision,
        Mode.answers: Mode.answers,
        PREDICTION: Mode.predicted,
    }
    return modes.get(kinds.pop(), Mode.other) if kinds else Mode.other


def is_unsolved(row: Mapping[str, Any]) -> bool:
    """Whether no scale gave right answers. That is not complex: the model does not know."""
    return not absent(row.get("solved")) and str(row["solved"]).lower() in ("false", "0")


def explain(judges: Collection[str | None], finest: int | None) -> str:
    """What was measured, in one sentence; "" where a table does not tell.

    Args:
        judges: of the table's rows.
        finest: tokens per grid of the finest scale, if known.
    """
    mode, most = mode_of(judges), f"all {finest:,}" if finest else "all tokens"
    if mode is Mode.vision:
        return (
            "Effective tokens: how many distinct visual tokens a picture has for the vision tower, or how "
            "many it takes to read its text, whichever is more; no question was asked."
        )
    if mode is Mode.answers:
        asked = {judge for judge in judges if judge in _BY_ANSWERS}
        good = f"stay what the model says with {most}"
        if asked == {"right answers"}:
            good = "are right"
        elif asked != {"agreement"}:
            good = f"are right or, where no right answer is known, {good}"
        return f"Tokens needed: the fewest visual tokens per grid with which the answers {good}."
    if mode is Mode.predicted:
        return "Tokens predicted: from cheap features of the picture; no model looked at it."
    if mode is Mode.several:
        names = ", ".join(sorted(judge or "other measures" for judge in judges))
        return f"Judged by different things ({names}): compare complexities only within one of them."
    return ""


def explain_complexity(judges: Collection[str | None], finest: int | None) -> str:
    """What complexity says beside the leading number, as the end of a sentence."""
    mode, most = mode_of(judges), f"all {finest:,}" if finest else "all"
    if mode is Mode.vision:
        return f"the logarithm of effective tokens, from 0 (one token) to 1 ({most})"
    if set(judges) == {"right answers"}:
        return f"the logarithm of tokens needed, averaged over questions, from 0 (one token) to 1 ({most})"
    if mode is Mode.answers:
        return "how far answers change with fewer tokens, from 0 (not at all) to 1 (wholly, at every scale)"
    return "from 0 (simple) to 1 (complex)"


def tokens_text(tokens: float) -> str:
    """A number of tokens: whole numbers from 10 on, "9.5" below."""
    return f"{tokens:.1f}".removesuffix(".0") if tokens < 9.95 else f"{tokens:,.0f}"


def letters_text(height: float | None, reading_tokens: float) -> str:
    """How large a picture's letters are, in words.

    Args:
        height: of capitals, were the picture's longest side 336 pixels.
        reading_tokens: how many tokens it takes to read them; below one there is no text to speak of.
    """
    if height is None or absent(height) or reading_tokens < 1:
        return "no text to speak of"
    share = f"1/{336 / height:.0f} of the longest side"
    if height < _SMALLEST:
        return f"tiny letters ({share})"
    if height < _PATCH:
        return f"small letters ({share})"
    return f"{'medium' if height < 3 * _PATCH else 'large'} letters ({share})"
