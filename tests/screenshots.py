"""Pictures of the report and the demo, from drawings and the repository's examples alone.

    python tests/screenshots.py FOLDER [report] [asked] [demo]

- report: examples/ ranked without a question: wide, narrow, dark, and a picture's detail
- asked: drawings, ranked by questions with known answers
- demo: a picture without a question, and one with

docs/report.png is FOLDER/report-wide.png, docs/demo.png is FOLDER/demo.png.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.pop(0)  # tests/ itself, whose folders are named like other packages
sys.path.insert(0, str(Path(__file__).parents[1]))

from m3score.calibration.drawings.drawing import draw
from tests.support.browser import NARROW, chromium, look, open_page

ROOT = Path(__file__).parents[1]
DRAWINGS = 84
HIGH, DEMO = (1400, 1180), (1280, 1000)


def draw_folder(folder: Path) -> Path:
    """Drawings with known answers in subfolders by kind, and a broken file; gives the file of questions."""
    asked = []
    for index in range(DRAWINGS):
        drawing = draw(11, index)
        path = folder / drawing.kind / f"{drawing.kind}_{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.image.save(path)
        for question in drawing.questions[:2]:
            row = {"image": f"{drawing.kind}/{path.name}", "question": question.question}
            asked.append(json.dumps(row | {"answers": [question.answer], "metric": "exact_match"}))
    (folder / "sign" / "cut_off.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    questions = folder / "questions.jsonl"
    questions.write_text("\n".join(asked))
    return questions


def report(folder: Path, model: Any) -> None:
    """The examples, as the first command of the README ranks them."""
    from m3score.analysis.report.page import write_report
    from m3score.runs.ranking import rank

    table = rank(["examples"], scorer="vision", model=model)
    page = folder / "report.html"
    write_report(table, page, model=model, title="examples")
    photograph(page, folder / "report", len(table) - 1)


def asked(folder: Path, model: Any) -> None:
    """Rank and report drawings with known answers, as a user would by the commands."""
    from m3score.analysis.report.page import write_report
    from m3score.data.questions import read_questions
    from m3score.runs.ranking import rank
    from m3score.tables.io import write_scores

    with tempfile.TemporaryDirectory() as drawings:
        questions: Any = read_questions(draw_folder(Path(drawings)))
        traces = folder / "traces.parquet"
        table = rank([drawings], model=model, questions=questions, traces=traces, scorer="model")
        write_scores(table, folder / "scores.csv")
        page = folder / "asked.html"
        write_report(folder / "scores.csv", page, traces=traces, model=model, title="Drawn pictures")
    photograph(page, folder / "asked", 20)


def photograph(page: Path, start: Path, opened: int) -> None:
    """START-wide.png, -narrow, -dark, and -detail of the picture at place `opened`."""

    def take(browser: Any, name: str) -> None:
        _take(browser, Path(f"{start}-{name}.png"))

    with chromium(HIGH) as browser:
        open_page(browser, page)
        take(browser, "wide")
        browser.execute_script(f"document.querySelectorAll('#gallery .tile')[{opened}].click()")
        browser.execute_script("document.querySelectorAll('.choices input')[3]?.click()")
        take(browser, "detail")
        browser.execute_script("document.getElementById('close').click()")
        look(browser, HIGH, dark=True)
        open_page(browser, page)
        take(browser, "dark")
        look(browser, NARROW)
        open_page(browser, page)
        take(browser, "narrow")
        browser.execute_script("document.getElementById('pictures').scrollIntoView()")
        take(browser, "narrow-pictures")


def demo(folder: Path, model: Any) -> None:
    """A page of text without a question, and a sign with one."""
    from m3score.analysis.demo.server import served
    from m3score.analysis.demo.session import Demo

    with served(Demo(model), port=0) as address, chromium(DEMO) as browser:

        def find(selector: str) -> list[Any]:
            return list(browser.find_elements("css selector", selector))

        for name, picture, question in (
            ("demo", "page_of_text.png", ""),
            ("demo-asked", "sign.png", "What number is on the sign?"),
        ):
            browser.get(address)
            _until(lambda: find("#file input[type=file]"))
            find("#file input[type=file]")[0].send_keys(str(ROOT / "examples" / picture))
            _until(lambda: find("#seen .where"))
            if question:
                find("#question textarea")[0].send_keys(question)
                find("#ask")[0].click()
                _until(lambda: find("#table .yes"))
            look(browser, DEMO)
            _take(browser, folder / f"{name}.png")
            look(browser, NARROW)
            _take(browser, folder / f"{name}-narrow.png")
            look(browser, DEMO)


def _until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the page never came to it")
        time.sleep(0.1)


def _take(browser: Any, target: Path) -> None:
    time.sleep(0.8)  # thumbnails are decoded, colours have faded
    browser.save_screenshot(str(target))


if __name__ == "__main__":
    from m3score.models.loading import load_model

    target, wanted = Path(sys.argv[1]).absolute(), sys.argv[2:] or ["report", "asked", "demo"]
    target.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    tiny = load_model("m3-tiny")
    for shown in (report, asked, demo):
        if shown.__name__ in wanted:
            shown(target, tiny)
