"""From a URL to a model that can be asked: the connection, the family, the probe."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models.budgets.base import Family
from m3score.models.budgets.table import family_names, find_family, guess_family
from m3score.models.endpoint.chat import TOP, Chat
from m3score.models.endpoint.client import Client
from m3score.models.endpoint.knobs import DETAILS, KNOBS, Knob, find_knob
from m3score.models.endpoint.model import EndpointModel
from m3score.models.endpoint.probe import ask_without_picture, find_model, probe

logger = logging.getLogger(__name__)

CONCURRENCY = 8
TIMEOUT = 120.0


def load_endpoint(
    url: str,
    model: str | None = None,
    *,
    knob: str | None = None,
    family: str | None = None,
    rungs: Iterable[int] | None = None,
    key_env: str | None = None,
    concurrency: int = CONCURRENCY,
    timeout: float = TIMEOUT,
    thinking: bool = True,
    top_logprobs: int = TOP[0],
) -> EndpointModel:
    """A model behind an OpenAI-compatible server, asked by HTTP.

    The server is probed first with a drawn picture: some ten short requests.

    Args:
        url: the server's base URL, such as "http://localhost:8000/v1".
        model: what the server calls the model; by default its only one.
        knob: how a budget is told, in KNOBS; by default as the server's list of models gives away.
        family: the family of models, whose budgets are known; by default what the model's name says.
        rungs: budgets of visual tokens; by default those of the family.
        key_env: the environment variable that holds the key; by default OPENAI_API_KEY, if it is set.
        concurrency: requests at once, at most.
        timeout: seconds until a reply has to be there.
        thinking: False to tell the chat template that the model is not to think first.
        top_logprobs: how many log-probabilities to ask for; servers have limits.

    Raises:
        M3ScoreError: an argument that can't be used, or a server that can't: one sentence says why.
    """
    if concurrency < 1:
        raise M3ScoreError(f"--concurrency must be at least 1, not {concurrency}.")
    client = Client(url, key_env=key_env, timeout=timeout)
    try:
        name, listed = find_model(client, model)
        extras = {} if thinking else {"chat_template_kwargs": {"enable_thinking": False}}
        chat = Chat(client, name, extras)
        chat.top = top_logprobs or None
        text = ask_without_picture(chat, listed)
        turned = find_knob(knob or _usual_knob(client, listed))
        known = _family(name, listed, family, turned)
        findings = probe(chat, turned, known, _ladder(known, rungs, turned), text)
    except BaseException:
        client.close()
        raise
    if findings.thinks:
        advice = " (--no-thinking did not help)" if not thinking else "; --no-thinking may help"
        logger.warning("%s thinks before it answers: its answers are compared as a whole%s.", name, advice)
    return EndpointModel(chat, known, findings, concurrency)


def _usual_knob(client: Client, listed: Mapping[str, Any]) -> str:
    """The knob of the server's kind, as its list of models gives it away."""
    owner = str(listed.get("owned_by", "")).lower()
    if owner in KNOBS:
        return owner
    if owner in ("openai", "system", "openai-internal"):
        return "detail"
    raise M3ScoreError(
        f"{client.url} does not say what kind of server it is: give --knob, one of {', '.join(KNOBS)}."
    )


def _family(name: str, listed: Mapping[str, Any], wanted: str | None, knob: Knob) -> Family | None:
    if wanted is not None:
        return find_family(wanted)()
    if knob.name == "detail":
        return None
    found = guess_family(name) or guess_family(str(listed.get("root", "")))
    if found is None:
        raise M3ScoreError(
            f"the name {name} does not say what family the model is of: give --family, one of "
            f"{', '.join(family_names())}."
        )
    return found()


def _ladder(family: Family | None, rungs: Iterable[int] | None, knob: Knob) -> tuple[int, ...] | None:
    if family is None or knob.name == "detail":  # only that knob does without a family
        ladder = None if rungs is None else tuple(sorted(set(rungs)))
        if ladder is not None and len(ladder) != len(DETAILS):
            raise M3ScoreError(
                f"--knob detail has two rungs, low and high: give --rungs two numbers, not {len(ladder)}."
            )
        return ladder
    ladder = family.ladder(rungs)
    if len(ladder) < 2:
        raise M3ScoreError(f"--rungs {ladder[0]}: a ladder needs at least two rungs.")
    return ladder
