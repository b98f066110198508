"""The pieces of the demo's page as HTML: the table of all scales, the figures beside it, what the model sees.

Knows results and markup; runs no model and imports no Gradio. Everything from outside is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from m3score.analysis.demo.token_grid import glimpses
from m3score.models.m3.config import M3Settings
from m3score.scoring.oracle import Complexity

TITLE = "m3score: how many visual tokens does this picture need?"

_INTRO = """<h1>How many visual tokens does this picture need?</h1>
<p>A Matryoshka multimodal model looks at the same picture through few visual tokens or many.
Give it a picture and a question, then move the slider: from one token, which stands for the whole picture, to
all of them.{note}</p>"""
_NOTES = {"m3-tiny": " The model is m3-tiny, which learnt from drawings: of photographs it knows little."}

CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto !important;
  --m3-soft: #566070; }
.dark .gradio-container, .gradio-container.dark, .dark { --m3-soft: #b3bcc9; }
.html-container:empty, #problem:not(:has(.problem)), #cards:not(:has(.card)), #table:not(:has(table)) {
  display: none; }
.gradio-container main { width: 100%; } .gradio-container .html-container { padding: 0 !important; }
#intro h1 { font-size: 1.6rem; margin: .2rem 0; } #intro p { max-width: 62rem; margin: 0; }
#problem .problem { border-left: 4px solid #c0392b; padding: .55rem .9rem; border-radius: 4px;
  font-weight: 600; background: color-mix(in srgb, #c0392b 12%, transparent); color: var(--body-text-color); }
#answer textarea { font-size: 1.5rem; font-weight: 600; line-height: 1.35; }
#main > * { min-width: 0 !important; }
#examples .gallery-item img { height: 4.6rem; width: 4.6rem; }
.m3 { color: var(--body-text-color); font-size: .95rem; }
.m3 .soft, .m3 figcaption, .m3 th, .m3 .card span { color: var(--m3-soft); font-size: .84rem; }
.m3 table, .m3 tr { border: 0 !important; }
.m3 table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.m3 caption { text-align: left; font-weight: 600; padding: 0 0 .4rem; }
.m3 th, .m3 td { text-align: left; padding: .42rem .6rem; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.m3 th { font-weight: 600; vertical-align: bottom; }
.m3 td.answer { font-weight: 600; overflow-wrap: anywhere; min-width: 7rem; }
.m3 td.number, .m3 th.number { text-align: right; white-space: nowrap; }
.m3 tr.chosen td { background: color-mix(in srgb, var(--color-accent) 16%, transparent); }
.m3 tr.chosen td:first-child { box-shadow: inset 4px 0 0 var(--color-accent); }
.m3 .yes { color: #147a43; font-weight: 700; } .m3 .no { color: #b3261e; font-weight: 700; }
.dark .m3 .yes { color: #5dd598; } .dark .m3 .no { color: #ff9a90; }
.m3 .bar { display: inline-block; width: 3.4rem; height: .5rem; border-radius: 3px; margin-right: .45rem;
  background: var(--border-color-primary); overflow: hidden; }
.m3 .bar i { display: block; height: 100%; background: var(--color-accent); }
.m3 .mark { display: inline-block; font-size: .75rem; padding: 0 .45rem; border-radius: 999px;
  font-weight: 400; white-space: nowrap; border: 1px solid var(--m3-soft); margin: 0 0 0 .45rem; }
.m3 .wide { overflow-x: auto; contain: inline-size; }
.m3 .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; }
.m3 .card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .5rem .8rem;
  background: var(--block-background-fill); }
.m3 .card span { display: block; line-height: 1.35; } .m3 .card b { display: block; font-size: 1.35rem; }
.m3 .seen { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; }
.m3 figure { margin: 0; }
.m3 img { width: 100%; border-radius: 6px; display: block; margin-bottom: .3rem; }
@media (max-width: 800px) {
  #main { flex-direction: column; }
  .m3 .bar, .m3 .total, .m3 td:first-child, .m3 th:first-child { display: none; }
  .m3 th, .m3 td { padding: .4rem .2rem; } .m3 .mark { margin-left: .2rem; padding: 0 .25rem; }
  .m3 th { font-size: .76rem; } .m3 td.answer { min-width: 5rem; }
  .m3 th.number { white-space: normal; }
}
"""


@dataclass(frozen=True)
class Said:
    """One answer at one scale, and what it took."""

    answer: str
    visual_tokens: int
    seconds: float
    """From the question to the last token; the picture had been encoded before."""


@dataclass(frozen=True)
class Judged:
    """What all scales together tell about a question."""

    agreement: Mapping[int, float]
    """By tokens: how alike the finest scale's distributions are."""
    consistent: Mapping[int, bool]
    """By tokens: whether the answer is the finest scale's."""
    complexity: Complexity


def intro(model: str) -> str:
    """What the page is, and what a bundled model cannot do."""
    return _INTRO.format(note=_NOTES.get(model, ""))


def problem(message: str) -> str:
    """A sentence that says what went wrong; nothing for an empty one."""
    return f'<div class="problem" role="alert">{escape(message)}</div>' if message else ""


def level_line(level: int, ladder: Sequence[int], visual_tokens: int | None = None) -> str:
    """What a place of the slider stands for."""
    tokens = ladder[level - 1]
    text = f"Level {level} of {len(ladder)}: <b>{_count(tokens, 'visual token')}</b> per grid"
    if visual_tokens is not None and visual_tokens != tokens:
        text += f", {visual_tokens:,} in all for this picture"
    return f'<div class="m3">{text}.</div>'


def table(
    question: str,
    ladder: Sequence[int],
    chosen: int,
    said: Mapping[int, Said],
    judged: Judged | None = None,
    predicted: int | None = None,
) -> str:
    """All scales at once.

    Args:
        question: what was asked.
        ladder: visual tokens per grid, coarsest first.
        chosen: tokens where the slider is.
        said: by tokens, the answers that are there already.
        judged: what they tell together, once all are there.
        predicted: tokens that a predictor would have chosen.
    """
    needed = judged.complexity.required_tokens if judged else None
    rows = []
    for level, tokens in reversed(list(enumerate(ladder, 1))):
        marks = "".join(
            f'<span class="mark">{text}</span>'
            for text, at in (("needed", needed), ("predict_scale", predicted))
            if at == tokens
        )
        cells = [f"<td>{level}</td>", f'<td class="number">{tokens:,}</td>']
        cells += _answer_cells(tokens, ladder[-1], said.get(tokens), judged, marks)
        state = ' class="chosen" aria-current="true"' if tokens == chosen else ""
        rows.append(f'<tr data-tokens="{tokens}"{state}>{"".join(cells)}</tr>')
    head = "".join(
        f'<th scope="col"{kind}>{text}</th>'
        for text, kind in (
            ("Level", ""),
            ("Tokens per grid", ' class="number"'),
            ("Answer", ""),
            (f"As with {ladder[-1]:,}", ""),
            ("Agreement", ""),
            ("Visual tokens", ' class="number total"'),
            ("Time", ' class="number"'),
        )
    )
    return (
        '<div class="m3"><div class="wide" tabindex="0" role="region" aria-label="Answers at every scale">'
        f"<table><caption>{escape(question)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _answer_cells(
    tokens: int, finest: int, said: Said | None, judged: Judged | None, marks: str
) -> list[str]:
    if said is None:
        return [f'<td class="answer soft">…{marks}</td>', "<td></td>" * 2, '<td class="total"></td><td></td>']
    text = escape(said.answer) or '<span class="soft">(nothing)</span>'
    cells = [f'<td class="answer">{text}{marks}</td>']
    if judged is None:
        cells += ["<td></td>", "<td></td>"]
    else:
        alike = judged.consistent[tokens]
        sign, word, kind = ("✓", "yes", "yes") if alike else ("✗", "no", "no")
        cells.append(f'<td><span class="{kind}" aria-label="{word}">{sign}</span></td>')
        share = judged.agreement[tokens]
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{share:.0%}"></i></span>'
        cells.append(f"<td>{bar}{share:.2f}</td>")
    cells.append(f'<td class="number total">{said.visual_tokens:,}</td>')
    cells.append(f'<td class="number">{milliseconds(said.seconds)}</td>')
    return cells


def cards(
    judged: Judged | None,
    ladder: Sequence[int],
    foreseen: tuple[str, str] | None,
    encode_seconds: float | None,
) -> str:
    """Figures about the question: complexity, what is needed, what was foretold, what the picture cost.

    Args:
        judged: what all scales tell together, or None while they are still answering.
        ladder: visual tokens per grid, coarsest first.
        foreseen: the predictor's choice and a remark on it, or None before it was asked.
        encode_seconds: the vision tower and projector's time.
    """
    shown = []
    if judged:
        result = judged.complexity
        shown.append(
            (
                "Complexity",
                f"{result.complexity:.2f}",
                f"0 = one token does, 1 = all {ladder[-1]:,} are needed",
            )
        )
        needed = "none" if result.required_tokens is None else f"{result.required_tokens:,}"
        remark = "tokens per grid from which on the answer stays"
        if not result.monotone:
            remark += "; a coarser scale had it too, a finer one lost it"
        shown.append(("Needed", needed, remark))
    if foreseen:
        shown.append(("predict_scale would take", *foreseen))
    if encode_seconds is not None:
        shown.append(
            ("Seeing the picture", milliseconds(encode_seconds), "vision tower, once for all scales")
        )
    boxes = "".join(
        f'<div class="card"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(remark)}</span></div>"
        for name, value, remark in shown
    )
    return f'<div class="m3"><div class="cards">{boxes}</div></div>' if boxes else ""


def seen(image: Image.Image, settings: M3Settings, tokens: int) -> str:
    """The picture under the grid of its visual tokens, and averaged over it."""
    ruled, mosaic, (columns, rows) = glimpses(image, settings, tokens)
    cells = (
        f"{columns} x {rows} cells, one visual token each"
        if columns * rows > 1
        else "one visual token for all"
    )
    return (
        '<div class="m3"><div class="seen">'
        f'<figure><img src="{_data_uri(ruled)}" alt="The picture under a grid of {columns} by {rows} cells.">'
        f"<figcaption>{cells}{_overview(settings)}</figcaption></figure>"
        f'<figure><img src="{_data_uri(mosaic)}" alt="Each cell in its average colour.">'
        "<figcaption>Averaged over each cell. A likeness: the model averages features, which say more than "
        "colours.</figcaption></figure></div></div>"
    )


def _overview(settings: M3Settings) -> str:
    return (
        "; an overview of the whole picture comes in addition"
        if settings.image_aspect_ratio == "anyres"
        else ""
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def milliseconds(seconds: float) -> str:
    """A time as people read it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
