"""The report as a real browser shows it: on a phone, on a desk, light and dark."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PHONE, DESK = (390, 844), (1280, 900)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


def absent(reason: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("KD_REQUIRE_BROWSER"):
        pytest.fail(f"KD_REQUIRE_BROWSER is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    try:
        from selenium import webdriver
    except ImportError:
        absent("selenium is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        absent("there is no Chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=chromedriver)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(driver: Any, report: Path) -> Any:
    driver.get(report.as_uri())
    return driver


def resize(page: Any, size: tuple[int, int], scheme: str = "light") -> None:
    """Give the page a size of screen and a colour scheme."""
    screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(1, 2, 3)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_loads_nothing_else_and_logs_no_error(page: Any, report: Path) -> None:
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    # The tab that the browser opens with asks for things of its own.
    requests = [one["request"]["url"] for one in sent if one["documentURL"] == report.as_uri()]
    outside = [url for url in requests if not url.startswith(("file:", "data:"))]
    assert report.as_uri() in requests
    assert outside == []
    assert page.get_log("browser") == []


def test_the_page_has_title_language_and_verdict_first(page: Any) -> None:
    assert page.title.startswith("Silicon, 500 labels")
    assert page.execute_script("return document.documentElement.lang") == "en"
    first = page.execute_script("return document.querySelector('main section').className")
    assert first == "verdict"


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_every_figure_is_drawn_inside_the_page(page: Any, size: tuple[int, int]) -> None:
    resize(page, size)
    figures = page.execute_script(
        "return [...document.querySelectorAll('figure')].map(figure => {"
        " const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();"
        " const drawn = [...svg.querySelectorAll('path')]"
        "  .filter(path => path.getBoundingClientRect().width > 1).length;"
        " return [figure.querySelector('h3').textContent, box.width, box.height, box.right, drawn];"
        "})"
    )
    assert len(figures) == 18
    for title, width, height, right, drawn in figures:
        assert width > 250 and height > 80, title
        assert right <= size[0], title
        assert drawn >= 3, title


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_the_page_does_not_scroll_sideways(page: Any, size: tuple[int, int]) -> None:
    resize(page, size)
    page.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    width = page.execute_script("return document.documentElement.scrollWidth")
    assert width <= page.execute_script("return window.innerWidth") == size[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("selector", ["body", "figcaption", ".outcome", "a", "summary", "svg"])
def test_text_has_contrast(page: Any, scheme: str, selector: str) -> None:
    resize(page, DESK, scheme)
    text, ground = page.execute_script(
        "return [getComputedStyle(document.querySelector(arguments[0])).color,"
        " getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    low, high = sorted((luminance(text), luminance(ground)))
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    assert (high + 0.05) / (low + 0.05) >= 4.5
