"""Sign-in to an API that asks for keys, in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.api import Api
from tests.support.browser import Watched, serious_findings
from tests.support.fleet import Fleet
from tests.support.oidc import PAGE, SECRET, Provider

USER = "page-sign-in"


@pytest.fixture(scope="module")
def keyed(fleet: Fleet) -> Iterator[Api]:
    """An API that asks for keys."""
    found = Api(fleet, "page-keyed", API_KEYS="true")
    found.start()
    yield found
    found.stop()


@pytest.fixture
def page(browser: Browser, keyed: Api) -> Iterator[Page]:
    """A browser that has not signed in."""
    watched = Watched(browser, keyed.url)
    yield watched.page
    watched.context.close()
    assert watched.complaints == []


def make_key(fleet: Fleet, *options: str) -> tuple[str, str]:
    """A key of the user, and its id."""
    made = json.loads(fleet.command("keys", "add", "--user", USER, "--json", *options).stdout)
    return made["key"], made["key_id"]


def sign_in(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")


def test_a_browser_signs_in_where_it_was_until_it_signs_out(page: Page, fleet: Fleet) -> None:
    key, _ = make_key(fleet)
    page.goto("/people?kind=unknown")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_label("API key")).to_be_focused()
    expect(page.get_by_role("navigation")).to_have_count(0)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert serious_findings(page) == []
    sign_in(page, key[:-1] + ("a" if key[-1] != "a" else "b"))
    expect(page.get_by_role("alert")).to_contain_text("the API key is not valid")
    expect(page.get_by_label("API key")).to_be_focused()
    assert serious_findings(page) == []

    sign_in(page, key)
    expect(page.get_by_role("heading", name="People")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/people\?kind=unknown$"))
    expect(page.get_by_role("navigation").get_by_role("link", name="Fleet")).to_have_count(0)
    # The page's own scripts can't read the key.
    assert page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"
    page.reload()
    expect(page.get_by_role("heading", name="People")).to_be_visible()

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.request.get("/api/v1/me").status == 401


def test_a_key_that_ends_leads_back_to_the_same_view(page: Page, keyed: Api, fleet: Fleet) -> None:
    key, key_id = make_key(fleet)
    page.goto("/library")
    sign_in(page, key)
    expect(page.get_by_role("heading", name="Drop videos here")).to_be_visible()
    assert fleet.command("keys", "end", key_id).returncode == 0
    # A process remembers for some seconds that a key was valid.
    keyed.kill()
    keyed.restart()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=30_000)
    operator, _ = make_key(fleet, "--operator")
    sign_in(page, operator)
    expect(page.get_by_role("heading", name="Drop videos here")).to_be_visible()
    expect(page).to_have_url(re.compile("/library$"))
    expect(page.get_by_role("navigation").get_by_role("link", name="Fleet")).to_be_visible()


def test_where_the_api_has_an_openid_provider_its_sign_in_comes_first(page: Page) -> None:
    ways = {"key": True, "oidc": "/api/v1/session/oidc"}
    page.route("**/api/v1/session", lambda route: route.fulfill(json=ways))
    page.goto("/library?state=failed")
    link = page.get_by_role("link", name="Sign in with your account")
    expect(link).to_be_focused()
    expect(link).to_have_attribute("href", "/api/v1/session/oidc?next=%2Flibrary%3Fstate%3Dfailed")
    expect(page.get_by_label("API key")).to_be_visible()
    assert serious_findings(page) == []


@pytest.fixture(scope="module")
def provided(fleet: Fleet) -> Iterator[Api]:
    """An API whose users sign in at a real OpenID provider."""
    uris: list[str] = []
    provider = Provider(uris)
    configured = {"OIDC_ISSUER": provider.url, "OIDC_CLIENT_ID": PAGE, "OIDC_CLIENT_SECRET": SECRET}
    found = Api(fleet, "page-provided", **configured)
    uris.append(f"{found.url}/api/v1/session/oidc/callback")
    provider.start()
    try:
        found.start()
        yield found
        found.stop()
    finally:
        provider.stop()


def test_a_person_signs_in_at_the_provider_and_comes_back(browser: Browser, provided: Api) -> None:
    watched = Watched(browser, provided.url)
    page = watched.page
    page.goto("/library")
    page.get_by_role("link", name="Sign in with your account").click()
    # The person refuses, then tries again.
    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("alert")).to_contain_text("The sign-in did not succeed")
    assert serious_findings(page) == []
    page.goto("/library")
    page.get_by_role("link", name="Sign in with your account").click()
    page.locator("input[name=login]").fill("ann")
    page.locator("input[name=password]").fill("x")
    page.locator("button[type=submit]").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("heading", name="Drop videos here")).to_be_visible()
    expect(page).to_have_url(re.compile(r"/library$"))
    assert page.request.get("/api/v1/me").json()["user_id"] == "ann"
    page.evaluate("localStorage.setItem('upload:film', '{}')")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert page.request.get("/api/v1/me").status == 401
    # Nobody after them sees what they uploaded.
    assert page.evaluate("localStorage.getItem('upload:film')") is None
    watched.context.close()
    assert watched.complaints == []
