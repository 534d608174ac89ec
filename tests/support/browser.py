"""A real browser for tests of the page: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from tests.support.assets import give_up
from tests.support.fleet import ROOT

AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
#: Findings that fail a test.
SERIOUS = ("serious", "critical")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium that plays H.264; without one the test is given up."""
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        give_up("Chromium is not installed: apt-get install chromium-headless-shell")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A browser context that remembers what its pages complain of."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(
            base_url=url, viewport={"width": 1280, "height": 800}, **options
        )
        #: Errors of scripts, violations of the security policy, dialogs: a page has none.
        self.complaints: list[str] = []
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.context.on("dialog", self._on_dialog)
        self.page: Page = self.context.new_page()

    def _on_console(self, message: ConsoleMessage) -> None:
        # The browser writes a line about each request that fails; what the page makes of it is what counts.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def _on_dialog(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def serious_findings(page: Page) -> list[str]:
    """What axe-core finds serious in the page as it is now; the policy lets no script in, so it runs isolated."""
    if not AXE.is_file():
        give_up("axe-core is not installed: npm ci --prefix web")
    session = page.context.new_cdp_session(page)
    frame = session.send("Page.getFrameTree")["frameTree"]["frame"]["id"]
    world = session.send("Page.createIsolatedWorld", {"frameId": frame})["executionContextId"]
    session.send("Runtime.evaluate", {"expression": AXE.read_text(), "contextId": world})
    asked = {
        "expression": "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))",
        "contextId": world,
        "awaitPromise": True,
        "returnByValue": True,
    }
    violations = json.loads(session.send("Runtime.evaluate", asked)["result"]["value"])
    session.detach()
    return [
        f"{found['id']}: {node['target']}"
        for found in violations
        if found["impact"] in SERIOUS
        for node in found["nodes"]
    ]
