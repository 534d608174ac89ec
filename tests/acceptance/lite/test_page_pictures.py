"""The pictures of README.md: `make screenshots` stores them in docs/pictures, a test run takes and forgets them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.api import Api
from tests.support.browser import Watched

#: Names the folder for the pictures; default: one of the test.
VARIABLE = "SCENEFLEET_PICTURES"
MAX_BYTES = 150_000
#: Whether every picture that can be seen is there, given all of the page.
ALL_SHOWN = """pictures => Promise.all(pictures
    .filter((img) => img.getBoundingClientRect().top < innerHeight)
    .map((img) => img.decode().then(() => img.naturalWidth > 0, () => false)))
    .then((shown) => shown.length > 0 && shown.every(Boolean))"""

pytestmark = pytest.mark.usefixtures("film")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = Path(os.environ.get(VARIABLE) or tmp_path)
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture
def view(browser: Browser, api: Api) -> Iterator[Page]:
    """A page that looks the same on every machine, as far as fonts allow."""
    watched = Watched(browser, api.url, reduced_motion="reduce", locale="en-GB", timezone_id="UTC")
    yield watched.page
    watched.context.close()
    assert watched.complaints == []


def photograph(page: Page, path: Path) -> None:
    """Store what the page shows."""
    with Image.open(io.BytesIO(page.screenshot(animations="disabled"))) as picture:
        picture.convert("RGB").save(path, "WEBP", quality=82, method=6)
    assert path.stat().st_size < MAX_BYTES, "too large for a repository"


def test_search(view: Page, folder: Path) -> None:
    view.emulate_media(color_scheme="light")
    view.goto("/?q=a+hot+drink&video=film")
    expect(view.locator("sf-hit").first).to_contain_text("coffee")
    assert view.locator("sf-hit img").evaluate_all(ALL_SHOWN)
    photograph(view, folder / "search.webp")


def test_player(view: Page, folder: Path, truth: dict[str, Any]) -> None:
    view.emulate_media(color_scheme="dark")
    view.goto("/?q=a+hot+drink&video=film")
    view.locator("sf-hit a.picture").first.click()
    expect(view.locator("sf-transcript li.active")).to_contain_text("cup of coffee")
    video = view.locator("sf-player video").element_handle()
    start_s, end_s = truth["scenes"][3]["start_s"], truth["scenes"][3]["end_s"]
    view.wait_for_function("([v, s]) => v.currentTime > s + 1", arg=[video, start_s])
    view.keyboard.press("k")
    view.wait_for_function("([v, e]) => v.paused && !v.seeking && v.currentTime < e", arg=[video, end_s])
    photograph(view, folder / "player.webp")
