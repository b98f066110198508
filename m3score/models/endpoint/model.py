"""EndpointModel: a model that a server runs, behind the protocol of models that answer at every scale."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from PIL import Image

from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.images.given import ImageSource
from m3score.models.budgets.base import Family
from m3score.models.endpoint.asking import Answers, Asking, Pair, check_answered
from m3score.models.endpoint.chat import Chat, Look, Picture, Reply
from m3score.models.endpoint.pool import DaemonPool
from m3score.models.endpoint.probe import Findings

logger = logging.getLogger(__name__)

_LEAST_IMAGES = 8
_Key = tuple[int, str, int]


class EndpointModel:
    """A model behind an OpenAI-compatible server. Make one with `m3score.load_endpoint`.

    Args:
        chat: with the model.
        family: None where nothing is known but the server's own counts.
        findings: of the probe.
        concurrency: requests at once, at most.
    """

    block = 1
    """Inputs that are done again together: here each is asked about by itself."""
    device = "endpoint"
    dtype = "as served"

    def __init__(self, chat: Chat, family: Family | None, findings: Findings, concurrency: int) -> None:
        self.chat = chat
        self.family = family
        self.findings = findings
        self.concurrency = concurrency
        self.name = chat.model
        self.identity = findings.identity(chat, family)
        self._alone: dict[str, Future[Reply]] = {}
        self._kept: dict[_Key, tuple[Image.Image, Answers | M3ScoreError]] = {}
        self._told = False

    @property
    def ladder(self) -> tuple[int, ...]:
        """Budgets of visual tokens per picture, coarsest first."""
        return self.findings.ladder

    @property
    def agreement_from(self) -> str:
        """What agreement is taken from: `forced`, `logprobs` or `answers`."""
        return self.findings.agreement_from

    @property
    def images_at_once(self) -> int:
        """Pictures to hand over at once, so that all requests have something to do."""
        return max(_LEAST_IMAGES, self.concurrency)

    @property
    def url(self) -> str:
        """Of the server."""
        return self.chat.client.url

    def count_visual_tokens(self, size: tuple[int, int], budget: int) -> int:
        """See LadderAnswerer. Without a family the server is shown a blank picture of that size."""
        self._check(budget)
        if self.family is not None:
            return self.findings.knob.count(self.family, size, budget)
        reply = self.chat.ask(self._look(Picture(Image.new("RGB", size)), budget), "?", 1)
        return _less(reply.prompt_tokens, self._text_tokens("?"))

    def answer(
        self, image: ImageSource, question: str, tokens: int | None = None, *, max_new_tokens: int = 32
    ) -> str:
        """Answer greedily, at one budget; None for the finest."""
        budget = self.ladder[-1] if tokens is None else tokens
        self._check(budget)
        look = self._look(Picture(open_image(image)), budget)
        reply = self.chat.ask(look, _plain(question), max_new_tokens)
        check_answered(reply)
        return reply.text

    def answer_ladder(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[Sequence[str]],
        *,
        max_new_tokens: int = 32,
        decode_coarse: bool = True,
    ) -> list[list[Answers]]:
        """See LadderAnswerer. Coarser answers are known in any case, whatever `decode_coarse` says.

        One picture that fails does not cost the others: where the same pictures are then handed over again in
        smaller groups, nothing is asked twice.

        Raises:
            M3ScoreError: of the first picture that failed, after all have been asked about.
            StopRunError: the server can't be asked any more.
        """
        if len(images) != len(questions):
            raise M3ScoreError(f"There are {len(images)} images, but questions for {len(questions)}.")
        if max_new_tokens < 1:
            raise M3ScoreError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        asked = [
            (image, _plain(text)) for image, group in zip(images, questions, strict=True) for text in group
        ]
        keys = [(id(image), text, max_new_tokens) for image, text in asked]
        again = len(set(keys)) < len(self._kept) and all(key in self._kept for key in keys)
        if not again:
            outcomes = self._ask_all(asked, max_new_tokens)
            self._kept = {
                key: (image, outcome)  # the image too: its id has to stay its own
                for key, (image, _), outcome in zip(keys, asked, outcomes, strict=True)
            }
        found = [self._kept[key][1] for key in keys]
        good: list[Answers] = []
        if len(images) == 1:  # nothing smaller will be handed over
            for key in keys:
                self._kept.pop(key, None)
        for outcome in found:
            if isinstance(outcome, M3ScoreError):
                raise outcome
            good.append(outcome)
        if not again:
            self._kept = {}
        rest = iter(good)
        return [[next(rest) for _ in group] for group in questions]

    def close(self) -> None:
        """Release the connections."""
        self.chat.client.close()

    # ---- requests, several at once

    def _ask_all(
        self, asked: Sequence[tuple[Image.Image, str]], max_new_tokens: int
    ) -> list[Answers | M3ScoreError]:
        pictures = {id(image): Picture(open_image(image)) for image, _ in asked}
        pool = DaemonPool(min(self.concurrency, len(asked) * len(self.ladder)), "m3score-ask")
        asking = Asking(self.chat, pool, max_new_tokens, force=self.agreement_from == "forced")
        begun: list[Any] = []
        try:
            # A few pairs ahead: were all begun at once, none would be done before all are nearly done.
            for number in range(len(asked)):
                for image, text in asked[len(begun) : number + 1 + self.concurrency // 2]:
                    begun.append(_or_error(self._pair, pictures[id(image)], text, asking))
                if not isinstance(begun[number], M3ScoreError):
                    asking.compare(begun[number])
            return [
                one if isinstance(one, M3ScoreError) else _or_error(self._finish, asking, one, image.size)
                for one, (image, _) in zip(begun, asked, strict=True)
            ]
        except BaseException:  # Ctrl-C: whoever waits for another attempt has to give up too
            self.chat.client.interrupt()
            raise
        finally:
            pool.shutdown()

    def _pair(self, picture: Picture, question: str, asking: Asking) -> Any:
        """The requests of one question about one picture, begun."""
        size, finest_first = picture.image.size, self.ladder[::-1]
        same, family = self.findings.knob.same, self.family
        shown = {
            budget: budget
            if family is None
            else next(finer for finer in finest_first if finer == budget or same(family, size, budget, finer))
            for budget in self.ladder
        }
        if family is None:
            self._alone.setdefault(question, asking.submit(self.chat.ask, Look(), question, 1))
        looks = {budget: self._look(picture, budget) for budget in dict.fromkeys(shown.values())}
        return asking.begin(Pair(question, looks, shown))

    def _finish(self, asking: Asking, begun: Any, size: tuple[int, int]) -> Answers:
        question = begun.pair.question
        return asking.finish(begun, lambda replies: self._visual(size, question, replies))

    def _look(self, picture: Picture, budget: int) -> Look:
        return self.findings.knob.look(picture, self.family, budget, self.ladder)

    def _check(self, budget: int) -> None:
        if budget not in self.ladder:
            rungs = ", ".join(map(str, self.ladder))
            raise M3ScoreError(f"{self.name} has no rung of {budget} visual tokens; it has {rungs}.")

    # ---- visual tokens

    def _visual(
        self, size: tuple[int, int], question: str, replies: Mapping[int, Reply]
    ) -> Mapping[int, int]:
        """Visual tokens at each budget that was asked.

        By the family's table, where the server's counts differ from budget to budget as it says; else by the
        server's counts.
        """
        counted = {budget: reply.prompt_tokens for budget, reply in replies.items()}
        if self.family is not None:
            table = {budget: self.count_visual_tokens(size, budget) for budget in replies}
            around = {tokens - table[budget] for budget, tokens in counted.items() if tokens is not None}
            if self.findings.markup is None or len(around) < 2:
                return table
            if not self._told:
                self._told = True
                logger.warning(
                    "%s counts other visual tokens than expected of a picture of %dx%d pixels; what it "
                    "counts is used.",
                    self.name,
                    *size,
                )
        around_all = (self._text_tokens(question) or 0) + (self.findings.markup or 0)
        return {budget: _less(tokens, around_all) for budget, tokens in counted.items()}

    def _text_tokens(self, question: str) -> int | None:
        """Prompt tokens of a question without a picture."""
        known = self._alone.get(question)
        if known is not None and not known.cancelled() and known.exception() is None:
            return known.result().prompt_tokens
        reply: Future[Reply] = Future()
        reply.set_result(self.chat.ask(Look(), question, 1))
        self._alone[question] = reply
        return reply.result().prompt_tokens


def _plain(question: str) -> str:
    """A question as models in this process are asked it: without marks that stand for a picture."""
    return question.replace("<image>", "").strip()


def _less(tokens: int | None, others: int | None) -> int:
    if tokens is None or others is None:
        raise M3ScoreError(
            "the server counts no prompt tokens (usage), and nothing else tells the visual ones"
        )
    return max(0, tokens - others)


def _or_error(work: Any, *given: Any) -> Any:
    """What `work` makes, or its M3ScoreError."""
    try:
        return work(*given)
    except M3ScoreError as error:
        return error
