"""The demo's server: Gradio's components, and which part of a visit each of them shows.

Knows Gradio; session.py knows how a visit goes. Each visitor's pictures and answers are in that visitor's own
session, and the model answers one question at a time, so visitors never see each other's data. Nothing is
loaded from other servers or sent to them.
"""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from m3score.analysis.demo import fragments
from m3score.analysis.demo.session import Demo, Visit
from m3score.common.errors import M3ScoreError, MissingExtraError, first_line
from m3score.common.files import system_error

_OLDEST_GRADIO = 6
_SESSIONS = 64
"""Visitors whose pictures are held in memory; the oldest are dropped."""
_HOUR = 3600


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import, which reads it
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
        demo: what happens on the page.
        examples: (path of a picture, question) to start with.
    """
    gr = _gradio()
    levels = len(demo.ladder)
    start = (levels + 1) // 2
    with gr.Blocks(title=fragments.TITLE, analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as blocks:
        visit = gr.State(None, time_to_live=_HOUR)
        gr.HTML(fragments.intro(demo.model.name), elem_id="intro", padding=False)
        problem = gr.HTML(elem_id="problem", padding=False)
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
                    label="Question, if any",
                    placeholder="What does the sign say?",
                    elem_id="question",
                    max_lines=3,
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
                level_line = gr.HTML(
                    fragments.level_line(start, demo.ladder), elem_id="level-line", padding=False
                )
            with gr.Column(scale=7, min_width=320):
                answer = gr.Textbox(
                    label="Answer",
                    placeholder="nothing was asked yet",
                    interactive=False,
                    elem_id="answer",
                    lines=1,
                )
                seen = gr.HTML(elem_id="seen", padding=False)
        cards = gr.HTML(elem_id="cards", padding=False)
        table = gr.HTML(elem_id="table", padding=False)
        outputs = {
            "visit": visit,
            "problem": problem,
            "seen": seen,
            "level_line": level_line,
            "answer": answer,
            "cards": cards,
            "table": table,
        }

        def by_component(shown: dict[str, Any]) -> dict[Any, Any]:
            return {outputs[name]: value for name, value in shown.items()}

        def on_ask(visit: Visit | None, question: str, level: float) -> Iterator[dict[Any, Any]]:
            yield from map(by_component, demo.ask(visit, question, int(level)))

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
        asking.then(lambda v, n: by_component(demo.show(v, int(n))), [visit, level], everything, **quiet)
        level.change(
            lambda v, n: by_component(demo.show(v, int(n))),
            [visit, level],
            everything,
            trigger_mode="always_last",
            concurrency_limit=None,
            **quiet,
        )
        opening = file.change(
            lambda path, n: by_component(demo.open(path, int(n))),
            [file, level],
            everything,
            cancels=[asking],
            **quiet,
        )
        opening.then(
            lambda v, n: by_component(demo.look(v, int(n))),
            [visit, level],
            everything,
            concurrency_id="model",
            concurrency_limit=1,
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
    """Serve the page while the context is open.

    Args:
        demo, examples: as in `build`.
        host: address to bind to; "0.0.0.0" for all of this machine's.
        port: 0 for any free one.
        share: add a public address, through a server run by Gradio.
        max_upload: largest file in bytes.

    Yields:
        The address, the public one if there is one.

    Raises:
        M3ScoreError: the page can't be served at this address.
    """
    gr = _gradio()
    port = _free_port(host, port)
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="m3score-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        blocks = build(demo, examples)  # Gradio reads the variable here
        try:
            _, local, public = blocks.queue(api_open=False, max_size=_SESSIONS).launch(
                server_name=host,
                server_port=port,
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
                css=fragments.css(),
            )
        except OSError as error:
            raise M3ScoreError(
                f"--host {host} --port {port}: cannot be served there ({first_line(error).split('. ')[0]}); "
                "another port may do, or --port 0 for a free one."
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
    """Block until Ctrl-C."""
    threading.Event().wait()


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0; M3ScoreError if nothing can be served at this address."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(os.name != "nt"))
            tried.bind(address)
            return int(tried.getsockname()[1])
    except socket.gaierror:
        raise M3ScoreError(f"--host {host!r}: there is no such address.") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise M3ScoreError(
                f"--host {host}: not an address of this machine; allowed are its own, and 0.0.0.0 for all."
            ) from None
        why = "in use" if error.errno == errno.EADDRINUSE else system_error(error)
        raise M3ScoreError(
            f"--port {port} of {host}: {why}; another port may do, or --port 0 for a free one."
        ) from None
