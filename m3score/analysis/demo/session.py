"""The demo: a page in the browser with a picture and a slider from one visual token to all.

Without a question it shows the picture's vision score and where its complexity is; with one, the answers at
every scale.

Knows what happens when a visitor does something. fragments.py makes the HTML, live_answer.py streams the
answer, and server.py serves the page.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from m3score.analysis.demo import fragments
from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.models.inference.live_answer import stream_answer
from m3score.routing.predict import Prediction, predict_many
from m3score.scoring.oracle import score_trace
from m3score.scoring.traces import trace

if TYPE_CHECKING:
    from m3score.models.vision.complexity import VisionScore


@dataclass(eq=False)
class Visit:
    """One visitor's picture and last question."""

    image: Image.Image
    encoded: Any = None
    encode_seconds: float | None = None
    looked: VisionScore | None = None
    look_seconds: float | None = None
    question: str = ""
    answers: dict[int, fragments.TimedAnswer] = field(default_factory=dict)
    """By tokens."""
    result: fragments.QuestionResult | None = None
    prediction: Prediction | None = None


def parse_size(text: str) -> int:
    """Bytes in "20MB", "512 kB" or "1000000", with powers of 1024. Raises M3ScoreError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)i?b?\s*", text.lower())
    size = int(float(match[1]) * 1024 ** " kmg".index(match[2] or " ")) if match else 0
    if size < 1:
        raise M3ScoreError(f"--max-upload {text!r} is no size: allowed are such as 20MB, 512kB or 1GB.")
    return size


class Demo:
    """What happens on the page. Each method returns new values of the page's components, by name."""

    def __init__(self, model: Any, *, predictor: str | None = None, max_new_tokens: int = 32) -> None:
        """
        Args:
            model: an M3Model.
            predictor: name or file of the predictor to show; None: the bundled one of the model's name.
            max_new_tokens: at most this many tokens per answer.
        """
        self.model = model
        self.ladder: tuple[int, ...] = tuple(model.ladder)
        self._predictor = predictor or model.name
        self._max_new_tokens = max_new_tokens

    def open(self, path: str | None, level: int) -> dict[str, Any]:
        """A file was uploaded, or removed (`path` is None)."""
        shown = {"visit": None, "seen": "", "problem": "", "answer": "", "table": "", "cards": ""}
        shown["level_line"] = fragments.level_line(level, self.ladder)
        if path is None:
            return shown
        try:
            visit = Visit(open_image(path))
        except M3ScoreError as error:
            # The server's path of an upload is nobody's business, and the name is on the page already.
            shown["problem"] = fragments.problem(f"{os.path.basename(path)}: {error.reason}")
            return shown
        return shown | {"visit": visit, "seen": self._seen(visit, level)}

    def look(self, visit: Visit | None, level: int) -> dict[str, Any]:
        """A picture is there and nothing was asked: how complex it is without a question."""
        if visit is None or visit.question:
            return {"visit": visit}
        try:
            if visit.looked is None:
                start = time.perf_counter()
                visit.looked = self.model.vision_score(visit.image)
                visit.look_seconds = time.perf_counter() - start
        except M3ScoreError as error:
            return {"problem": fragments.problem(str(error))}
        return {"seen": self._seen(visit, level), "cards": self._cards(visit)}

    def ask(self, visit: Visit | None, question: str, level: int) -> Iterator[dict[str, Any]]:
        """Answer at the slider's scale first, token by token, then at all others. Nothing asked: look."""
        if visit is None:
            yield {"problem": fragments.problem("Give me a picture first.")}
            return
        if not question.strip():
            visit.question = ""
            yield {"problem": "", "answer": "", "table": ""} | self.look(visit, level)
            return
        visit.question, visit.answers, visit.result, visit.prediction = question.strip(), {}, None, None
        chosen = self.ladder[level - 1]
        try:
            seen, table = self._seen(visit, level), self._table(visit, level)
            yield {"problem": "", "answer": "", "cards": "", "seen": seen, "table": table}
            self._encode(visit)
            for tokens in [chosen, *(t for t in reversed(self.ladder) if t != chosen)]:
                for text in self._stream(visit, tokens):
                    if tokens == chosen:
                        yield {"answer": text}
                yield {"table": self._table(visit, level), "cards": self._cards(visit)}
            self._score(visit)
        except M3ScoreError as error:
            yield {"problem": fragments.problem(str(error))}

    def show(self, visit: Visit | None, level: int) -> dict[str, Any]:
        """The slider was moved, or all answers are there."""
        tokens = self.ladder[level - 1]
        if visit is None:
            return {"level_line": fragments.level_line(level, self.ladder)}
        answer = visit.answers.get(tokens)
        shown = {
            "seen": self._seen(visit, level),
            "level_line": fragments.level_line(level, self.ladder, answer.visual_tokens if answer else None),
        }
        if visit.question:
            shown |= {"table": self._table(visit, level)}
        if visit.question or visit.looked:
            shown |= {"cards": self._cards(visit)}
        return shown | ({"answer": answer.answer} if answer else {})

    def warm_up(self) -> None:
        """Look at a blank picture and answer a question about it, so that the first visitor waits no longer
        than others. A model that is used for the first time gets its statistics over drawings now."""
        visit = Visit(Image.new("RGB", (64, 64), "white"))
        self.look(visit, 1)
        visit.question = "What is it?"
        self._encode(visit)
        for tokens in self.ladder:
            for _ in self._stream(visit, tokens):
                pass

    # -- the model ---------------------------------------------------------------------------------------

    def _encode(self, visit: Visit) -> None:
        if visit.encoded is None:
            start = time.perf_counter()
            visit.encoded = self.model.encode(visit.image)
            visit.encode_seconds = time.perf_counter() - start

    def _stream(self, visit: Visit, tokens: int) -> Iterator[str]:
        start, text = time.perf_counter(), ""
        stream = stream_answer(
            self.model, visit.encoded, visit.question, tokens, max_new_tokens=self._max_new_tokens
        )
        spent = 0.0
        for text in stream:
            spent += time.perf_counter() - start
            yield text
            start = time.perf_counter()  # the browser's time is not the model's
        spent += time.perf_counter() - start
        count = self.model.visual_token_count(visit.encoded, tokens)
        visit.answers[tokens] = fragments.TimedAnswer(text, count, spent)

    def _score(self, visit: Visit) -> None:
        pictures = cast("list[Image.Image]", [visit.encoded])  # has a size, and is not encoded again
        rows = trace(self.model, pictures, [[visit.question]], max_new_tokens=self._max_new_tokens)
        (complexity,) = score_trace(rows).values()
        visit.result = fragments.QuestionResult(
            agreement={row.tokens: row.agreement for row in rows},
            consistent={row.tokens: row.consistent for row in rows},
            complexity=complexity,
        )
        visit.prediction = self._predict(visit)

    def _predict(self, visit: Visit) -> Prediction:
        try:
            (found,) = predict_many(
                [visit.image], [visit.question], predictor=self._predictor, model=self.model, workers=1
            )
        except M3ScoreError as error:
            return Prediction(None, None, None, None, str(error))
        return found

    # -- the page ----------------------------------------------------------------------------------------

    def _seen(self, visit: Visit, level: int) -> str:
        """The picture under its tokens; beside it where its complexity is, if nothing was asked."""
        tokens, config = self.ladder[level - 1], self.model.config
        return fragments.token_grid(visit.image, config, tokens, None if visit.question else visit.looked)

    def _table(self, visit: Visit, level: int) -> str:
        chosen = self.ladder[level - 1]
        predicted = visit.prediction.tokens if visit.prediction else None
        return fragments.table(visit.question, self.ladder, chosen, visit.answers, visit.result, predicted)

    def _cards(self, visit: Visit) -> str:
        if not visit.question:
            return fragments.vision_cards(visit.looked, visit.look_seconds) if visit.looked else ""
        prediction = None
        if visit.prediction and visit.prediction.tokens is not None:
            promise = (
                "with a certified margin"
                if visit.prediction.certified
                else "nothing is promised: no certificate"
            )
            prediction = f"{visit.prediction.tokens:,}", f"tokens per grid, before the model ran; {promise}"
        elif visit.prediction:
            prediction = "—", visit.prediction.error or ""
        return fragments.cards(visit.result, self.ladder, prediction, visit.encode_seconds)
