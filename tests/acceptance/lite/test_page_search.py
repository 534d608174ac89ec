"""The search view in a real browser: from a question to the moment that plays, and what the page says on the way."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.acceptance.lite.conftest import API_USER
from tests.support.api import Api
from tests.support.browser import serious_findings
from tests.support.fleet import Fleet
from tests.support.services import RedisServer

#: Script and style that the first view may load, bytes.
FIRST_VIEW_BYTES = 150_000
#: The drawn box, as parts of its picture.
BOX = "({ area }) => [area.x, area.y, area.width, area.height]"
#: Spoken in seven of the eight scenes: one word in each.
SPOKEN = "rocket or coffee or cat or camera or money or eye"
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'

pytestmark = pytest.mark.usefixtures("film")


def hits_of(page: Page) -> Any:
    return page.locator("sf-hit")


def search(page: Page, query: str) -> None:
    page.goto(f"/?{httpx.QueryParams(q=query)}")
    expect(hits_of(page).first).to_be_visible()


def test_a_question_leads_to_the_moment_that_plays(page: Page, truth: dict[str, Any]) -> None:
    """Typed, Enter, Enter: without a click."""
    start_s = truth["scenes"][3]["start_s"]
    page.goto("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("a hot drink")
    page.keyboard.press("Enter")
    expect(hits_of(page).first.locator("a.picture")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/v/film?**")
    video = page.locator("sf-player video")
    page.wait_for_function(
        "video => video.played.length && video.currentTime > video.played.start(0) + 0.5",
        arg=video.element_handle(),
    )
    began_s, shown = video.evaluate("v => [v.played.start(0), v.getVideoPlaybackQuality().totalVideoFrames]")
    assert abs(began_s - start_s) < 0.5
    assert shown > 0, "no frame of the H.264 stream was decoded"
    page.go_back()
    expect(hits_of(page).first).to_be_visible()
    expect(page.get_by_role("searchbox")).to_have_value("a hot drink")


def test_a_pause_in_typing_searches(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("rocket")
    expect(hits_of(page).first).to_contain_text("rocket")
    expect(page).to_have_url("/?q=rocket")
    assert hits_of(page).first.locator("mark").first.inner_text().lower() == "rocket"
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_an_address_holds_a_search(page: Page, api: Api, truth: dict[str, Any]) -> None:
    """A shared address shows the same, with its filters; they can be changed and cleared."""
    start_s, end_s = truth["scenes"][3]["start_s"], truth["scenes"][3]["end_s"]
    page.goto(f"/?q=a+hot+drink&video=film&from={start_s + 1}&to={end_s - 1}")
    expect(hits_of(page)).to_have_count(1)
    expect(page.get_by_role("button", name="0:27 – 0:32")).to_be_visible()
    page.reload()
    expect(hits_of(page)).to_have_count(1)
    page.get_by_role("button", name="Clear filters").click()
    expect(page).to_have_url("/?q=a+hot+drink")
    asked = {"query": "a hot drink", "limit": 24}
    expected = httpx.post(f"{api.url}/api/v1/search", json=asked, timeout=30).json()["hits"]
    expect(hits_of(page)).to_have_count(len(expected))
    page.get_by_role("button", name="Language").click()
    page.get_by_role("checkbox", name="German").check()
    expect(page).to_have_url("/?q=a+hot+drink&lang=de")
    expect(page.get_by_role("heading", name="No moment found for “a hot drink”")).to_be_visible()
    page.go_back()
    expect(hits_of(page)).to_have_count(len(expected))


def test_the_page_says_what_was_looked_at(page: Page, api: Api) -> None:
    search(page, "a hot drink")
    answer = httpx.post(f"{api.url}/api/v1/search", json={"query": "a hot drink"}, timeout=30).json()
    said = page.get_by_role("list", name="What was searched")
    expect(said).to_contain_text(f"Looked at {answer['coverage']['scenes']} scenes")
    (vision,) = [r for r in answer["coverage"]["retrievers"] if r["retriever"] == "vision"]
    expect(said).to_contain_text(
        f"What is seen was not searched: {vision['reason'].removeprefix('unavailable: ')}"
    )


def test_keys_walk_the_hits_and_play_in_place(page: Page) -> None:
    search(page, SPOKEN)
    page.get_by_role("searchbox").focus()
    page.keyboard.press("ArrowDown")
    expect(hits_of(page).nth(0).locator("a.picture")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(hits_of(page).nth(1).locator("a.picture")).to_be_focused()
    page.keyboard.press(" ")
    peeked = hits_of(page).nth(1).locator("video")
    page.wait_for_function("v => v.muted && v.played.length > 0", arg=peeked.element_handle())
    page.keyboard.press(" ")
    expect(peeked).to_have_count(0)
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_more_like_a_scene(page: Page) -> None:
    search(page, "a hot drink")
    link = hits_of(page).first.locator("a.picture")
    asked = link.evaluate("link => link.pathname + link.search")
    itself = page.locator(f"a.picture[href^='{asked.partition('&')[0]}']")
    expect(itself).to_have_count(1)
    hits_of(page).first.hover()
    page.get_by_role("button", name="More like the scene at 0:26").click()
    page.wait_for_url("**/?like=*")
    expect(itself).to_have_count(0)
    expect(hits_of(page).first).to_be_visible()


def test_a_dropped_picture_is_stored_and_the_profile_says_that_it_cannot_look(page: Page, api: Api) -> None:
    """Lite has no model for pictures: the page gives the API's own sentence, and a way on."""
    search(page, "a hot drink")
    key = hits_of(page).first.locator("img").get_attribute("src")
    picture = base64.b64encode(httpx.get(f"{api.url}{key}", timeout=30).content).decode()
    drop = """(data) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const dropped = new DataTransfer();
        dropped.items.add(new File([bytes], "cup.jpg", { type: "image/jpeg" }));
        window.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true, cancelable: true }));
    }"""
    with (
        page.expect_response("**/api/v1/search") as answered,
        page.expect_response("**/api/v1/pictures") as stored,
    ):
        page.evaluate(drop, picture)
    assert stored.value.status == 201
    assert json.loads(answered.value.request.post_data or "")["image_key"].startswith(
        f"uploads/{API_USER}/queries/"
    )
    detail = answered.value.json()["detail"]
    expect(page.get_by_role("alert")).to_contain_text(detail)


def test_a_box_in_a_picture_is_searched(page: Page) -> None:
    search(page, "a hot drink")
    hits_of(page).first.hover()
    whole = hits_of(page).first.locator("img").evaluate("i => [i.naturalWidth, i.naturalHeight]")
    page.get_by_role("button", name="Search in the picture at 0:26").click()
    area = page.get_by_role("application", name="Picture: draw a box").bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + area["width"] * 0.25, area["y"] + area["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] * 0.75, area["y"] + area["height"] * 0.5, steps=4)
    page.mouse.up()
    cut = page.locator("sf-crop").evaluate(BOX)
    assert cut == pytest.approx([0.25, 0.25, 0.5, 0.25], abs=0.01)
    with page.expect_response("**/api/v1/pictures") as stored:
        page.get_by_role("button", name="Search this box").click()
    assert stored.value.status == 201
    page.wait_for_url("**/?image=*")
    key = dict(httpx.QueryParams(page.url.partition("?")[2]))["image"]
    with Image.open(io.BytesIO(page.request.get(f"/api/v1/objects/{key}").body())) as picture:
        assert picture.size == pytest.approx((whole[0] / 2, whole[1] / 4), abs=2)


def test_scrolling_brings_the_next_hits(page: Page, api: Api) -> None:
    """Pages of two: all hits come, each once, in the API's order."""

    def by_two(route: Route) -> None:
        body = json.loads(route.request.post_data or "{}")
        route.continue_(post_data=json.dumps({**body, "limit": 2}))

    page.route("**/api/v1/search", by_two)
    search(page, SPOKEN)
    expected = httpx.post(f"{api.url}/api/v1/search", json={"query": SPOKEN}, timeout=30).json()["hits"]
    assert len(expected) > 4
    for _ in expected:
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(100)
    expect(hits_of(page)).to_have_count(len(expected))
    shown = page.evaluate("""() => [...document.querySelector("sf-search").renderRoot.querySelectorAll("sf-hit")]
        .map((one) => one.hit.scene_id)""")
    assert shown == [hit["scene_id"] for hit in expected]


def test_hostile_text_is_only_text(page: Page) -> None:
    """Scripts in every text of an answer: names, transcripts, text on screen, reasons, problems."""

    def poisoned(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: poisoned(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one, name) for one in value]
        texts = ("transcript", "text", "name", "reason", "storage_key", "detail", "title")
        return HOSTILE if isinstance(value, str) and name in texts else value

    def poison(route: Route) -> None:
        asked = route.request.post_data
        # No scene is similar to what is searched for.
        changed = {} if asked is None else {"post_data": json.dumps({**json.loads(asked), "min_score": 0})}
        response = route.fetch(**changed)
        body = poisoned(response.json())
        for hit in body.get("hits", []):
            hit["highlights"]["words"] = [{"start": 0, "end": 12}]
            hit["highlights"]["screen"] = [{"text": HOSTILE, "ordinal": 0, "box": [1, 1, 5, 5]}]
            person = {"person_id": "x", "name": HOSTILE, "confidence": 0.5, "frame_count": 1}
            hit["highlights"]["people"] = [{**person, "ordinal": None, "box": None}]
        body["degraded"] = {"vision": HOSTILE}
        route.fulfill(response=response, json=body)

    page.route("**/api/v1/search", poison)
    page.route("**/api/v1/videos/*", poison)
    page.goto(f"/?{httpx.QueryParams(q=HOSTILE)}")
    expect(hits_of(page).first).to_contain_text("<script>alert(2)</script>")
    expect(page.get_by_role("list", name="What was searched")).to_contain_text("<img src=x")
    expect(page.locator("img[src='x']")).to_have_count(0)
    expect(page.locator("script:not([src]):not([type=importmap])")).to_have_count(0)


def test_axe_finds_nothing_serious(page: Page) -> None:
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        for name, path in (
            ("start", "/"),
            ("hits", "/?q=a+hot+drink"),
            ("none", "/?q=drink&lang=de"),
        ):
            page.goto(path)
            if name == "hits":
                expect(hits_of(page).first).to_be_visible()
                page.get_by_role("button", name="People", exact=True).click()
            else:
                expect(page.locator("sf-start h2, .none h3").first).to_be_visible()
            found[f"{name} {scheme}"] = serious_findings(page)
    assert not any(found.values()), found


def test_a_broken_link_shows_the_page_which_says_so(page: Page) -> None:
    answer = page.goto("/nowhere")
    assert answer is not None and answer.status == 404
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.get_by_role("link", name="Go to search").click()
    expect(page.get_by_role("searchbox")).to_be_visible()


def test_the_first_view_is_small(page: Page) -> None:
    sizes: dict[str, int] = {}

    def weigh(request: Any) -> None:
        if request.resource_type in ("script", "stylesheet"):
            sizes[request.url] = len(request.response().body())

    page.on("requestfinished", weigh)
    page.goto("/")
    expect(page.get_by_role("searchbox")).to_be_visible()
    page.wait_for_load_state("load")
    assert len(sizes) > 10
    assert sum(sizes.values()) < FIRST_VIEW_BYTES, sizes


@pytest.mark.parametrize("key", ["Enter", "Shift"], ids=["enter", "pause"])
def test_the_box_can_be_used_before_the_scripts_have_come(page: Page, key: str) -> None:
    """It stands in the document itself; the search view goes on with what was typed, in the same place."""
    held: list[Route] = []
    page.route("**/parts/search.js", lambda route: held.append(route))
    page.goto("/", wait_until="commit")
    early = page.locator(".early").get_by_role("searchbox")
    expect(early).to_be_focused()
    label, placeholder = (early.get_attribute(name) for name in ("aria-label", "placeholder"))
    place = early.bounding_box()
    page.keyboard.type("a hot drink")
    page.keyboard.press(key)
    while not held:
        page.wait_for_timeout(50)
    heading = page.get_by_role("heading", name="Ask for a moment")
    expect(heading).to_have_count(1)
    held[0].continue_()
    page.unroute("**/parts/search.js")
    expect(hits_of(page).first).to_be_visible()
    box = page.get_by_role("searchbox")
    expect(box).to_have_value("a hot drink")
    if key == "Enter":
        expect(hits_of(page).first.locator("a.picture")).to_be_focused()
    else:
        expect(box).to_be_focused()
    assert page.url.endswith("/?q=a+hot+drink")
    page.goto("/")
    page.wait_for_selector("sf-search")
    assert (box.get_attribute("aria-label"), box.get_attribute("placeholder")) == (label, placeholder)
    final = page.locator("sf-search form.ask").bounding_box()
    assert place is not None and final is not None
    assert [place[side] for side in ("x", "y", "width")] == pytest.approx(
        [final[side] for side in ("x", "y", "width")], abs=2
    )


def test_other_views_do_not_begin_with_the_box(page: Page) -> None:
    page.route("**/app.js", lambda route: route.abort())
    for path in ("/library", "/?q=cat"):
        page.goto(path)
        expect(page.locator(".early")).to_have_count(0)


def test_the_page_says_that_the_api_is_away_and_goes_on(page: Page, api: Api) -> None:
    search(page, "rocket")
    api.kill()
    try:
        page.get_by_role("searchbox").fill("cat")
        expect(page.locator("sf-banner")).to_contain_text("The API does not answer", timeout=20_000)
    finally:
        api.start()
    expect(page.locator("sf-banner")).to_have_text("", timeout=20_000)
    expect(hits_of(page).first).to_contain_text("cat", timeout=20_000)


def ask_and_wait_for_the_banner(page: Page, query: str, said: str) -> None:
    page.get_by_role("searchbox").fill(query)
    page.get_by_role("searchbox").press("Enter")
    expect(page.locator("sf-banner")).to_contain_text(said, timeout=60_000)


def expect_recovery(page: Page, query: str) -> None:
    """The question that got no answer is answered without a reload."""
    expect(page.locator("sf-banner")).to_have_text("", timeout=90_000)
    expect(hits_of(page).first).to_contain_text(query, timeout=60_000)


def test_the_page_says_that_the_search_node_is_away_and_goes_on(page: Page, fleet: Fleet) -> None:
    search(page, "rocket")
    fleet.kill("search")
    try:
        ask_and_wait_for_the_banner(page, "cat", "The search node is away")
        expect(page.locator("sf-search")).to_be_visible()
    finally:
        fleet.restart("search")
        fleet.wait_ready("search")
    expect_recovery(page, "cat")


def test_the_page_says_that_redis_is_away_and_goes_on(
    page: Page, fleet: Fleet, redis_server: RedisServer
) -> None:
    search(page, "rocket")
    redis_server.stop()
    try:
        ask_and_wait_for_the_banner(page, "coffee", "Redis")
    finally:
        redis_server.start()
    expect_recovery(page, "coffee")
    fleet.wait_ready()


def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    for path in ("/", "/?q=a+hot+drink", "/v/film?t=26.2&q=a+hot+drink"):
        page.goto(path)
        expect(page.locator("sf-hit, sf-start a, sf-transcript li").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
