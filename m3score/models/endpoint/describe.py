"""What is known of a model behind a server, for people and for bug reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from m3score.models.endpoint.model import EndpointModel

_TOKENS = 16
SOURCES = {
    "forced": "log-probabilities, with the finest answer forced at every budget",
    "logprobs": "log-probabilities, up to the first token that differs",
    "answers": "whether answers are consistent: there are no log-probabilities that compare",
}
"""What agreement is taken from, in words."""


def describe(model: EndpointModel, pairs: Sequence[tuple[Image.Image, str]]) -> dict[str, Any]:
    """What the probe found out, and how often the model answers differently when it is asked again.

    Args:
        model: the model.
        pairs: pictures with a question each, asked twice at the finest budget.

    Returns:
        JSON-ready.
    """
    found = model.findings
    begun = time.monotonic()
    flips = _flips(model, pairs)
    seconds = time.monotonic() - begun
    return {
        "url": model.url,
        "model": model.name,
        "family": model.family.name if model.family else None,
        "knob": found.knob.name,
        "rungs": list(model.ladder),
        "picture": "{}x{}".format(*found.size),
        "visual_tokens": [
            {"rung": one.budget, "expected": one.expected, "counted": one.measured} for one in found.counts
        ],
        "tokens_around": found.markup,
        "top_logprobs": model.chat.top,
        "agreement_from": model.agreement_from,
        "thinks": found.thinks,
        "asked_twice": len(pairs),
        "flips": flips,
        "flip_rate": flips / len(pairs) if pairs else None,
        "answers_per_second": round(2 * len(pairs) / seconds, 2) if pairs else None,
    }


def _flips(model: EndpointModel, pairs: Sequence[tuple[Image.Image, str]]) -> int:
    """How many answers at the finest budget differ between two rounds."""

    def ask(pair: tuple[Image.Image, str]) -> str:
        return model.answer(*pair, max_new_tokens=_TOKENS)

    with ThreadPoolExecutor(model.concurrency) as pool:
        first, second = (list(pool.map(ask, pairs)) for _ in range(2))
    return sum(one != other for one, other in zip(first, second, strict=True))
