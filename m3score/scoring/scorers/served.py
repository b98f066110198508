"""Options of a scorer whose model a server runs, and what a run costs there.

The options are the arguments of `m3score.load_endpoint`, under the names of the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from m3score.common.errors import M3ScoreError
from m3score.models.budgets.base import parse_rungs
from m3score.scoring.scorers.model_stream import RankedImage

DEFAULT_MODEL = "m3-tiny"
_PER = 1_000_000
"""Prices are per so many tokens."""


@dataclass(frozen=True)
class ServedOptions:
    """Where a model is served, and how it is asked there. All but `endpoint` go with it."""

    endpoint: str | None = None
    """Base URL of an OpenAI-compatible server; then `model` is what it calls the model."""
    knob: str | None = None
    """How the server is told a budget; see load_endpoint."""
    family: str | None = None
    """The family of the model, where its name does not say it."""
    key_env: str | None = None
    """The environment variable that holds the key; OPENAI_API_KEY by default."""
    concurrency: int | None = None
    """Requests at once, at most."""
    timeout: float | None = None
    """Seconds until a reply has to be there."""
    thinking: bool = True
    """False to tell the model not to think before it answers."""
    price_in: float | None = None
    """Of a million prompt tokens."""
    price_out: float | None = None
    """Of a million tokens of answers."""

    def check_served(self) -> None:
        """M3ScoreError for options that say how to ask a server, and none that says which."""
        for price in (self.price_in, self.price_out):
            if price is not None and price < 0:
                raise M3ScoreError(f"--price-in and --price-out can't be negative: {price:g}.")
        if self.endpoint is not None:
            return
        given = [one.name for one in fields(ServedOptions) if getattr(self, one.name) != one.default]
        if given:
            options = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise M3ScoreError(f"{options.replace('--thinking', '--no-thinking')}: give --endpoint URL too.")

    def connect(self, endpoint: str, model: Any, rungs: str | Sequence[int] | None) -> Any:
        """The model that the server at that address runs, probed."""
        from m3score.models.endpoint.loading import load_endpoint

        if model is not None and not isinstance(model, str):
            raise M3ScoreError("--endpoint goes with the name of a model, not with a model.")
        told = {name: getattr(self, name) for name in ("knob", "family", "key_env", "concurrency", "timeout")}
        return load_endpoint(
            endpoint,
            None if model == DEFAULT_MODEL else model,
            rungs=parse_rungs(rungs),
            thinking=self.thinking,
            **{name: value for name, value in told.items() if value is not None},
        )


class Bill:
    """What a run's requests cost, and what a router that knows each picture's budget would save.

    Args:
        price_in, price_out: of a million tokens, in whatever currency; None: unknown.
    """

    def __init__(self, price_in: float | None, price_out: float | None) -> None:
        self._price_in = price_in
        self._price_out = price_out
        self._finest = 0
        self._needed = 0

    def add(self, result: RankedImage) -> None:
        """Take in a result: its visual tokens at the finest budget, and at the one that it needs."""
        if result.complexity is None or not result.trace:
            return
        finest = max(row.tokens for row in result.trace)
        needed = result.complexity.required_tokens or finest
        self._finest += sum(row.visual_tokens for row in result.trace if row.tokens == finest)
        self._needed += sum(row.visual_tokens for row in result.trace if row.tokens == needed)

    def sentences(self, tokens_in: int, tokens_out: int) -> list[str]:
        """Sentences about the run.

        Args:
            tokens_in, tokens_out: of all its requests, as the server counted them.
        """
        told = f"The server counted {tokens_in:,} tokens of prompts and {tokens_out:,} of answers"
        if self._price_in is not None or self._price_out is not None:
            cost = (tokens_in * (self._price_in or 0) + tokens_out * (self._price_out or 0)) / _PER
            told += f": {cost:,.4g} at these prices"
        said = [f"{told}."]
        if self._finest:
            saved = 1 - self._needed / self._finest
            told = (
                f"At the finest budget these pictures have {self._finest:,} visual tokens, at the one that "
                f"each needs {self._needed:,}: {saved:.0%} fewer"
            )
            if self._price_in is not None:
                prices = [tokens * self._price_in / _PER for tokens in (self._finest, self._needed)]
                told += f", {prices[0]:,.4g} against {prices[1]:,.4g} for each time they are asked about"
            said.append(f"{told}.")
        return said
