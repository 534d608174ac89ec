"""The people of the page in a real browser: an unknown one gets a name and is found, is merged, parted, erased."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.api import Api
from tests.support.browser import serious_findings
from tests.support.excerpt import write_muted
from tests.support.fleet import Fleet, eventually
from tests.support.pages import open_page

USER = "page-people"


@pytest.fixture(scope="module")
def api(fleet: Fleet, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An API whose user has the sample's pictures, and nobody with a name."""
    film = tmp_path_factory.mktemp("clips") / "film.mp4"
    write_muted(sample, film)
    fleet.index(film, "film", USER)
    found = Api(fleet, "page-people", SCENEFLEET_USER=USER)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def page(browser: Browser, api: Api) -> Iterator[Page]:
    with open_page(browser, api.url) as found:
        found.goto("/people")
        yield found


def people(api: Api, kind: str) -> list[dict[str, Any]]:
    query = {"kind": kind}
    found: list[dict[str, Any]] = httpx.get(f"{api.url}/api/v1/people", params=query, timeout=30).json()[
        "people"
    ]
    return found


def tile(page: Page, name: str) -> Locator:
    """The face of a person in the list."""
    return page.locator(f"[data-person='{name}']")


def choose(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_role("checkbox", name=f"Choose {name}", exact=True).check()


def toasted(page: Page, text: str) -> Locator:
    """The message with this text."""
    found = page.locator(".toast").filter(has_text=text)
    expect(found).to_be_visible()
    return found


def test_axe_finds_nothing_serious(page: Page, api: Api) -> None:
    (unknown,) = people(api, "unknown")
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.goto("/people")
        choose(page, unknown["name"])
        found[f"people {scheme}"] = serious_findings(page)
        page.goto(f"/people/{unknown['person_id']}")
        page.get_by_role("checkbox", name=re.compile("Choose the face at")).first.check()
        found[f"person {scheme}"] = serious_findings(page)
        page.get_by_role("button", name="Make a new person").click()
        expect(page.get_by_role("textbox", name="Name (may be empty)")).to_be_focused()
        found[f"split {scheme}"] = serious_findings(page)
        page.keyboard.press("Escape")
        page.get_by_role("button", name=f"What to do with {unknown['name']}").click()
        found[f"menu {scheme}"] = serious_findings(page)
        page.get_by_role("menuitem", name="Erase").click()
        found[f"erase {scheme}"] = serious_findings(page)
        page.keyboard.press("Escape")
    assert not any(found.values()), found


def test_an_unknown_person_from_a_name_to_the_receipt(page: Page, api: Api) -> None:
    (unknown,) = people(api, "unknown")
    expect(page.get_by_role("heading", name="Who is this?")).to_be_visible()
    face = tile(page, unknown["name"])
    # The best face is drawn: the astronaut's, not a blank square.
    eventually(
        lambda: face.locator("canvas").evaluate(
            "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size > 50"
        ),
        within_s=20,
        what="the face is shown",
    )
    choose(page, unknown["name"])
    page.get_by_role("combobox", name="Name").fill("Eileen Collins")
    page.keyboard.press("Enter")
    expect(tile(page, "Eileen Collins")).to_be_visible()
    assert people(api, "unknown") == [] and people(api, "named")[0]["name"] == "Eileen Collins"

    # Undo from the message, and the same again.
    toasted(page, "This is now Eileen Collins").get_by_role("button", name="Undo").click()
    expect(tile(page, unknown["name"])).to_be_visible()
    assert people(api, "named") == []
    choose(page, unknown["name"])
    page.get_by_role("combobox", name="Name").fill("Eileen Collins")
    page.get_by_role("button", name="Name", exact=True).click()
    expect(tile(page, "Eileen Collins")).to_be_visible()

    # Found in a search, and seen at a moment that opens the player.
    tile(page, "Eileen Collins").get_by_role("link").click()
    moment = page.locator("a[href*='/v/film?t=']").first
    expect(moment).to_be_visible()
    seconds = float((moment.get_attribute("href") or "").partition("t=")[2])
    assert 8.6 <= seconds < 17.72
    page.get_by_role("link", name="Search with this person").click()
    expect(page.locator("sf-hit")).to_have_count(1, timeout=20_000)

    # Merged by choosing two, and parted again from the history.
    page.goto("/people")
    page.get_by_role("button", name="Add a person").click()
    page.get_by_role("textbox", name="Name").fill("Ann Lee")
    page.locator("sf-dialog").get_by_role("button", name="Add a person").click()
    expect(page.get_by_role("heading", name="Ann Lee")).to_be_visible()
    page.goto("/people")
    choose(page, "Eileen Collins", "Ann Lee")
    page.get_by_role("button", name="Merge into Eileen Collins").click()
    expect(tile(page, "Ann Lee")).to_have_count(0)
    toasted(page, "Ann Lee is now part of Eileen Collins")
    page.get_by_role("link", name="History").click()
    page.get_by_role("button", name="Undo: Ann Lee was merged into Eileen Collins").click()
    toasted(page, "Undone")
    page.get_by_role("link", name="Faces").click()
    expect(tile(page, "Ann Lee")).to_be_visible()

    # A face is parted into a new person, and that is undone.
    tile(page, "Eileen Collins").get_by_role("link").click()
    page.get_by_role("checkbox", name=re.compile("Choose the face at")).first.check()
    page.get_by_role("button", name="Make a new person").click()
    page.get_by_role("textbox", name="Name (may be empty)").fill("Pamela Melroy")
    page.locator("sf-dialog").get_by_role("button", name="Make a new person").click()
    message = toasted(page, "1 face is no longer part of Eileen Collins")
    assert "Pamela Melroy" in [person["name"] for person in people(api, "named")]
    message.get_by_role("button", name="Undo").click()
    eventually(
        lambda: (
            "Pamela Melroy" not in [person["name"] for person in people(api, "named") if person["scenes"]]
        ),
        within_s=20,
        what="the face is back",
    )

    # Erased only after the name has been typed; the receipt stays at the address.
    page.get_by_role("button", name="What to do with Eileen Collins").click()
    page.get_by_role("menuitem", name="Erase").click()
    erase = page.locator("sf-dialog").get_by_role("button", name="Erase")
    expect(erase).to_be_disabled()
    page.get_by_role("textbox", name="Type “Eileen Collins” to confirm").fill("Eileen Collins")
    erase.click()
    expect(page.get_by_role("heading", name="This person was erased")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("row", name=re.compile("face tracks [1-9]"))).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="This person was erased")).to_be_visible()
    expect(page.locator("main")).not_to_contain_text("Eileen Collins")
    assert "Eileen Collins" not in [person["name"] for person in people(api, "named")]


def test_photos_say_what_is_wrong_with_them(page: Page, assets: Path, tmp_path: Path, sample: Path) -> None:
    page.get_by_role("button", name="Add a person").click()
    page.get_by_role("textbox", name="Name").fill("Barack Obama")
    page.locator("sf-dialog input[type=file]").set_input_files(assets / "obama.jpg")
    page.locator("sf-dialog").get_by_role("button", name="Add a person").click()
    expect(page.get_by_role("heading", name="Barack Obama")).to_be_visible()
    photos = page.locator(".photos img")
    expect(photos).to_have_count(1)
    expect(page.locator(".photos li.good")).to_have_count(1, timeout=60_000)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"no picture")
    page.locator("#file").set_input_files(broken)
    expect(photos).to_have_count(2)
    expect(page.locator(".photos li.refused")).to_have_count(1, timeout=60_000)
    page.locator(".photos li.refused").get_by_role("button", name="Remove this photo").click()
    expect(photos).to_have_count(1)
