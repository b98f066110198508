"""Chats about one picture: what is sent for a question at a budget, and what comes back.

Knows the chat-completions protocol and its dialects; knows neither ladders nor agreement. What a server does
not take is left out from then on: `max_tokens` becomes `max_completion_tokens`, `temperature` and `logprobs`
are dropped.
"""

from __future__ import annotations

import base64
import io
import math
import re
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.models.endpoint.client import Client, RefusedError
from m3score.models.endpoint.distributions import Distribution, Position, distribution

TOP = (20, 5)
"""How many of the most probable tokens are asked for, most wanted first: servers allow different numbers."""
_ID = "token_id:"
_THOUGHTS = re.compile(r"^(?:\s*<think>.*?(?:</think>|\Z)|.*?</think>)", re.DOTALL)
"""Thoughts in the answer itself; a chat template may have opened them already."""


class Picture:
    """A picture, and the URL that holds it as PNG: without loss, so that the server sees the same pixels."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    @cached_property
    def url(self) -> str:
        """A data URL."""
        file = io.BytesIO()
        self.image.save(file, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class Look:
    """How a picture is shown at one budget; knobs.py makes them."""

    picture: Picture | None = None
    """None: the question alone."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the request."""
    image_url: Mapping[str, Any] = field(default_factory=dict)
    """Fields beside the picture's URL."""


@dataclass(frozen=True)
class Reply:
    """One answer."""

    text: str
    """Stripped, without thoughts."""
    raw: str
    """As it came."""
    positions: tuple[Position, ...] | None
    """Its tokens; None where the server reports no log-probabilities."""
    prompt_tokens: int | None
    """None where the server counts none."""
    cut: bool
    """Whether the answer reached the most tokens it may have."""
    thought: bool
    """Whether there were thoughts before the answer."""

    @property
    def logprob(self) -> float:
        """Of the answer, in nats; NaN if unknown."""
        return math.nan if self.positions is None else math.fsum(p.logprob for p in self.positions)


class Chat:
    """A model of a server, and the words in which it takes requests.

    Args:
        client: the connection.
        model: what the server calls the model.
        extras: fields of every request.
    """

    def __init__(self, client: Client, model: str, extras: Mapping[str, Any] | None = None) -> None:
        self.client = client
        self.model = model
        self.extras = dict(extras or {})
        self.top: int | None = TOP[0]
        """How many log-probabilities are asked for at each position; None: none."""
        self.numbered = False
        """Whether to ask that tokens are called by their numbers, as vLLM can."""
        self.tokens_in = 0
        """Prompt tokens of all replies so far, as the server counts them."""
        self.tokens_out = 0
        self._limit = "max_tokens"
        self._temperature: dict[str, Any] = {"temperature": 0}
        self._counting = threading.Lock()

    def ask(self, look: Look, question: str, max_new_tokens: int) -> Reply:
        """The greedy answer to a question.

        Raises:
            M3ScoreError: see Client.post; or a reply that holds no answer.
        """
        return _reply(self._post(self._body(look, question, max_new_tokens)))

    def force(self, look: Look, question: str, draft: Reply, prompt_tokens: int) -> list[Distribution] | None:
        """What the model, made to give `draft` as its answer, would say at each of its positions.

        vLLM reads a last message of the assistant as the beginning of the model's answer, and reports the
        distributions within the prompt; the one after the draft's last token is that of the continuation.

        Args:
            look, question: as for `ask`.
            draft: an answer with positions, whose tokens are called by numbers.
            prompt_tokens: of the same request without a draft.

        Returns:
            One distribution per position, as far as the draft's text is read as the draft's tokens. None
            where the server doesn't do this.
        """
        body = self._body(look, question, 1)
        body["messages"].append({"role": "assistant", "content": draft.raw})
        body |= {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": self.top}
        found = self._post(body)
        entries = found.get("prompt_logprobs")
        if not isinstance(entries, list) or draft.positions is None:
            return None
        forced: list[Distribution] = []
        for position, entry in zip(draft.positions, entries[prompt_tokens:], strict=False):
            if not isinstance(entry, dict) or not entry:
                return None
            named = {f"{_ID}{number}": float(told["logprob"]) for number, told in entry.items()}
            forced.append(distribution(named))
            if next(iter(named)) != position.token:  # vLLM names the prompt's own token first
                return forced
        after = _reply(found).positions
        if after and len(forced) == len(entries) - prompt_tokens == len(draft.positions) - 1:
            forced.append(after[0].top)  # where the draft ends
        return forced

    def _body(self, look: Look, question: str, max_new_tokens: int) -> dict[str, Any]:
        content: Any = question
        if look.picture is not None:
            picture = {"type": "image_url", "image_url": {"url": look.picture.url, **look.image_url}}
            content = [picture, {"type": "text", "text": question}]
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], **self.extras}
        for name, value in look.body.items():  # the template's fields may come from both
            body[name] = {**body[name], **value} if isinstance(body.get(name), dict) else value
        return {**body, self._limit: max_new_tokens, **self._temperature}

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        while True:
            asked: dict[str, Any] = {}
            if self.top:
                asked = {"logprobs": True, "top_logprobs": self.top}
                asked |= {"return_tokens_as_token_ids": True} if self.numbered else {}
            try:
                found = self.client.post("chat/completions", body | asked)
            except RefusedError as refused:
                if not self._adapted(refused, body):
                    raise
            else:
                break
        if not isinstance(found, dict):
            raise M3ScoreError("the server's reply is no chat completion", transient=True)
        usage = found.get("usage") or {}
        with self._counting:
            self.tokens_in += int(usage.get("prompt_tokens") or 0)
            self.tokens_out += int(usage.get("completion_tokens") or 0)
        return found

    def _adapted(self, refused: RefusedError, body: dict[str, Any]) -> bool:
        """Leave out, from now on, what the server says it does not take; whether anything was left out."""
        said = refused.said.lower()
        if refused.status not in (400, 422):
            return False
        if "max_completion_tokens" in said and "max_tokens" in body:
            self._limit = "max_completion_tokens"
            body[self._limit] = body.pop("max_tokens")
        elif "temperature" in said and "temperature" in body:
            self._temperature = {}
            del body["temperature"]
        elif "return_tokens_as_token_ids" in said and self.numbered:
            self.numbered = False
        elif "logprobs" in said and "prompt_logprobs" not in said and self.top:
            self.top = next((top for top in TOP if top < self.top), None)
        else:
            return False
        return True


def _reply(found: Mapping[str, Any]) -> Reply:
    """M3ScoreError for what is no chat completion."""
    try:
        choice = found["choices"][0]
        message = choice["message"]
        raw = message.get("content") or message.get("refusal") or ""
        if not isinstance(raw, str):  # some servers give it in parts
            raw = "".join(str(part.get("text", "")) for part in raw)
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        cut = choice.get("finish_reason") == "length"
        positions = _positions((choice.get("logprobs") or {}).get("content"))
        prompt_tokens = (found.get("usage") or {}).get("prompt_tokens")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise M3ScoreError("the server's reply is no chat completion", transient=True) from None
    text = _THOUGHTS.sub("", raw)
    return Reply(
        text=text.strip(),
        raw=raw,
        positions=positions,
        prompt_tokens=None if prompt_tokens is None else int(prompt_tokens),
        cut=cut,
        thought=bool(thoughts) or text != raw,
    )


def _positions(content: Sequence[Mapping[str, Any]] | None) -> tuple[Position, ...] | None:
    if not content:
        return None
    found = []
    for entry in content:
        top: dict[str, float] = defaultdict(float)
        for one in entry.get("top_logprobs") or ():  # tokens of several numbers may have one text
            top[_name(one)] += math.exp(min(0.0, float(one["logprob"])))
        own = float(entry["logprob"])
        top.setdefault(_name(entry), math.exp(min(0.0, own)))
        found.append(Position(_name(entry), own, dict(top)))
    return tuple(found)


def _name(entry: Mapping[str, Any]) -> str:
    token = str(entry["token"])
    if token.startswith(_ID) or not entry.get("bytes"):
        return token
    return bytes(entry["bytes"]).hex()  # parts of a letter have the same text, but not the same bytes
