"""The library of the page in a real browser: uploads that survive, live stages, failures, delete with undo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

from tests.support.api import Api
from tests.support.fleet import Fleet, eventually
from tests.support.pages import Network, open_page

USER = "page-library"
#: Of a file, in tests of what is refused.
MAX_BYTES = 3_000_000
SLOW_BYTES_PER_S = 300_000


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Iterator[Api]:
    """An API of its own, whose user has an empty library."""
    found = Api(fleet, "page-library", SCENEFLEET_USER=USER, MAX_VIDEO_BYTES=str(MAX_BYTES))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def page(browser: Browser, api: Api) -> Iterator[Page]:
    """The empty library."""
    with open_page(browser, api.url) as found:
        found.goto("/library")
        expect(found.get_by_role("heading", name="Drop videos here")).to_be_visible()
        yield found
        for video in videos(api):
            httpx.delete(f"{api.url}/api/v1/videos/{video['video_id']}")


def videos(api: Api) -> list[dict[str, str]]:
    """All videos that are not deleted."""
    found: list[dict[str, str]] = httpx.get(f"{api.url}/api/v1/videos", timeout=30).json()["videos"]
    return found


def add(page: Page, *files: Path) -> None:
    """Add files as the button does."""
    page.locator("input[name=file]").set_input_files(list(files))


def line(page: Page, file: Path) -> Locator:
    """The line of an upload."""
    return page.locator(f"[data-upload='{file.name}']")


def row(page: Page, name: str) -> Locator:
    """The video of a name in the list."""
    return page.locator("[data-video]").filter(has_text=name)


def percent(upload: Locator) -> int:
    return int(upload.get_by_role("progressbar").get_attribute("aria-valuenow") or 0)


def test_an_upload_survives_the_network_and_a_reload_and_its_stages_are_live(
    page: Page, api: Api, sample: Path
) -> None:
    network = Network(page)
    offsets: list[int] = []

    def note(request: Request) -> None:
        if request.method == "PATCH":
            offsets.append(int(request.headers["upload-offset"]))

    page.on("request", note)
    network.limit(SLOW_BYTES_PER_S)
    add(page, sample)
    upload = line(page, sample)
    # The API stores a megabyte at once: what came of the next one dies with it.
    eventually(lambda: percent(upload) >= 60, within_s=30, what="more than a megabyte is sent")
    # Before the network: offline Chromium sends the rest of a body without a limit.
    api.kill()
    network.switch_off()
    expect(upload).to_contain_text("Waiting for the connection")
    api.restart()
    assert videos(api) == []
    network.limit(SLOW_BYTES_PER_S)
    # Requests are noted while the page is asked something.
    eventually(lambda: percent(upload) >= 0 and len(offsets) > 1, within_s=60, what="it goes on by itself")
    assert offsets[1] > 0
    eventually(lambda: percent(upload) >= 70, within_s=30, what="more has arrived")

    page.reload()
    expect(upload).to_contain_text("Interrupted")
    assert percent(upload) > 0 and videos(api) == []
    before = len(offsets)
    network.limit(-1)
    add(page, sample)
    # Without another load of the page: in the list, at work stage by stage, indexed.
    video = row(page, "demo")
    expect(video).to_be_visible()
    assert offsets[before] > offsets[0], "it begins where it was interrupted"
    seen: set[str] = set()

    def indexed() -> bool:
        words = video.get_by_role("progressbar").get_attribute("aria-valuetext") or ""
        seen.add(words.split(" ")[0].rstrip("."))
        return words.startswith("Indexed")

    eventually(indexed, within_s=200, what="the video is indexed", every_s=0.1)
    assert "In" in seen, f"never shown at work, only {seen}"
    expect(upload).to_have_count(0)
    expect(video).to_contain_text("8 scenes")
    expect(video).to_contain_text("1:05")
    expect(video.locator("img")).to_have_js_property("complete", True)
    # Progress and results survive a reload.
    page.reload()
    expect(video).to_contain_text("Indexed")
    video.get_by_role("link").first.click()
    expect(page).to_have_url(re.compile(r"/v/demo-\w+$"))


def test_an_empty_library_offers_the_sample(page: Page, api: Api) -> None:
    page.get_by_role("button", name="Try it with the sample").focus()
    page.keyboard.press("Enter")
    video = row(page, "sample")
    expect(video).to_contain_text("8 scenes", timeout=200_000)
    expect(page.get_by_role("heading", name="Drop videos here")).to_have_count(0)


def test_what_cannot_be_uploaded_is_said_before_anything_is_sent(
    page: Page, api: Api, tmp_path: Path
) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if "/uploads" in request.url else None)
    large, notes, empty = tmp_path / "large.mp4", tmp_path / "notes.txt", tmp_path / "empty.mov"
    large.write_bytes(b"\0" * (MAX_BYTES + 1))
    notes.write_text("not a film")
    empty.touch()
    add(page, large, notes, empty)
    expect(line(page, large)).to_contain_text("at most 3 MB per video")
    expect(line(page, notes)).to_contain_text("This is not a video")
    expect(line(page, empty)).to_contain_text("The file is empty")
    page.get_by_role("button", name="Remove notes.txt from the list").click()
    expect(line(page, notes)).to_have_count(0)
    assert sent == []


def test_a_failure_says_where_why_and_what_to_do(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypisom" + b"no video " * 500)
    add(page, broken)
    video = page.locator("[data-video]")
    expect(video).to_contain_text("Failed", timeout=60_000)
    expect(video).to_contain_text("Failed: Scenes")
    expect(video).to_contain_text("Convert it, for example to MP4")
    expect(video.locator("[src=x]")).to_have_count(0)
    page.get_by_role("link", name="Failed", exact=True).click()
    expect(page).to_have_url(re.compile("state=failed"))
    expect(video).to_have_count(1)
    with page.expect_response(re.compile(r"/retry$")) as answer:
        video.get_by_role("button", name="Try again").click()
    assert answer.value.status == 202


def test_a_deletion_can_be_taken_back_and_is_sent_when_the_page_is_left(
    page: Page, api: Api, silent: Path
) -> None:
    add(page, silent)
    video = row(page, "silent")
    expect(video).to_contain_text("Indexed", timeout=60_000)

    def delete() -> None:
        video.get_by_role("button", name="What to do with silent").click()
        # By keyboard: the last item of the menu.
        expect(page.get_by_role("menuitem").first).to_be_focused()
        page.keyboard.press("End")
        page.keyboard.press("Enter")
        expect(video).to_have_count(0)

    delete()
    page.get_by_role("button", name="Undo").click()
    expect(video).to_be_visible()
    assert len(videos(api)) == 1
    delete()
    assert len(videos(api)) == 1
    page.goto("about:blank")
    eventually(lambda: videos(api) == [], within_s=20, what="the video is deleted")
