"""The fleet's view in a real browser: nodes, queues, and failures that are tried again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.api import Api
from tests.support.browser import Watched, serious_findings
from tests.support.fleet import FAMILIES, Fleet

USER = "page-fleet"


@pytest.fixture(scope="module")
def api(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose user is an operator, and has a video that can't be read."""
    broken = tmp_path_factory.mktemp("fleet") / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypisom" + b"no video " * 500)
    fleet.process(broken, "unreadable", USER)
    fleet.wait_for("unreadable", "failed", USER)
    found = Api(fleet, "page-fleet", SCENEFLEET_USER=USER)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def page(browser: Browser, api: Api) -> Iterator[Page]:
    watched = Watched(browser, api.url)
    watched.page.goto("/fleet")
    expect(watched.page.get_by_role("heading", name="Fleet")).to_be_visible()
    yield watched.page
    watched.context.close()
    assert watched.complaints == []


def attempts(fleet: Fleet) -> int:
    """How often the video was split."""
    (found,) = fleet.rows(
        "SELECT sum(attempt) AS n FROM jobs JOIN videos USING (video_id)"
        " WHERE stage = 'split' AND videos.user_id = %s AND external_id = 'unreadable'",
        USER,
    )
    return int(found["n"])


def test_a_failure_is_tried_again(page: Page, fleet: Fleet) -> None:
    fault = page.locator("[data-error=BadMedia]")
    expect(fault).to_contain_text("Unreadable videos")
    expect(fault).to_contain_text("no moov box")
    expect(fault.get_by_role("link", name="unreadable")).to_have_attribute("href", "/v/unreadable")
    expect(page.locator("[data-queue=media] td").last).to_have_text(re.compile("[1-9]"))
    before = attempts(fleet)
    assert serious_findings(page) == []
    with page.expect_response(re.compile("/fleet/failures/retry$")) as answer:
        fault.get_by_role("button", name="again").click()
    assert answer.value.json()["videos"] >= 1
    expect(page.locator(".toast").filter(has_text="processed again")).to_be_visible()
    # It fails again, and the view says so by itself.
    fleet.wait_for("unreadable", "failed", USER)
    assert attempts(fleet) > before
    expect(fault).to_contain_text("just now")


def test_nodes_and_their_states_are_live(page: Page, fleet: Fleet) -> None:
    for family in FAMILIES:
        expect(page.locator(f"[data-node^='{family}@']")).to_contain_text("ready")
    expect(page.locator(".sum")).to_contain_text(f"All {len(FAMILIES)} nodes are ready")
    expect(page.locator("[data-queue]")).not_to_have_count(0)
    fleet.kill("ocr")
    try:
        # What a node publishes expires half a minute after its death.
        expect(page.locator("[data-node^='ocr@']")).to_have_count(0, timeout=60_000)
    finally:
        fleet.restart("ocr")
        fleet.wait_ready("ocr")
    expect(page.locator("[data-node^='ocr@']")).to_contain_text("ready", timeout=15_000)
