"""What a server can do, found out by asking it about a drawn picture before anything else is.

Does the knob move the number of visual tokens, and to what the family's table says? Which log-probabilities
are there? Does the model think before it answers? What it answers tells it apart from another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from m3score.common.errors import M3ScoreError, StopRunError
from m3score.models.budgets.base import Family
from m3score.models.endpoint.chat import Chat, Look, Picture, Reply
from m3score.models.endpoint.client import Client, RefusedError
from m3score.models.endpoint.distributions import forced_agreement
from m3score.models.endpoint.knobs import Knob

QUESTIONS = ("How many squares are there? Answer with a number.", "What colors are in the picture?")
TOKENS = 8
"""Longest answer to a question of the probe."""
SIZES = ((640, 480), (1600, 1200), (3200, 2400))
"""Of the probe's picture: the first in which the coarsest rung differs from the finest."""
_SAME = 0.98
"""Least agreement of an answer with itself when it is forced; numbers of a server vary a little."""


LARGE = (1024, 1024)
"""By whose costs the rungs of `detail` are called: more pixels cost no more at OpenAI."""


@dataclass(frozen=True)
class RungCount:
    """Visual tokens of the probe's picture at one rung."""

    budget: int
    expected: int | None
    """By the family's table."""
    measured: int | None
    """Prompt tokens with the picture less those without it; None where the server counts none."""

    @property
    def plausible(self) -> bool:
        """Whether what was measured is what was expected, with a few tokens around it or between tiles."""
        if self.expected is None or self.measured is None:
            return True
        return -2 <= self.measured - self.expected <= 16 + self.expected // 4


@dataclass(frozen=True)
class Findings:
    """What the probe found out."""

    knob: Knob
    """With the spelling that the server understands."""
    ladder: tuple[int, ...]
    agreement_from: str
    """`forced`, `logprobs` or `answers`."""
    size: tuple[int, int]
    counts: tuple[RungCount, ...]
    markup: int | None
    """Tokens around the visual ones; None where there is no telling, or the rungs have different numbers."""
    thinks: bool
    answers: tuple[str, ...]

    def identity(self, chat: Chat, family: Family | None) -> str:
        """SHA-256 (hexadecimal) over the model's name, what it is told, and its answers to the probe."""
        told: dict[str, Any] = {
            "model": chat.model,
            "extras": chat.extras,
            "family": family.to_dict() if family else None,
            "knob": self.knob.name,
            "ladder": self.ladder,
            "agreement_from": self.agreement_from,
            "top": chat.top,
            "answers": self.answers,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def find_model(client: Client, wanted: str | None) -> tuple[str, Mapping[str, Any]]:
    """The model's name and what the server's list says about it; the only one if none is wanted.

    A server without a list is taken at the user's word.

    Raises:
        StopRunError: see Client.post.
        M3ScoreError: there is no telling which model is meant.
    """
    try:
        found = client.get("models")
        entries = [entry for entry in found["data"] if isinstance(entry, dict) and "id" in entry]
    except (RefusedError, KeyError, TypeError):
        if wanted is None:
            raise M3ScoreError(
                f"{client.url} does not list its models: give --model NAME, or is the address to end in /v1?"
            ) from None
        return wanted, {}
    listed = {str(entry["id"]): entry for entry in entries}
    if wanted is None:
        if len(listed) != 1:
            raise M3ScoreError(f"{client.url} has {_names(listed)}: give --model NAME.")
        wanted = next(iter(listed))
    return wanted, listed.get(wanted, {"listed": list(listed)})


def _names(listed: Any) -> str:
    names = sorted(listed)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"the models {shown}" if names else "no models"


def probe(
    chat: Chat, knob: Knob, family: Family | None, ladder: tuple[int, ...] | None, text: Reply
) -> Findings:
    """Find out what the server can do.

    Args:
        chat: with the model.
        knob: in its first spelling.
        family: None for the knob `detail`.
        ladder: None: that of the family, or of `detail`, by what the largest picture costs.
        text: of ask_without_picture.

    Raises:
        StopRunError: nothing can be asked: no pictures are taken, or the knob does nothing.
    """
    if ladder is None:
        ladder = family.ladder() if family else _ladder_of_detail(chat, knob, text)
    size = _size(knob, family, ladder)
    asking = _Asking(chat, family, ladder, Picture(draw(size)), text)
    knob, finest, counts = _moved(asking, knob)
    look = knob.look(asking.picture, family, ladder[-1], ladder)
    answers = [finest, chat.ask(look, QUESTIONS[1], TOKENS)]
    thinks = any(answer.thought for answer in answers)
    return Findings(
        knob=knob,
        ladder=ladder,
        agreement_from=_source(chat, look, finest, thinks=thinks),
        size=size,
        counts=counts,
        markup=_markup(counts),
        thinks=thinks,
        answers=tuple(answer.text for answer in answers),
    )


def draw(size: tuple[int, int]) -> Image.Image:
    """The probe's picture: coloured squares and fine lines, the same on every machine."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    width, height = size
    side = height // 4
    for number, colour in enumerate(("red", "blue", "green")):
        left = width // 12 + number * width // 3
        pen.rectangle((left, height // 3, left + side, height // 3 + side), fill=colour)
    for x in range(0, width, 8):
        pen.line((x, height - height // 8, x, height), fill="black")
    return image


# ---- is there a model that takes pictures? --------------------------------------------------------------


def ask_without_picture(chat: Chat, listed: Mapping[str, Any]) -> Reply:
    """The reply to a question alone: the first request that the model gets.

    Args:
        chat: with the model.
        listed: see find_model.

    Raises:
        StopRunError: there is no such model, or it can't be asked.
    """
    url = chat.client.url
    try:
        return chat.ask(Look(), QUESTIONS[0], 1)
    except RefusedError as refused:
        if "listed" in listed:
            raise StopRunError(
                f"{url} has no model {chat.model}; it has {_names(listed['listed'])}."
            ) from None
        if refused.status == 404:
            raise StopRunError(
                f"{url}/chat/completions is not there (404: {refused.said}): addresses usually end in /v1."
            ) from None
        raise StopRunError(f"{url}, model {chat.model}: {refused.reason}.") from None


@dataclass(frozen=True)
class _Asking:
    """The probe's picture, and whom it is shown to."""

    chat: Chat
    family: Family | None
    ladder: tuple[int, ...]
    picture: Picture
    text: Reply

    def reply(self, knob: Knob, budget: int, tokens: int) -> Reply:
        """The answer at a budget; _KnobError where the knob is refused, StopRunError where the picture is."""
        try:
            look = knob.look(self.picture, self.family, budget, self.ladder)
            return self.chat.ask(look, QUESTIONS[0], tokens)
        except RefusedError as refused:
            self._plain()
            said = refused.said
        where = f"{self.chat.client.url} refuses --knob {knob.name} at a budget of {budget}"
        trust = knob.name == "vllm" and "trust" in said.lower()
        hint = ": start vLLM with --trust-request-mm-kwargs" if trust else ""
        raise _KnobError(f"{where} ({said}){hint}.")

    def _plain(self) -> None:
        """Show the picture without any knob: it is not the knob that is at fault where that is refused."""
        try:
            self.chat.ask(Look(self.picture), QUESTIONS[0], 1)
        except RefusedError as refused:
            size = "{}x{}".format(*self.picture.image.size)
            hint = "." if "length" in refused.said else ": is it a model that reads pictures?"
            raise StopRunError(
                f"{self.chat.client.url}: model {self.chat.model} takes no picture of {size} pixels "
                f"({refused.status}: {refused.said}){hint}"
            ) from None

    def visual(self, reply: Reply) -> int | None:
        """Prompt tokens that the picture adds."""
        if reply.prompt_tokens is None or self.text.prompt_tokens is None:
            return None
        return reply.prompt_tokens - self.text.prompt_tokens


# ---- does the knob do what it should? -------------------------------------------------------------------


class _KnobError(M3ScoreError):
    """A spelling of a knob does not work; the next one may."""


def _moved(asking: _Asking, knob: Knob) -> tuple[Knob, Reply, tuple[RungCount, ...]]:
    """The knob as the server understands it, the finest answer, and what the picture costs at each rung."""
    problem: _KnobError | None = None
    spelled: Knob | None = knob
    while spelled is not None:
        try:
            return spelled, *_counted(asking, spelled)
        except _KnobError as error:
            problem = problem or error
        spelled = spelled.respelled()
    raise StopRunError(str(problem))


def _counted(asking: _Asking, knob: Knob) -> tuple[Reply, tuple[RungCount, ...]]:
    family, size = asking.family, asking.picture.image.size
    finest = asking.reply(knob, asking.ladder[-1], TOKENS)
    found: dict[int | None, int | None] = {}
    counts = []
    for budget in reversed(asking.ladder):
        expected = knob.count(family, size, budget) if family else None
        if budget == asking.ladder[-1]:
            found[expected] = asking.visual(finest)
        elif expected is None or expected not in found:  # equal counts show equal pixels
            found[expected] = asking.visual(asking.reply(knob, budget, 1))
        counts.append(RungCount(budget, expected, found[expected]))
    _check(asking, knob, counts[::-1])
    return finest, tuple(counts[::-1])


def _check(asking: _Asking, knob: Knob, counts: list[RungCount]) -> None:
    """M3ScoreError where the counts are not what they should be."""
    url, where = asking.chat.client.url, "a picture of {}x{} pixels".format(*asking.picture.image.size)
    measured = [count.measured for count in counts]
    if any(one is None for one in measured):
        if asking.family is None:
            raise StopRunError(f"{url} counts no prompt tokens (usage): without --family nothing tells them.")
        return
    known = [one for one in measured if one is not None]
    if max(known) <= 0:
        raise StopRunError(f"{url}: model {asking.chat.model} reads no tokens of {where}: text only.")
    if len(counts) > 1 and len(set(known)) == 1:
        raise _KnobError(
            f"{url} ignores --knob {knob.name}: {where} costs {known[0]} tokens whatever the budget, "
            f"{counts[0].budget} or {counts[-1].budget}."
        )
    for count in counts:
        if not count.plausible and asking.family is not None:
            raise _KnobError(
                f"{url}: with --knob {knob.name} and a budget of {count.budget}, {where} costs "
                f"{count.measured} tokens, and not the {count.expected} of {asking.family.name}: is it "
                "another --family, or has the server limits of its own?"
            )


def _markup(counts: tuple[RungCount, ...]) -> int | None:
    found = {
        count.measured - count.expected
        for count in counts
        if count.measured is not None and count.expected is not None
    }
    return next(iter(found)) if len(found) == 1 else None


def _size(knob: Knob, family: Family | None, ladder: tuple[int, ...]) -> tuple[int, int]:
    """The smallest size in SIZES in which the rungs differ."""
    if family is None:
        return SIZES[0]
    ends = ladder[0], ladder[-1]
    return next((s for s in SIZES if len({knob.count(family, s, end) for end in ends}) == 2), SIZES[-1])


def _ladder_of_detail(chat: Chat, knob: Knob, text: Reply) -> tuple[int, ...]:
    """The rungs of `detail`: what a large picture costs at low and at high."""
    names = (0, 1)  # the knob looks its word up by place
    asking = _Asking(chat, None, names, Picture(draw(LARGE)), text)
    _, counts = _counted(asking, knob)
    low, high = sorted(count.measured or 0 for count in counts)
    return low, high


# ---- how can agreement be had? --------------------------------------------------------------------------


def _source(chat: Chat, look: Look, finest: Reply, *, thinks: bool) -> str:
    """Where agreement is to come from. A model that thinks has no answers whose tokens compare."""
    if thinks or finest.positions is None or not finest.positions[0].top:
        chat.top = None
        return "answers"
    chat.numbered = True
    try:
        draft = chat.ask(look, QUESTIONS[0], TOKENS)
        if chat.numbered and draft.positions and draft.prompt_tokens is not None:
            forced = chat.force(look, QUESTIONS[0], draft, draft.prompt_tokens)
            whole = forced is not None and len(forced) == len(draft.positions)
            if forced and whole and forced_agreement(draft.positions, forced) >= _SAME:
                return "forced"
    except RefusedError:
        pass
    chat.numbered = False
    return "logprobs"
