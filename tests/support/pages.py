"""A page that fails its test for errors of its scripts, and a network that fails it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page

#: What Chromium says of requests that fail because a test stops what they ask for.
_EXPECTED = re.compile(r"Failed to load resource|net::ERR_")


@contextmanager
def open_page(browser: Browser, url: str) -> Iterator[Page]:
    """A page of its own at ``url``; fails the test for any error that a script of the page raises or logs."""
    context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.set_default_timeout(15_000)
    try:
        yield page
    finally:
        context.close()
    assert [error for error in errors if not _EXPECTED.search(error)] == []


class Network:
    """Slows and breaks a page's network. Not by ``BrowserContext.set_offline``: of two sessions that set conditions
    Chromium obeys one."""

    def __init__(self, page: Page) -> None:
        self._cdp = page.context.new_cdp_session(page)
        self._cdp.send("Network.enable")

    def limit(self, upload_bytes_per_s: int) -> None:
        """Mend the network and limit how fast the page sends; -1: no limit."""
        self._set(offline=False, upload_bytes_per_s=upload_bytes_per_s)

    def switch_off(self) -> None:
        """Break the network, also for what is being sent."""
        self._set(offline=True, upload_bytes_per_s=0)

    def _set(self, *, offline: bool, upload_bytes_per_s: int) -> None:
        self._cdp.send(
            "Network.emulateNetworkConditions",
            {
                "offline": offline,
                "latency": 0,
                "downloadThroughput": -1,
                "uploadThroughput": upload_bytes_per_s,
            },
        )
