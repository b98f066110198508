"""The pieces of the demo's page as HTML: the table of all scales, the figures, the picture under its tokens.

Knows results and the templates; runs no model and imports no Gradio. Everything from outside is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from m3score.analysis.demo.token_grid import render_token_grid
from m3score.analysis.judged import explain, explain_complexity, letters_text, tokens_text
from m3score.analysis.templates import environment, template_text
from m3score.analysis.where import overlay, where
from m3score.models.m3.config import M3Config
from m3score.scoring.oracle import Complexity

if TYPE_CHECKING:
    from m3score.models.vision.complexity import VisionScore

TITLE = "m3score: how many visual tokens does this picture need?"
_NOTES = {
    "m3-tiny": "The model is m3-tiny, which learnt from drawings: its answers about photographs are guesses."
}


@dataclass(frozen=True)
class TimedAnswer:
    """The answer at one scale, and its cost."""

    answer: str
    visual_tokens: int
    seconds: float
    """From the question to the last token; the picture was encoded before."""


@dataclass(frozen=True)
class QuestionResult:
    """What the answers at all scales say about a question."""

    agreement: Mapping[int, float]
    """By tokens: agreement with the finest scale."""
    consistent: Mapping[int, bool]
    """By tokens: whether the answer is the finest scale's."""
    complexity: Complexity


@dataclass(frozen=True)
class Card:
    """One figure, and a remark on it."""

    name: str
    value: str
    remark: str


def css() -> str:
    """The page's style sheet."""
    return template_text("demo.css")


def intro(model: str) -> str:
    """What the page is, and what a bundled model can't do."""
    return _render("intro", _NOTES.get(model))


def problem(message: str) -> str:
    """One sentence that says what went wrong."""
    return _render("problem", message) if message else ""


def level_line(level: int, ladder: Sequence[int], visual_tokens: int | None = None) -> str:
    """What a position of the slider means.

    Args:
        level: the position, from 1.
        ladder: visual tokens per grid, coarsest first.
        visual_tokens: of this picture in total, if known.
    """
    return _render("level_line", level, len(ladder), ladder[level - 1], visual_tokens)


def table(
    question: str,
    ladder: Sequence[int],
    chosen: int,
    answers: Mapping[int, TimedAnswer],
    result: QuestionResult | None = None,
    predicted: int | None = None,
) -> str:
    """All scales at once, finest first.

    Args:
        question: what was asked.
        ladder: visual tokens per grid, coarsest first.
        chosen: the scale that the slider is at.
        answers: by tokens, the answers so far.
        result: once all answers are there.
        predicted: the scale that a predictor chose.
    """
    needed = result.complexity.required_tokens if result else None
    rows = []
    for level, tokens in reversed(list(enumerate(ladder, 1))):
        answer = answers.get(tokens)
        rows.append(
            {
                "level": level,
                "tokens": tokens,
                "chosen": tokens == chosen,
                "marks": [
                    text
                    for text, scale in (("needed", needed), ("predict_scale", predicted))
                    if scale == tokens
                ],
                "answer": answer.answer if answer else None,
                "visual_tokens": answer.visual_tokens if answer else None,
                "time": milliseconds(answer.seconds) if answer else None,
                "agreement": result.agreement[tokens] if result else None,
                "consistent": result.consistent[tokens] if result else None,
            }
        )
    return _render("table", question, rows, ladder[-1])


def cards(
    result: QuestionResult | None,
    ladder: Sequence[int],
    prediction: tuple[str, str] | None,
    encode_seconds: float | None,
) -> str:
    """Figures about the question: tokens needed, complexity, tokens predicted, time for encoding.

    Args:
        result: None until all scales have answered.
        ladder: visual tokens per grid, coarsest first.
        prediction: the predictor's choice and a remark on it; None until it was asked.
        encode_seconds: time of the vision tower and the projector.
    """
    items: list[Card] = []
    if result:
        items += _result_cards(result.complexity, ladder[-1])
    if prediction:
        items.append(Card("predict_scale would take", *prediction))
    if encode_seconds is not None:
        items.append(
            Card("Seeing the picture", milliseconds(encode_seconds), "vision tower, once for all scales")
        )
    return _render("cards", items, explain({"agreement"}, ladder[-1])) if items else ""


def _result_cards(complexity: Complexity, finest: int) -> list[Card]:
    needed = "none" if complexity.required_tokens is None else f"{complexity.required_tokens:,}"
    remark = f"per grid, of {finest:,}: from there on the answer stays"
    if not complexity.monotone:
        remark += "; a coarser scale had it too, a finer one lost it"
    told = _capital(explain_complexity({"agreement"}, finest))
    return [Card("Tokens needed", needed, remark), Card("Complexity", f"{complexity.complexity:.2f}", told)]


def vision_cards(score: VisionScore, seconds: float | None) -> str:
    """Figures about a picture that nothing was asked of.

    Args:
        score: of the picture.
        seconds: that it took.
    """
    finest = score.ladder[-1]
    harder = "to read" if score.reading_tokens > score.distinct_tokens else "distinct ones"
    told = _capital(explain_complexity({"vision"}, finest))
    items = [
        Card("Effective tokens", tokens_text(score.effective_tokens), f"of {finest:,}: the tokens {harder}"),
        Card("Distinct tokens", tokens_text(score.distinct_tokens), "that the vision tower tells apart"),
        Card(
            "Tokens to read",
            tokens_text(score.reading_tokens),
            letters_text(score.letter_height, score.reading_tokens),
        ),
        Card("Scale", f"{score.required_tokens:,}", "tokens per grid: the smallest that holds them"),
        Card("Complexity", f"{score.complexity:.2f}", told),
    ]
    if seconds is not None:
        items.append(Card("Seeing the picture", milliseconds(seconds), "vision tower and reader, once"))
    return _render("cards", items, explain({"vision"}, finest))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def token_grid(image: Image.Image, config: M3Config, tokens: int, looked: VisionScore | None = None) -> str:
    """The picture under the grid of its visual tokens; averaged over each cell, or where its complexity is.

    Args:
        image: mode RGB.
        config: the model's image handling.
        tokens: visual tokens per grid.
        looked: the picture's score without a question, for the map.
    """
    ruled, mosaic, (columns, rows) = render_token_grid(image, config, tokens)
    overview = config.image_aspect_ratio == "anyres"
    if looked is None:
        return _render("token_grid", _data_uri(ruled), _data_uri(mosaic), columns, rows, overview)
    found = where(looked)
    total, top = tokens_text(looked.effective_tokens), f"{found.top:.2f}"
    mapped = _data_uri(overlay(image, found))
    return _render("where_map", mapped, total, top, _data_uri(ruled), columns, rows, overview)


def milliseconds(seconds: float) -> str:
    """A duration for people: "25 ms" or "1.2 s"."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _render(macro: str, *values: Any) -> str:
    return str(getattr(environment().get_template("demo.html.j2").module, macro)(*values))


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
