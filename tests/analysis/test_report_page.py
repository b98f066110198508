"""The report in a real browser: it renders, sorts, filters, opens and closes by keyboard, and stays quiet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m3score.analysis.report.content import add_pictures, gather
from m3score.analysis.report.page import save, write_report
from m3score.tables.io import write_scores
from tests.support.browser import NARROW, WIDE, chromium, look, open_page
from tests.support.reports import folder_of_pictures, looked_rows, score_rows, trace_rows

HOSTILE = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>.png"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on 90 pictures, one with a hostile name, and an input that failed."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "one").mkdir()
    names = [f"one/{name}" for name in folder_of_pictures(folder / "one", 89)] + [HOSTILE]
    rows = score_rows(90, names)
    failed = {"path": f"bad/{HOSTILE}", "error": f"truncated {HOSTILE}"}
    traces = trace_rows(rows)
    for row in traces:
        row["answer"] += HOSTILE
    write_scores([*rows, failed], folder / "scores.csv")
    write_report(folder / "scores.csv", folder / "report.html", traces=traces, title=HOSTILE)
    (folder / "moved").mkdir()  # the page needs nothing beside it
    return (folder / "report.html").rename(folder / "moved" / "report.html")


@pytest.fixture(scope="module")
def started(page: Path) -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(started: Any, page: Path) -> Iterator[Any]:
    """The page, freshly opened; whatever a test does, nothing may be said on the console."""
    look(started, WIDE)
    open_page(started, page)
    yield started
    assert started.get_log("browser") == []
    assert "owned" not in started.execute_script("return document.title.split(':')[1]")


def css(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def scores(browser: Any) -> list[Any]:
    """The leading numbers of the tiles, None of unsolved ones."""
    numbers = (
        "[...document.querySelectorAll('#gallery .facts b')].map((b) => Number.parseFloat(b.textContent))"
    )
    return browser.execute_script(f"return {numbers}")


def complexities(browser: Any) -> list[float]:
    return browser.execute_script("return gallery.items.map((item) => item.complexity)")


def choose(browser: Any, control: str, value: str) -> None:
    browser.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}))",
        control,
        value,
    )


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(browser)
    for key in keys:
        chain.send_keys(key)
    chain.perform()


def focused(browser: Any) -> str:
    return browser.execute_script(
        "const a = document.activeElement; return a.id || a.title || a.className || a.tagName"
    )


def test_it_renders(browser: Any) -> None:
    assert css(browser, "h1")[0].text == "How complex are these pictures?"
    assert len(css(browser, ".bar")) == 6
    assert css(browser, "#frontier svg") and len(css(browser, "[data-strip]")) == 2
    shown = "return document.querySelector('#gallery img').decode().then(() => true)"
    assert browser.execute_script(shown)
    assert "75 pictures" in css(browser, "#status")[0].text  # the unsolved ones are a group of their own
    assert len(css(browser, "#gallery .tile")) < 75  # the others are made when they are scrolled to
    browser.execute_script("document.getElementById('more').scrollIntoView()")
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 100))")
    assert len(css(browser, "#gallery .tile")) == 75


def test_a_tile_says_what_its_number_is(browser: Any) -> None:
    """0.08 beside 576 tokens, and 0.13 beside 1 token, contradicted each other without a word."""
    tiles = [tile.text.split("\n")[:2] for tile in css(browser, "#gallery .tile")]
    assert tiles[0] == ["1", "token needed"] and tiles[20] == ["9", "tokens needed"]


def test_it_sorts_and_filters(browser: Any) -> None:
    assert scores(browser) == sorted(scores(browser))
    choose(browser, "order", "complex")
    assert scores(browser) == sorted(scores(browser), reverse=True)
    choose(browser, "least", "0.5")
    assert min(complexities(browser)) >= 0.5 and "37 of 75" in css(browser, "#status")[0].text
    choose(browser, "show", "unsolved")
    assert scores(browser) == [None] * 8 and "8 of 15" in css(browser, "#status")[0].text
    choose(browser, "text", "no such thing")
    assert css(browser, "#gallery .empty")
    css(browser, "#clear")[0].click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert "75 pictures" in css(browser, "#status")[0].text
    choose(browser, "folder", "one")
    assert "75 pictures" in css(browser, "#status")[0].text
    choose(browser, "folder", "*")
    choose(browser, "show", "error")
    assert len(css(browser, "#gallery .tile.failed")) == 1
    css(browser, '.bar[data-show="9"]')[0].click()
    assert len(scores(browser)) == 15


def test_a_picture_opens_and_closes_by_keyboard(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.execute_script("document.querySelector('#gallery .tile').focus({preventScroll: true})")
    press(browser, Keys.ARROW_RIGHT)
    assert focused(browser) == "one/006.png"  # the next one that needs one token
    press(browser, Keys.ARROW_DOWN)
    below = focused(browser)
    assert below not in ("one/000.png", "one/006.png") and below.startswith("one/")
    press(browser, Keys.ENTER)
    assert browser.execute_script("return document.getElementById('detail').open")
    assert css(browser, "#detail-h")[0].text == below.removeprefix("one/")
    assert len(css(browser, "#detail-body .answers thead th")) == 6
    press(browser, Keys.ARROW_RIGHT)
    assert css(browser, "#detail-h")[0].text != below.removeprefix("one/")
    press(browser, Keys.ESCAPE)
    assert not browser.execute_script("return document.getElementById('detail').open")
    assert focused(browser) == below
    press(browser, Keys.END)
    assert focused(browser) == "one/088.png"
    tabs = "return document.querySelectorAll('#gallery .tile[tabindex=\"0\"]').length"
    assert browser.execute_script(tabs) == 1


def test_hostile_names_answers_and_errors_stay_text(browser: Any) -> None:
    choose(browser, "show", "unsolved")
    choose(browser, "text", "onerror")
    css(browser, "#gallery .tile")[0].click()
    assert HOSTILE.split("/")[-1] in css(browser, "#detail-h")[0].text
    assert HOSTILE in css(browser, "#detail-body .where")[0].text
    assert HOSTILE in css(browser, ".answers td")[0].text
    injected = "return document.querySelectorAll('img[src=x], img[onerror], script:not([id])').length"
    assert browser.execute_script(injected) == 1  # its own script
    assert HOSTILE in css(browser, "#errors td")[0].get_attribute("textContent")


def test_every_control_has_a_name_and_nothing_is_wider_than_a_phone(browser: Any) -> None:
    unnamed = """return [...document.querySelectorAll('button, input, select, a, svg[role], [role=region]')]
      .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
      .map((e) => e.outerHTML)"""
    assert browser.execute_script(unnamed) == []
    look(browser, NARROW)
    css(browser, "#theme")  # the page is laid out anew
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = (c) => c.slice(0, 3).map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const colour = rgb(getComputedStyle(e).backgroundColor);
    if (colour[3] > 200) return colour;
  }
  return rgb('white');
};
document.querySelectorAll('#gallery .tile')[5].click();
return [...document.querySelectorAll('body *')].filter((e) => e.getClientRects().length &&
    !e.matches('script, style, .skip, option') &&
    [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
  .map((e) => {
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith('svg');
    const a = light(rgb(svg ? style.fill : style.color)), b = light(behind(e));
    const name = `${e.tagName} ${e.getAttribute('class')} ${e.textContent.slice(0, 40)}`;
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), name];
  }).filter(([ratio]) => ratio < 4.5)
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast(browser: Any, dark: bool) -> None:
    look(browser, WIDE, dark=dark)
    assert browser.execute_script(CONTRAST) == []  # WCAG AA: 4.5 to 1


def test_the_theme_can_be_switched(browser: Any) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(background)
    css(browser, "#theme")[0].click()
    assert browser.execute_script(background) != before
    css(browser, "#theme")[0].click()
    assert browser.execute_script(background) == before


def test_filters_say_what_they_choose_among(started: Any, tmp_path: Path) -> None:
    rows = [{**row, "path": f"{i % 40}/{i}.png"} for i, row in enumerate(score_rows(600))]
    failed = [{"path": f"bad/{i}.png", "error": "truncated"} for i in range(501)]
    write_report([*rows, *failed], tmp_path / "report.html", pictures=60)
    open_page(started, tmp_path / "report.html")
    status = lambda: css(started, "#status")[0].text  # noqa: E731
    assert status() == "52 of 500 pictures, drawn evenly over the scores."
    assert "60 of 600 pictures are shown" in css(started, ".sampled")[0].text
    choose(started, "show", "9")
    shown = len(scores(started))
    assert status() == f"{shown} of the 52 shown pictures. In the whole table: 100 pictures like that."
    choose(started, "most", "0.5")
    assert status().endswith("of the 52 shown pictures.")
    choose(started, "most", "1")
    choose(started, "show", "unsolved")
    assert status() == "8 of 100 pictures, drawn evenly over the scores."
    choose(started, "show", "error")
    assert status() == "The first 500 of 501 inputs that failed."
    choose(started, "text", "499.png")
    assert status() == "1 of the 500 listed inputs."
    assert css(started, '.bar[data-show="9"] .count')[0].text == "100"
    assert started.get_log("browser") == []


def test_a_picture_by_vision_opens_under_its_map(started: Any, tmp_path: Path) -> None:
    """No model runs: a map is what the page's script is given."""
    names = folder_of_pictures(tmp_path, 6)
    report = gather(looked_rows(6, names))
    add_pictures(report, lambda name: str(tmp_path / name))
    where = {"grid": 24, "box": [0, -0.1667, 1, 1.1667], "where": "0f" * 288, "top": 0.5}
    report.maps, report.map_model = [where] * 6, "m3-tiny"
    save(report, tmp_path / "report.html")
    open_page(started, tmp_path / "report.html")
    assert "effective tokens" in css(started, "#gallery .tile .facts")[3].text
    css(started, "#gallery .tile")[3].click()
    shown = "return !document.querySelector('#detail canvas').hidden"
    assert started.execute_script(shown)
    facts = css(started, "#detail .facts-part")[0].text
    assert "effective tokens\n24" in facts and "no text to speak of" in facts and "so they count" in facts
    assert len(css(started, "#detail .chart circle")) == 5  # the share kept at each scale
    css(started, "#detail .choices label")[1].click()
    assert not started.execute_script(shown)
    assert started.get_log("browser") == []
