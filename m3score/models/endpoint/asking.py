"""Questions about pictures at every budget: which requests are made, and what is made of the replies.

Budgets that show the same pixels are asked once. All are asked plainly, with log-probabilities where there
are any. Where an answer has the tokens of the finest one, both were given the same text, so that their
distributions compare everywhere; elsewhere the budget is made to read the finest answer, if the server can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from m3score.common.errors import M3ScoreError, StopRunError
from m3score.data.normal_form import consistent
from m3score.models.base import ScaleAnswer
from m3score.models.endpoint.chat import Chat, Look, Reply
from m3score.models.endpoint.distributions import (
    Distribution,
    forced_agreement,
    prefix_agreement,
    shared_length,
)

Answers = tuple[ScaleAnswer, ...]


@dataclass(frozen=True)
class Pair:
    """A question about a picture, and how it is shown."""

    question: str
    looks: Mapping[int, Look]
    """At the budgets that are asked, coarsest first."""
    shown: Mapping[int, int]
    """Every budget of the ladder, coarsest first, and which of the asked ones shows its pixels."""


@dataclass
class _Asked:
    """A pair whose requests are under way."""

    pair: Pair
    replies: dict[int, Future[Reply]]
    forced: dict[int, Future[list[Distribution] | None]] = field(default_factory=dict)


class Asking:
    """Asks about pairs, with the requests of many pairs under way at once.

    Args:
        chat: the model.
        pool: its threads each make one request at a time.
        max_new_tokens: longest answer.
        force: whether the server can be made to read an answer.
    """

    def __init__(self, chat: Chat, pool: Executor, max_new_tokens: int, *, force: bool) -> None:
        self._chat = chat
        self._pool = pool
        self._max_new_tokens = max_new_tokens
        self._force = force
        self._stopped: StopRunError | None = None

    def begin(self, pair: Pair) -> _Asked:
        """Ask at all budgets."""
        return _Asked(
            pair,
            {
                budget: self.submit(self._chat.ask, look, pair.question, self._max_new_tokens)
                for budget, look in pair.looks.items()
            },
        )

    def compare(self, asked: _Asked) -> None:
        """Wait for the replies, and make the budgets whose answers differ read the finest answer."""
        try:
            finest, replies = _replies(asked)
        except M3ScoreError:
            return  # `finish` says so
        if not self._force:
            return
        for budget, reply in replies.items():
            if leaves_open(finest, reply):
                asked.forced[budget] = self.submit(
                    self._read, asked.pair.looks[budget], asked.pair.question, finest, reply
                )

    def finish(self, asked: _Asked, visual: Callable[[Mapping[int, Reply]], Mapping[int, int]]) -> Answers:
        """One answer per budget of the ladder.

        Args:
            asked: compared.
            visual: tells visual tokens by the replies.

        Raises:
            M3ScoreError: one of the requests failed, or holds no answer.
        """
        finest, replies = _replies(asked)
        tokens = visual(replies)
        found = {}
        for budget, reply in replies.items():
            forced = asked.forced[budget].result() if budget in asked.forced else None
            found[budget] = 1.0 if reply is finest else agreement(finest, reply, forced)
        return tuple(
            ScaleAnswer(
                tokens=budget,
                visual_tokens=tokens[shows],
                answer=replies[shows].text,
                agreement=found[shows],
                logprob=replies[shows].logprob,
                cut=replies[shows].cut,
            )
            for budget, shows in asked.pair.shown.items()
        )

    def _read(self, look: Look, question: str, draft: Reply, plain: Reply) -> list[Distribution]:
        forced = None
        if plain.prompt_tokens is not None:
            forced = self._chat.force(look, question, draft, plain.prompt_tokens)
        if not forced:
            raise M3ScoreError(
                "the server no longer reports what it would say after the finest answer", transient=True
            )
        return forced

    def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
        """Have a request made by the pool, unless the server can't be asked any more."""
        return self._pool.submit(self._unless_stopped, work, *given)

    def _unless_stopped(self, work: Callable[..., Any], *given: Any) -> Any:
        if self._stopped is not None:
            raise self._stopped
        try:
            return work(*given)
        except StopRunError as stopped:
            self._stopped = stopped
            raise


def _replies(asked: _Asked) -> tuple[Reply, dict[int, Reply]]:
    """The finest reply, and all; M3ScoreError where one failed or holds no answer."""
    replies = {budget: future.result() for budget, future in asked.replies.items()}
    for reply in replies.values():
        check_answered(reply)
    return replies[max(replies)], replies


def check_answered(reply: Reply) -> None:
    """M3ScoreError where the model was still thinking."""
    if reply.thought and reply.cut and not reply.text:
        raise M3ScoreError(
            "the model was still thinking when it was cut: give --no-thinking, or a larger --max-new-tokens"
        )


def leaves_open(finest: Reply, other: Reply) -> bool:
    """Whether the finest answer goes on after the first token in which another answer differs."""
    if finest.positions is None or other.positions is None:
        return False
    return shared_length(finest.positions, other.positions) < len(finest.positions) - 1


def agreement(finest: Reply, other: Reply, forced: list[Distribution] | None) -> float:
    """How much another answer agrees with the finest one, in [0, 1].

    From the finest answer that was read, from log-probabilities up to the first token that differs, or, where
    there are none, whether the answers are consistent.
    """
    if finest.positions is None or other.positions is None:
        return float(consistent(other.text, finest.text))
    if forced:
        return forced_agreement(finest.positions, forced)
    return prefix_agreement(finest.positions, other.positions)
