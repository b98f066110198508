"""A headless Chromium for tests of pages, or a skip that says what is missing; in CI that is a failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

WIDE, NARROW = (1400, 1000), (390, 844)


@contextmanager
def chromium(size: tuple[int, int] = WIDE, *, dark: bool = False) -> Iterator[Any]:
    """A selenium driver; `look` changes its size and theme later."""
    driver = shutil.which("chromedriver")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not binary:
        do_without("no chromium and chromedriver on the PATH")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    try:
        look(browser, size, dark=dark)
        yield browser
    finally:
        browser.quit()


def do_without(what: str) -> NoReturn:
    """Skip the test; where CI is set to true, fail it: there nothing may be missing."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{what}: in CI the tests of pages have to run (.ci/run installs a browser)")
    pytest.skip(what)


def look(browser: Any, size: tuple[int, int], *, dark: bool = False) -> None:
    """Set the window's size in CSS pixels, and the theme that the system asks for."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})


def open_page(browser: Any, page: Path) -> None:
    """Open a file from disk."""
    browser.get(page.resolve().as_uri())
