"""The player in a real browser: it stands at the moment, and its lanes, transcript and keys lead to others."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.support.browser import serious_findings

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'

pytestmark = pytest.mark.usefixtures("film")


def opened(page: Page, query: str = "") -> Locator:
    """The video of the player once its data and its lanes are there."""
    page.goto(f"/v/film{query}")
    video = page.locator("sf-player video")
    page.wait_for_function("video => video.readyState >= 2", arg=video.element_handle())
    expect(page.locator("sf-transcript li").first).to_be_visible()
    return video


def stands(page: Page, video: Locator, at_s: float, within_s: float = 0.5) -> None:
    """Wait until the video stands at a moment."""
    page.wait_for_function(
        "([video, at, within]) => !video.seeking && Math.abs(video.currentTime - at) <= within",
        arg=[video.element_handle(), at_s, within_s],
    )


def starts(truth: dict[str, Any]) -> list[float]:
    return [scene["start_s"] for scene in truth["scenes"]]


def test_an_address_stands_at_its_moment(page: Page, truth: dict[str, Any]) -> None:
    at_s = starts(truth)[3]
    video = opened(page, f"?t={at_s}")
    stands(page, video, at_s, 0.1)
    assert video.evaluate("v => v.paused")
    inside = (
        "v => v.offsetHeight <= v.parentElement.clientHeight && v.offsetWidth <= v.parentElement.clientWidth"
    )
    assert video.evaluate(inside), "the picture is cut off"
    expect(page.locator("sf-transcript li.active")).to_contain_text("cup of coffee")
    page.keyboard.press("k")
    page.wait_for_function("([v, at]) => v.currentTime > at + 0.5", arg=[video.element_handle(), at_s])
    page.keyboard.press("k")
    page.wait_for_url(lambda url: f"t={at_s}" not in url)
    stood_s = video.evaluate("v => v.currentTime")
    page.reload()
    page.wait_for_function(
        "video => video.readyState >= 2", arg=page.locator("sf-player video").element_handle()
    )
    stands(page, page.locator("sf-player video"), stood_s, 0.1)


def test_keys_do_what_people_know(page: Page, truth: dict[str, Any]) -> None:
    second, third = starts(truth)[1:3]
    video = opened(page, "?t=0")
    page.keyboard.press("ArrowRight")
    stands(page, video, second)
    page.keyboard.press("ArrowRight")
    stands(page, video, third)
    page.keyboard.press("ArrowLeft")
    stands(page, video, second)
    page.keyboard.press("l")
    stands(page, video, second + 10)
    page.keyboard.press("j")
    stands(page, video, second)
    page.keyboard.press("Shift+ArrowRight")
    stands(page, video, second + 5)
    page.keyboard.press(" ")
    page.wait_for_function("v => !v.paused", arg=video.element_handle())
    page.keyboard.press(" ")
    page.wait_for_function("v => v.paused", arg=video.element_handle())
    page.keyboard.press("c")
    page.wait_for_function(
        "v => v.textTracks[0].mode === 'showing' && v.textTracks[0].cues?.length > 0",
        arg=video.element_handle(),
    )


def test_lanes_seek_zoom_and_show_their_moment(page: Page, truth: dict[str, Any]) -> None:
    video = opened(page, "?t=0")
    lanes = page.get_by_role("slider", name="Position in the video")
    box = lanes.bounding_box()
    assert box is not None
    duration_s = truth["duration_s"]
    at = {"x": box["width"] / 2, "y": box["height"] - 8}
    lanes.click(position=at)
    stands(page, video, duration_s / 2)
    expect(lanes).to_have_attribute("aria-valuetext", "0:32")
    preview = page.locator("sf-timeline .peek i")
    expect(preview).to_be_visible()
    image = preview.evaluate('i => /url\\("(.*)"\\)/.exec(i.style.backgroundImage)[1]')
    assert page.request.get(image).headers["content-type"] == "image/jpeg"
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + at["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + at["y"], steps=5)
    page.mouse.up()
    show_all = page.get_by_role("button", name="Show all")
    expect(show_all).to_be_visible()
    lanes.click(position=at)
    stands(page, video, duration_s * 0.375)
    show_all.click()
    expect(show_all).to_have_count(0)


def test_hits_of_a_video_do_not_load_it_again(page: Page) -> None:
    video = opened(page, "?t=26.2&q=rocket+or+coffee+or+cat")
    video.evaluate("v => { v.marked = true; v.addEventListener('emptied', () => (v.marked = false)); }")
    buttons = page.get_by_role("group", name="Moments").get_by_role("button")
    expect(buttons.first).to_be_attached()
    before_s = video.evaluate("v => v.currentTime")
    page.keyboard.press("n")
    page.wait_for_function(
        "([v, before]) => Math.abs(v.currentTime - before) > 1", arg=[video.element_handle(), before_s]
    )
    buttons.first.click()
    assert video.evaluate("v => v.marked")


def test_the_transcript_jumps_follows_and_is_searched(page: Page, truth: dict[str, Any]) -> None:
    video = opened(page, "?t=0")
    line = page.locator("sf-transcript li", has_text="cup of coffee")
    line.get_by_role("button").click()
    stands(page, video, truth["scenes"][3]["speech_start_s"], 1.0)
    expect(line).to_have_attribute("aria-current", "true")
    expect(line).to_be_in_viewport()
    found = page.get_by_role("searchbox", name="Find in the transcript")
    found.fill("money")
    expect(page.locator("sf-transcript mark")).to_have_text(["money"])
    expect(page.locator("sf-transcript li", has_text="money")).to_be_in_viewport()
    found.press(" ")  # a key of the field, not of the player
    assert video.evaluate("v => v.paused")


def test_a_box_on_the_paused_frame_is_stored(page: Page) -> None:
    opened(page, "?t=26.2")
    page.get_by_role("button", name="Search in this picture").click()
    with page.expect_response("**/api/v1/pictures") as stored:
        page.get_by_role("button", name="Search the whole picture").click()
    assert stored.value.status == 201
    page.wait_for_url("**/?image=*")


def test_more_like_the_shown_scene(page: Page) -> None:
    opened(page, "?t=27")
    page.get_by_role("button", name="More scenes like this one").click()
    page.wait_for_url("**/?like=*")
    expect(page.locator("sf-hit").first).to_be_visible()


def test_a_video_that_is_not_there(page: Page) -> None:
    page.goto("/v/nothing-here")
    expect(page.get_by_role("heading", name="There is no such video")).to_be_visible()


def test_hostile_text_is_only_text(page: Page) -> None:
    """Scripts in a video's name, its transcript, its people's names and its text on screen."""

    def poison_timeline(route: Route) -> None:
        response = route.fetch()
        body = response.json()
        for scene in body["scenes"]:
            for segment in scene["segments"]:
                segment["text"] = HOSTILE
                segment["words"] = [{**word, "text": HOSTILE} for word in segment["words"]]
            span = {"start_s": scene["start_s"], "end_s": scene["end_s"]}
            scene["people"] = [{"person_id": "x", "name": HOSTILE, "track_id": "t", **span}]
            scene["screen"] = [{"text": HOSTILE, "ts_s": scene["start_s"]}]
        body["media"]["reason"] = HOSTILE
        route.fulfill(response=response, json=body)

    def poison_name(route: Route) -> None:
        response = route.fetch()
        route.fulfill(
            response=response, json={**response.json(), "storage_key": f"uploads/local/film/{HOSTILE}.mp4"}
        )

    page.route("**/api/v1/videos/film/timeline*", poison_timeline)
    page.route("**/api/v1/videos/film", poison_name)
    page.route("**/api/v1/events", lambda route: route.abort())
    opened(page, "?t=27.5")
    expect(page.locator("sf-transcript li").first).to_contain_text("<script>alert(2)</script>")
    for tab in ("People", "On screen"):
        page.get_by_role("tab", name=tab).click()
        expect(page.get_by_role("tabpanel")).to_contain_text("<script>alert(2)</script>")
    expect(page.locator("img[src='x']")).to_have_count(0)


def test_axe_finds_nothing_serious(page: Page) -> None:
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        opened(page, "?t=26.2&q=a+hot+drink")
        found[scheme] = serious_findings(page)
    assert not any(found.values()), found
