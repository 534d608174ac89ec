"""The hub of event streams, over answers that the test gives: order, slow watchers, and reads that fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from api import events
from api.asking import Asking
from api.events import MAX_QUEUED, Hub
from api.routes import events as routes
from shared.errors import QuotaExceeded
from tests.support.watching import ChangesFleet, Page, status


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Hub, ChangesFleet], Awaitable[None]]], None]:
    """Run a test with a hub whose notes the test gives it."""
    monkeypatch.setattr(events, "COALESCE_S", 0.0)
    monkeypatch.setattr(events, "_PAUSE_S", 0.0)

    async def no_notes(hub: Hub) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Hub, "_listen", no_notes)

    def run_with_hub(work: Callable[[Hub, ChangesFleet], Awaitable[None]]) -> None:
        async def whole() -> None:
            fleet = ChangesFleet()
            hub = Hub(cast(Asking, fleet), "redis://nowhere", asyncio.Event())
            try:
                await work(hub, fleet)
            finally:
                await hub.stop()

        asyncio.run(whole())

    return run_with_hub


def note(hub: Hub, **fields: Any) -> None:
    hub._note(json.dumps({"user_id": "u", "video": None, "people": False, **fields}).encode())


def test_a_snapshot_then_only_what_differs_and_the_id_with_the_last_event(run: Any) -> None:
    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        fleet.videos = {"a": status("a"), "b": status("b")}
        page = Page(hub)
        (first,) = await page.next()
        assert first[:2] == ("snapshot", "1") and [video["video_id"] for video in first[2]["videos"]] == [
            "a",
            "b",
        ]
        fleet.videos = {"a": status("a", "x"), "b": status("b"), "c": status("c", "x")}
        fleet.deleted = ["gone"]
        note(hub, video="key", people=True)
        told = await page.next()
        assert fleet.asked[-1] == {"user_id": "u", "since": "1", "keys": ["key"]}
        assert [(name, at, data.get("video_id")) for name, at, data in told] == [
            ("video", None, "a"), ("video", None, "c"), ("video", None, "gone"), ("people", "2", None),
        ]  # fmt: skip

    run(work)


def test_what_comes_after_a_greeting_is_newer_for_every_watcher(run: Any) -> None:
    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        fleet.videos = {"a": status("a", "one")}
        old = Page(hub)
        await old.next()
        # The state goes there and back, and a new watcher has seen what lay between.
        fleet.videos = {"a": status("a", "two")}
        new = Page(hub)
        assert (await new.next())[0][2]["videos"][0]["error"] == "two"
        fleet.videos = {"a": status("a", "one")}
        note(hub)
        for page in (old, new):
            assert [(name, data["error"]) for name, _, data in await page.next()] == [("video", "one")]
        # A read is under way while a watcher comes: it gets its own snapshot, and nothing older after that.
        fleet.free.clear()
        fleet.videos = {"a": status("a", "three")}
        note(hub)
        while len(fleet.asked) < 4:
            await asyncio.sleep(0)
        late = Page(hub)
        fleet.videos = {"a": status("a", "four")}
        fleet.free.set()
        told = await late.next()
        assert [(name, data["videos"][0]["error"]) for name, _, data in told] == [("snapshot", "four")]

    run(work)


def test_a_watcher_that_comes_back_gets_what_it_missed(run: Any) -> None:
    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        fleet.videos, fleet.deleted = {"a": status("a")}, ["gone"]
        pages = [Page(hub, "77") for _ in range(50)]
        for page in pages:
            told = await page.next()
            assert [(name, at) for name, at, _ in told] == [("video", None), ("video", None), ("people", "1")]
        assert [asked["since"] for asked in fleet.asked] == ["77"], "one read for all of them"
        assert fleet.asked[0]["keys"] is None
        fleet.snapshot = True
        (told,) = await Page(hub, "1").next()
        assert told[0] == "snapshot", "too much has changed"

    run(work)


def test_a_watcher_that_does_not_read_gets_a_snapshot_instead_of_a_growing_queue(run: Any) -> None:
    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        slow, fast = Page(hub), Page(hub)
        await slow.next()
        await fast.next()
        for number in range(2 * MAX_QUEUED):
            fleet.videos = {"a": status("a", str(number))}
            note(hub)
            assert (await fast.next())[-1][2]["error"] == str(number)
        assert len(slow.watcher._queue) <= MAX_QUEUED
        (told,) = await slow.next()
        assert told[0] == "snapshot" and told[2]["videos"][0]["error"] == str(2 * MAX_QUEUED - 1)
        fleet.videos = {"a": status("a", "end")}
        note(hub)
        for page in (slow, fast):
            assert (await page.next())[-1][2]["error"] == "end"

    run(work)


def test_a_read_that_fails_is_made_up_for(run: Any) -> None:
    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        fleet.fails = 2
        page = Page(hub)
        assert (await page.next())[0][0] == "snapshot"
        fleet.fails = 2
        fleet.videos = {"a": status("a")}
        note(hub, people=True)
        told = await page.next()
        assert [name for name, _, _ in told] == ["video", "people"]
        assert fleet.asked[-1]["keys"] is None, "notes may have been lost with it"
        # Redis was away: everything is read again.
        fleet.videos = {"a": status("a", "x")}
        hub._note_gap()
        assert (await page.next())[0][2]["error"] == "x"
        for nonsense in (b"", b"[]", b"7", b'{"user_id": []}', b'{"user_id": "u", "video": 7}', b"\xff"):
            hub._note(nonsense)
        fleet.videos = {"a": status("a", "y")}
        note(hub)
        assert (await page.next())[-1][2]["error"] == "y"

    run(work)


def test_a_lost_note_is_made_up_for_while_videos_are_in_progress(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "REFRESH_S", 0.01)
    monkeypatch.setattr(events, "_MAX_KEYS", 1)

    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        fleet.videos = {"a": status("a")}
        page = Page(hub)
        await page.next()
        fleet.videos = {"a": status("a", "x"), "b": status("b")}
        assert [data["video_id"] for _, _, data in await page.next()] == ["a", "b"]
        assert fleet.asked[1]["keys"] is None
        fleet.videos["b"] = status("b", "x")
        assert [data["video_id"] for _, _, data in await page.next()] == ["b"]
        assert fleet.asked[-1]["keys"] == [], "too many are in progress to read all of them without need"
        fleet.videos = {name: status(name, state="indexed") for name in "ab"}
        await page.next()
        asked = len(fleet.asked)
        await asyncio.sleep(0.1)
        assert len(fleet.asked) == asked, "nothing is in progress"

    run(work)


def test_watchers_are_limited_and_a_user_without_any_is_not_read(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MAX_WATCHERS", 4)

    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        pages = [Page(hub), Page(hub)]
        with pytest.raises(QuotaExceeded, match="2 open event streams"):
            Page(hub)
        hub.join("other", None)
        for page in pages:
            await page.next()
            hub.leave(page.watcher)
            hub.leave(page.watcher)
        async with asyncio.timeout(10):
            while "u" in hub._audiences:
                await asyncio.sleep(0)
        asked = len(fleet.asked)
        note(hub)
        assert (await Page(hub).next())[0][0] == "snapshot" and len(fleet.asked) <= asked + 2

    run(work)


def test_a_stream_ends_when_its_key_has_been_ended_or_its_client_has_gone(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(routes, "CHECKED_S", 0.0)

    async def work(hub: Hub, fleet: ChangesFleet) -> None:
        gone, sent = asyncio.Event(), list[Any]()
        allowed = [True, True, False]

        async def is_allowed() -> bool:
            return allowed.pop(0) if allowed else True

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        async def serve() -> None:
            stream = routes.EventStream(hub, hub.join("u", None), is_allowed)
            await asyncio.wait_for(stream({}, receive, send), 10)

        await serve()
        assert allowed == [] and sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        serving = asyncio.create_task(serve())
        await asyncio.sleep(0)
        assert "u" in hub._audiences
        gone.set()
        await serving
        assert hub._count == 0

    run(work)
