"""Pictures of the report, from drawings alone.

    python tests/screenshots.py FOLDER

Ranks with m3-tiny, writes FOLDER/report.html and photographs it: wide, narrow, dark, and a picture's detail.
docs/report.png is FOLDER/report-wide.png.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from m3score.calibration.drawings.drawing import draw
from tests.support.browser import NARROW, chromium, look, open_page

DRAWINGS = 84
HIGH = (1400, 1180)


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


def make_report(folder: Path, drawings: Path, page: Path) -> None:
    """Rank and report, as a user would by the commands."""
    from m3score.analysis.report.page import write_report
    from m3score.data.questions import read_questions
    from m3score.models.m3.model import load_model
    from m3score.runs.ranking import rank
    from m3score.tables.io import write_scores

    model = load_model("m3-tiny")
    questions: Any = read_questions(draw_folder(drawings))
    traces = folder / "traces.parquet"
    table = rank([drawings], model=model, questions=questions, traces=traces)
    write_scores(table, folder / "scores.csv")
    write_report(folder / "scores.csv", page, traces=traces, model=model, title="Drawn pictures")


def photograph(page: Path, folder: Path) -> None:
    """report-wide.png, -narrow, -dark and -detail."""
    with chromium(HIGH) as browser:
        open_page(browser, page)
        _take(browser, folder / "report-wide.png")
        browser.execute_script("document.querySelectorAll('#gallery .tile')[20].click()")
        browser.execute_script("document.querySelectorAll('.choices input')[3]?.click()")
        _take(browser, folder / "report-detail.png")
        browser.execute_script("document.getElementById('close').click()")
        open_page(browser, page)
        look(browser, HIGH, dark=True)
        _take(browser, folder / "report-dark.png")
        look(browser, NARROW)
        open_page(browser, page)
        _take(browser, folder / "report-narrow.png")


def _take(browser: Any, target: Path) -> None:
    time.sleep(0.5)  # thumbnails are decoded, colours have faded
    browser.save_screenshot(str(target))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as drawings:
        make_report(target, Path(drawings), target / "report.html")
    photograph(target / "report.html", target)
