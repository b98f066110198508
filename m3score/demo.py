"""The demo: a page in the browser with a picture, a question and a slider from one visual token to all.

Knows Gradio and how a visit goes; demo_page.py makes what is shown, live_answer.py the words as they come.

What belongs to a visitor is in that visitor's session, and the model serves one question at a time, so
visitors never see each other's. Nothing is loaded from elsewhere and nothing is sent there.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from PIL import Image

from m3score import demo_page as page
from m3score.errors import M3ScoreError, MissingExtraError, first_line
from m3score.images import open_image
from m3score.live_answer import stream_answer
from m3score.oracle import score_trace
from m3score.predict import Prediction, predict_many
from m3score.traces import trace

_OLDEST_GRADIO = 6
_SESSIONS = 64
"""Visitors whose pictures are held in memory; the oldest make room."""
_HOUR = 3600

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Visit:
    """One visitor's picture and last question."""

    image: Image.Image
    encoded: Any = None
    encode_seconds: float | None = None
    question: str = ""
    said: dict[int, page.Said] = field(default_factory=dict)
    """By tokens."""
    judged: page.Judged | None = None
    foreseen: Prediction | None = None


def parse_size(text: str) -> int:
    """Bytes of "20MB", "512 kB" or "1000000"; powers of 1024. Raises M3ScoreError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)i?b?\s*", text.lower())
    size = int(float(match[1]) * 1024 ** " kmg".index(match[2] or " ")) if match else 0
    if size < 1:
        raise M3ScoreError(f"--max-upload {text!r} is no size: allowed are such as 20MB, 512kB or 1GB.")
    return size


class Demo:
    """What happens on the page. Values go to Gradio's components by name, see `Components`."""

    def __init__(self, model: Any, *, predictor: str | None = None, max_new_tokens: int = 32) -> None:
        """
        Args:
            model: an M3Model.
            predictor: whom to ask for predict_scale's choice; None: the bundled one of the model's name.
            max_new_tokens: longest answer.
        """
        self.model = model
        self.ladder: tuple[int, ...] = tuple(model.ladder)
        self._predictor = predictor or model.name
        self._max_new_tokens = max_new_tokens

    def open(self, path: str | None, level: int) -> dict[str, Any]:
        """A file was dropped, or taken away."""
        shown = {"visit": None, "seen": "", "problem": "", "answer": "", "table": "", "cards": ""}
        shown["level_line"] = page.level_line(level, self.ladder)
        if path is None:
            return shown
        try:
            visit = Visit(open_image(path))
        except M3ScoreError as error:
            # The server's path of an upload is nobody's business, and the name is on the page already.
            reason = str(error).removeprefix(f"{path}: ")
            shown["problem"] = page.problem(f"{os.path.basename(path)}: {reason}")
            return shown
        return shown | {"visit": visit, "seen": self._seen(visit, level)}

    def ask(self, visit: Visit | None, question: str, level: int) -> Iterator[dict[str, Any]]:
        """Answer at the slider's scale first, word by word, then at all others."""
        if visit is None or not question.strip():
            missing = "a question" if visit else "a picture"
            yield {"problem": page.problem(f"Give me {missing} first.")}
            return
        visit.question, visit.said, visit.judged, visit.foreseen = question.strip(), {}, None, None
        chosen = self.ladder[level - 1]
        try:
            yield {"problem": "", "answer": "", "cards": "", "table": self._table(visit, level)}
            self._look(visit)
            for tokens in [chosen, *(t for t in reversed(self.ladder) if t != chosen)]:
                for text in self._say(visit, tokens):
                    if tokens == chosen:
                        yield {"answer": text}
                yield {"table": self._table(visit, level), "cards": self._cards(visit)}
            self._judge(visit)
        except M3ScoreError as error:
            yield {"problem": page.problem(str(error))}

    def show(self, visit: Visit | None, level: int) -> dict[str, Any]:
        """The slider was moved, or everything is there."""
        tokens = self.ladder[level - 1]
        if visit is None:
            return {"level_line": page.level_line(level, self.ladder)}
        said = visit.said.get(tokens)
        shown = {
            "seen": self._seen(visit, level),
            "level_line": page.level_line(level, self.ladder, said.visual_tokens if said else None),
        }
        if visit.question:
            shown |= {"table": self._table(visit, level), "cards": self._cards(visit)}
        return shown | ({"answer": said.answer} if said else {})

    def warm_up(self) -> None:
        """Answer about nothing once, so that the first visitor's times are like everyone's."""
        visit = Visit(Image.new("RGB", (64, 64), "white"), question="What is it?")
        self._look(visit)
        for tokens in self.ladder:
            for _ in self._say(visit, tokens):
                pass

    # -- the model ---------------------------------------------------------------------------------------

    def _look(self, visit: Visit) -> None:
        if visit.encoded is None:
            start = time.perf_counter()
            visit.encoded = self.model.encode(visit.image)
            visit.encode_seconds = time.perf_counter() - start

    def _say(self, visit: Visit, tokens: int) -> Iterator[str]:
        start, text = time.perf_counter(), ""
        stream = stream_answer(
            self.model, visit.encoded, visit.question, tokens, max_new_tokens=self._max_new_tokens
        )
        spent = 0.0
        for text in stream:
            spent += time.perf_counter() - start
            yield text
            start = time.perf_counter()  # what the browser takes is not the model's time
        spent += time.perf_counter() - start
        count = self.model.visual_token_count(visit.encoded, tokens)
        visit.said[tokens] = page.Said(text, count, spent)

    def _judge(self, visit: Visit) -> None:
        pictures = cast("list[Image.Image]", [visit.encoded])  # has a size, and is not encoded again
        rows = trace(self.model, pictures, [[visit.question]], max_new_tokens=self._max_new_tokens)
        (complexity,) = score_trace(rows).values()
        visit.judged = page.Judged(
            agreement={row.tokens: row.agreement for row in rows},
            consistent={row.tokens: row.consistent for row in rows},
            complexity=complexity,
        )
        visit.foreseen = self._foresee(visit)

    def _foresee(self, visit: Visit) -> Prediction:
        try:
            (found,) = predict_many(
                [visit.image], [visit.question], predictor=self._predictor, model=self.model, workers=1
            )
        except M3ScoreError as error:
            return Prediction(None, None, None, None, str(error))
        return found

    # -- the page ----------------------------------------------------------------------------------------

    def _seen(self, visit: Visit, level: int) -> str:
        return page.seen(visit.image, self.model.settings, self.ladder[level - 1])

    def _table(self, visit: Visit, level: int) -> str:
        chosen = self.ladder[level - 1]
        predicted = visit.foreseen.tokens if visit.foreseen else None
        return page.table(visit.question, self.ladder, chosen, visit.said, visit.judged, predicted)

    def _cards(self, visit: Visit) -> str:
        foreseen = None
        if visit.foreseen and visit.foreseen.tokens is not None:
            promise = (
                "with a certified margin"
                if visit.foreseen.certified
                else "nothing is promised: no certificate"
            )
            foreseen = f"{visit.foreseen.tokens:,}", f"tokens per grid, before the model ran; {promise}"
        elif visit.foreseen:
            foreseen = "—", visit.foreseen.error or ""
        return page.cards(visit.judged, self.ladder, foreseen, visit.encode_seconds)


# ---- Gradio ---------------------------------------------------------------------------------------------


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which looks at it
    try:
        import gradio
    except ImportError:
        raise MissingExtraError("The demo", "demo") from None
    if int(gradio.__version__.split(".")[0]) < _OLDEST_GRADIO:
        raise M3ScoreError(
            f"The demo needs Gradio {_OLDEST_GRADIO} or newer, not {gradio.__version__}: "
            "pip install 'm3score[demo]'."
        )
    return gradio


def check_installed() -> None:
    """Raises M3ScoreError, with the pip line, where Gradio is missing or too old."""
    _gradio()


def build(demo: Demo, examples: Sequence[tuple[str, str]] = ()) -> Any:
    """The page as gradio.Blocks.

    Args:
        demo: what happens on it.
        examples: (path of a picture, question) to begin with.
    """
    gr = _gradio()
    levels = len(demo.ladder)
    start = (levels + 1) // 2
    with gr.Blocks(title=page.TITLE, analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as blocks:
        visit = gr.State(None, time_to_live=_HOUR)
        gr.HTML(page.INTRO, elem_id="intro")
        problem = gr.HTML(elem_id="problem")
        with gr.Row(elem_id="main"):
            with gr.Column(scale=5, min_width=320):
                file = gr.File(label="Picture or video", elem_id="file", height=130)
                if examples:
                    drawn = gr.Dataset(
                        components=[gr.Image(visible=False)],
                        samples=[[path] for path, _ in examples],
                        type="index",
                        label="Or one of these",
                        elem_id="examples",
                    )
                question = gr.Textbox(
                    label="Question", placeholder="What does the sign say?", elem_id="question", max_lines=3
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                level = gr.Slider(
                    1,
                    levels,
                    value=start,
                    step=1,
                    elem_id="level",
                    label=f"Level: 1 coarsest .. {levels} finest",
                    buttons=[],
                )
                level_line = gr.HTML(page.level_line(start, demo.ladder), elem_id="level-line")
            with gr.Column(scale=7, min_width=320):
                answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer", lines=1)
                seen = gr.HTML(elem_id="seen")
        cards = gr.HTML(elem_id="cards")
        table = gr.HTML(elem_id="table")
        outputs = {
            "visit": visit,
            "problem": problem,
            "seen": seen,
            "level_line": level_line,
            "answer": answer,
            "cards": cards,
            "table": table,
        }

        def placed(shown: dict[str, Any]) -> dict[Any, Any]:
            return {outputs[name]: value for name, value in shown.items()}

        def on_ask(visit: Visit | None, question: str, level: float) -> Iterator[dict[Any, Any]]:
            yield from map(placed, demo.ask(visit, question, int(level)))

        everything = list(outputs.values())
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asking = gr.on(
            [ask.click, question.submit],
            on_ask,
            [visit, question, level],
            everything,
            concurrency_id="model",
            concurrency_limit=1,
            trigger_mode="once",
            **quiet,
        )
        asking.then(lambda v, n: placed(demo.show(v, int(n))), [visit, level], everything, **quiet)
        level.change(
            lambda v, n: placed(demo.show(v, int(n))),
            [visit, level],
            everything,
            trigger_mode="always_last",
            concurrency_limit=None,
            **quiet,
        )
        file.change(
            lambda path, n: placed(demo.open(path, int(n))),
            [file, level],
            everything,
            cancels=[asking],
            **quiet,
        )
        if examples:
            drawn.click(lambda i: examples[i], drawn, [file, question], **quiet)
    return blocks


@contextmanager
def served(
    demo: Demo,
    examples: Sequence[tuple[str, str]] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    max_upload: int = 20 * 1024**2,
) -> Iterator[str]:
    """The page on the network for as long as the context lasts.

    Args:
        demo, examples: as in `build`.
        host: address to bind to; "0.0.0.0" for all of this machine's.
        port: 0 for any free one.
        share: also a public address, through a server of Gradio's makers.
        max_upload: largest file in bytes.

    Yields:
        The address, the public one if there is one.

    Raises:
        M3ScoreError: the address cannot be had.
    """
    gr = _gradio()
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="m3score-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        blocks = build(demo, examples)  # not sooner: Gradio keeps its files where the variable says then
        try:
            _, local, public = blocks.queue(api_open=False, max_size=_SESSIONS).launch(
                server_name=host,
                server_port=port or _free_port(host),
                share=share,
                max_file_size=max_upload,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                state_session_capacity=_SESSIONS,
                theme=gr.themes.Default(primary_hue="indigo", font=["system-ui", "sans-serif"]),
                css=page.CSS,
            )
        except OSError as error:
            raise M3ScoreError(
                f"--host {host} --port {port}: cannot be served there ({_first_line(error)}); another port "
                "may do, or --port 0 for a free one."
            ) from None
        try:
            yield public or local
        finally:
            blocks.close(verbose=False)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def wait() -> None:
    """Until somebody presses Ctrl-C."""
    threading.Event().wait()


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def _first_line(error: BaseException) -> str:
    return first_line(error).rstrip(".")
