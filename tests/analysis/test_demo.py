"""The demo: in a real browser where there is one, and its parts without."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import m3score
from m3score.analysis.demo import fragments, session
from m3score.analysis.demo.server import served
from m3score.analysis.demo.session import Demo, parse_size
from m3score.analysis.demo.token_grid import layout, render_token_grid
from m3score.calibration.drawings.drawing import Drawing, draw
from m3score.cli.commands.demo import SEED, draw_examples
from m3score.cli.main import app
from m3score.common.errors import M3ScoreError
from m3score.images.decode import open_image
from m3score.models.inference.live_answer import stream_answer
from m3score.models.m3.config import M3Config

ROOT = Path(__file__).parents[2]
NEXT = M3Config(image_aspect_ratio="anyres", image_grid_pinpoints=((672, 336), (336, 672), (672, 672)))
MAX_UPLOAD = 200_000


@pytest.fixture(scope="module")
def model() -> Any:
    return m3score.load_model("m3-tiny", device="cpu")


@pytest.fixture(scope="module")
def sign(model: Any) -> tuple[Drawing, str, str]:
    """A drawn sign, the answer at one token, and another one at all."""
    for index in range(30):
        drawing = draw(SEED, index, "sign")
        question = drawing.questions[0].question
        coarse, fine = (model.answer(drawing.image, question, tokens) for tokens in (1, 576))
        if coarse != fine:
            return drawing, coarse, fine
    raise AssertionError("no answer depends on the scale")


# ---- parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("20MB", 20 * 1024**2), ("512 kB", 512 * 1024), ("1.5 GiB", 3 * 2**29), ("100", 100), ("7b", 7)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1MB", "0", "20 XB"])
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(M3ScoreError, match="--max-upload"):
        parse_size(text)
    result = CliRunner().invoke(app, ["demo", "--max-upload", text])
    assert result.exit_code == 2 and "20MB" in result.stderr


def test_streaming_says_in_the_end_what_answer_says(model: Any, sign: tuple[Drawing, str, str]) -> None:
    image, question = model.encode(sign[0].image), sign[0].questions[0].question
    for tokens in model.ladder:
        said = list(stream_answer(model, image, question, tokens))
        assert said[-1] == model.answer(image, question, tokens)
        assert len(said) > 1 and said[-1].startswith(said[0])
    assert len(list(stream_answer(model, image, question, 576, max_new_tokens=1))) == 1


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_grids_lie_on_the_picture_as_it_is_preprocessed(width: int, height: int) -> None:
    left, top, right, bottom = layout((width, height), M3Config()).box
    assert right - left == bottom - top == max(width, height)
    left, top, right, bottom = layout((width, height), M3Config(image_aspect_ratio="square")).box
    assert right - left == bottom - top == min(width, height) and left >= 0 and top >= 0
    laid = layout((width, height), NEXT)
    left, top, right, bottom = laid.box
    assert (right - left) / (bottom - top) == pytest.approx(laid.tiles[0] / laid.tiles[1])
    assert left <= 1e-6 and top <= 1e-6 and right >= width - 1e-6 and bottom >= height - 1e-6


def test_the_token_grid_shows_cells() -> None:
    halves = Image.new("RGB", (200, 100), "white")
    halves.paste((0, 0, 0), (100, 0, 200, 100))
    config = M3Config(image_mean=(1.0, 0.0, 0.0))
    ruled, mosaic, cells = render_token_grid(halves, config, 144)
    assert cells == (12, 12) and ruled.size == mosaic.size
    width, height = mosaic.size
    places = [(x * width, y * height) for x, y in ((0.25, 0.5), (0.75, 0.5), (0.5, 0.05))]
    assert [mosaic.getpixel((int(x), int(y))) for x, y in places] == [(255,) * 3, (0,) * 3, (255, 0, 0)]
    assert render_token_grid(halves, NEXT, 9)[2] == (6, 3)
    assert render_token_grid(Image.new("RGB", (1, 1)), config, 1)[2] == (1, 1)


def test_texts_from_outside_stay_texts() -> None:
    evil = "<script>alert(1)</script>"
    said = {1: fragments.TimedAnswer(evil, 1, 0.1)}
    for shown in (fragments.table(evil, (1, 9), 1, said), fragments.problem(evil)):
        assert "<script" not in shown and "&lt;script&gt;" in shown


def test_without_a_predictor_the_page_says_so(model: Any, sign: tuple[Drawing, str, str]) -> None:
    shown: dict[str, Any] = {}
    visited = session.Visit(sign[0].image)
    for change in Demo(model, predictor="no/such.predictor").ask(visited, "Read the sign.", 5):
        shown |= change
    assert "no/such.predictor" in shown["cards"] or "no/such.predictor" in str(visited.prediction)
    assert shown["answer"] == model.answer(sign[0].image, "Read the sign.", 576)
    assert visited.result and set(visited.answers) == set(model.ladder)


# ---- without a question ---------------------------------------------------------------------------------


def opened(demo: Demo, image: Image.Image, folder: Path) -> tuple[Any, dict[str, Any]]:
    """A visit with a picture that was looked at, and what the page shows."""
    image.save(folder / "picture.png")
    shown = demo.open(str(folder / "picture.png"), 3)
    visit = shown["visit"]
    assert visit is not None and "glows" not in shown["seen"] and shown["cards"] == ""
    return visit, shown | demo.look(visit, 3)


def test_a_picture_without_a_question_has_its_vision_score_and_map(model: Any, tmp_path: Path) -> None:
    demo, page = Demo(model), Image.open(ROOT / "examples" / "page_of_text.png")
    visit, shown = opened(demo, page, tmp_path)
    score = model.vision_score(page)
    assert score.reading_tokens > score.distinct_tokens
    figures = re.findall(r"<span>([^<]*)</span><b>([^<]*)</b>", shown["cards"])
    said = [score.effective_tokens, score.distinct_tokens, score.reading_tokens, score.required_tokens]
    names = ["Effective tokens", "Distinct tokens", "Tokens to read", "Scale"]
    assert figures[:4] == list(zip(names, [f"{one:.0f}" for one in said], strict=True))
    assert figures[4] == ("Complexity", f"{score.complexity:.2f}")
    assert "the tokens to read" in shown["cards"] and "tiny letters" in shown["cards"]
    assert "no question was asked" in shown["cards"] and "answer" not in shown["cards"]
    assert "glows" in shown["seen"] and shown["answer"] == shown["table"] == ""
    moved = demo.show(visit, 5)
    assert "glows" in moved["seen"] and "24 by 24" in moved["seen"] and "table" not in moved


def test_a_question_takes_the_place_of_the_vision_score(model: Any, tmp_path: Path) -> None:
    demo = Demo(model)
    visit, shown = opened(demo, Image.open(ROOT / "examples" / "sign.png"), tmp_path)
    for change in demo.ask(visit, "What number is on the sign?", 4):
        shown |= change
    shown |= demo.show(visit, 4)
    assert shown["answer"] == "274" and "glows" not in shown["seen"]
    figures = dict(re.findall(r"<span>([^<]*)</span><b>([^<]*)</b>", shown["cards"]))
    assert next(iter(figures)) == "Tokens needed" and "Effective tokens" not in figures
    assert "answers stay what the model says" in shown["cards"] and "How far answers change" in shown["cards"]
    assert demo.look(visit, 4) == {"visit": visit}  # too late: something was asked meanwhile
    for change in demo.ask(visit, "  ", 4):  # the question was taken back
        shown |= change
    assert "Effective tokens" in shown["cards"] and "glows" in shown["seen"] and shown["table"] == ""


def test_a_picture_that_cannot_be_looked_at_is_told(model: Any, tmp_path: Path) -> None:
    class Blind:
        name, ladder, config = "blind", model.ladder, model.config

        def vision_score(self, image: Any) -> Any:
            raise M3ScoreError("there is no vision tower.")

    demo = Demo(Blind())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    visit = demo.open(str(tmp_path / "a.png"), 1)["visit"]
    assert "there is no vision tower." in demo.look(visit, 1)["problem"]


@pytest.mark.parametrize(
    ("host", "said"),
    [("203.0.113.5", "not an address of this machine"), ("no.such.invalid", "there is no such address")],
)
def test_an_address_that_cannot_be_had_is_said(model: Any, host: str, said: str) -> None:
    pytest.importorskip("gradio", minversion="6")
    with pytest.raises(M3ScoreError, match=said), served(Demo(model), host=host):
        pass


def test_a_port_in_use_is_said(model: Any) -> None:
    pytest.importorskip("gradio", minversion="6")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(M3ScoreError, match=f"--port {port} .*in use"), served(Demo(model), port=port):
            pass


def test_a_wrong_predictor_is_said_at_once() -> None:
    pytest.importorskip("gradio", minversion="6")
    result = CliRunner().invoke(app, ["demo", "--predictor", "no.predictor"])
    assert result.exit_code == 2 and "no.predictor" in result.stderr


def test_an_old_or_missing_gradio_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2 and "m3score[demo]" in result.stderr


# ---- in a browser ---------------------------------------------------------------------------------------


class Page:
    """The demo in Chromium."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address.rstrip("/")

    def visit(self) -> None:
        self.driver.get(self.address)
        self.until(lambda: self.all("#file input[type=file]") and self.all("#level input[type=range]"))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return " ".join(found.text for found in self.all(selector))

    @property
    def answer(self) -> str:
        return self.all("#answer textarea")[0].get_attribute("value")

    def upload(self, path: Path) -> None:
        self.until(lambda: self.all("#file input[type=file]"))
        self.all("#file input[type=file]")[0].send_keys(str(path))

    def ask(self, question: str) -> None:
        box = self.all("#question textarea")[0]
        box.clear()
        box.send_keys(question)
        self.all("#ask")[0].click()
        self.until(lambda: self.text("#table caption") == question and self.all("#table .yes"))

    def move_slider(self, level: int) -> None:
        from selenium.webdriver.common.keys import Keys

        slider = self.all("#level input[type=range]")[0]
        slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * (level - 1))
        self.until(lambda: f"Level {level} of 5" in self.text("#level-line"))

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        """Wait for it; what was redrawn while it was looked at is looked at again."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if condition():
                    return
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        raise AssertionError(f"never came: {self.text('body')[:2000]}")


@pytest.fixture(scope="module")
def page(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    pytest.importorskip("gradio", minversion="6", reason="needs Gradio: pip install 'm3score[demo]'")
    pytest.importorskip("selenium", reason="needs Selenium: pip install selenium")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs the programs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "window-size=1280,1330",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    drawn = draw_examples(tmp_path_factory.mktemp("drawn"))
    with served(Demo(model), drawn, port=0, max_upload=MAX_UPLOAD) as address:
        chromium = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield Page(chromium, address)
        finally:
            chromium.quit()


def write_clip(path: Path) -> Path:
    """Three seconds of drawn signs, one after the other."""
    av = pytest.importorskip("av", reason="needs PyAV: pip install 'm3score[video]'")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 336
        stream.pix_fmt = "yuv420p"
        for number in range(12):
            drawn = draw(SEED, number // 2, "sign").image.convert("RGB").resize((336, 336))
            container.mux(stream.encode(av.VideoFrame.from_image(drawn)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def picture(sign: tuple[Drawing, str, str], tmp_path: Path) -> Path:
    path = tmp_path / "a sign.png"
    sign[0].image.save(path)
    return path


def test_upload_ask_and_move_the_slider(
    page: Page, model: Any, sign: tuple[Drawing, str, str], picture: Path
) -> None:
    drawing, coarse, fine = sign
    page.visit()
    page.upload(picture)
    page.until(lambda: page.all("#seen .where") and "Effective tokens" in page.text("#cards"))
    page.ask(drawing.questions[0].question)
    assert "36 visual tokens" in page.text("#level-line")
    assert page.answer == model.answer(drawing.image, drawing.questions[0].question, 36)
    if folder := os.environ.get("M3SCORE_SCREENSHOTS"):
        page.driver.save_screenshot(str(Path(folder) / "session.png"))

    before = page.all("#seen img")[0].get_attribute("src")
    page.move_slider(5)
    page.until(lambda: page.answer == fine)
    page.until(lambda: page.all("#seen img")[0].get_attribute("src") != before)
    assert page.text("#table tr.chosen td:first-child") == "5"
    page.move_slider(1)
    page.until(lambda: page.answer == coarse)

    rows = [row.text for row in page.all("#table tbody tr")]
    assert len(rows) == 5 and fine in rows[0] and "✓" in rows[0] and coarse in rows[4] and "✗" in rows[4]
    cards = page.text("#cards")
    assert "Complexity" in cards and "Tokens needed" in cards and "predict_scale" in cards
    assert not page.all("#seen .where") and "Effective tokens" not in cards


def test_nothing_was_fetched_from_elsewhere_and_the_console_is_quiet(page: Page) -> None:
    """Of the visit above: what comes below breaks off requests, and the console says so."""
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert len(asked) > 5
    assert not [url for url in asked if not url.startswith((page.address, "data:", "blob:"))]
    assert not [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_bad_files_are_told_and_mended(page: Page, tmp_path: Path, picture: Path) -> None:
    page.visit()
    bad = tmp_path / "notes.png"
    bad.write_text("no picture")
    page.upload(bad)
    page.until(lambda: "notes.png: not an image" in page.text("#problem"))
    assert not page.all("#seen img") and "/" not in page.text("#problem")
    page.all("#ask")[0].click()
    page.until(lambda: "Give me a picture first" in page.text("#problem"))
    page.all("#file button[aria-label='Clear']")[0].click()
    page.upload(picture)
    page.until(lambda: page.all("#seen img") and not page.text("#problem"))


def test_a_video_is_seen_as_a_grid_of_its_frames(page: Page, model: Any, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "signs.mp4")
    frames, question = open_image(clip), "Read the sign."
    said = {tokens: model.answer(frames, question, tokens) for tokens in (1, 36, 576)}
    assert said[1] != said[576]
    page.visit()
    page.upload(clip)
    page.until(lambda: len(page.all("#seen img")) == 2 and not page.text("#problem"))
    page.ask(question)
    assert page.answer == said[36]
    page.move_slider(5)
    page.until(lambda: page.answer == said[576])
    page.move_slider(1)
    page.until(lambda: page.answer == said[1])
    broken = tmp_path / "cut off.mp4"
    broken.write_bytes(clip.read_bytes()[:600])
    page.all("#file button[aria-label='Clear']")[0].click()
    page.upload(broken)
    page.until(lambda: "cut off.mp4: " in page.text("#problem"))
    assert not page.all("#seen img")


def test_large_files_are_refused(page: Page, tmp_path: Path) -> None:
    page.visit()
    large = tmp_path / "large.bmp"
    Image.new("RGB", (300, 300)).save(large)
    assert large.stat().st_size > MAX_UPLOAD
    page.upload(large)
    page.until(lambda: "maximum" in page.text("body").lower())
    assert not page.all("#seen img")


def test_visitors_do_not_mix(page: Page, model: Any, sign: tuple[Drawing, str, str], picture: Path) -> None:
    page.visit()
    page.upload(picture)
    page.until(lambda: page.all("#seen img"))
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.visit()
    page.all("#examples button")[1].click()  # a picture that is on offer, with its question
    page.until(lambda: page.all("#seen img") and page.all("#question textarea")[0].get_attribute("value"))
    page.ask("Read the word.")
    page.driver.switch_to.window(first)
    assert not page.all("#table td")
    page.ask(sign[0].questions[0].question)
    page.move_slider(5)
    page.until(lambda: page.answer == sign[2])
    page.driver.switch_to.window(page.driver.window_handles[-1])
    assert page.text("#table caption") == "Read the word."
    page.driver.close()
    page.driver.switch_to.window(first)
