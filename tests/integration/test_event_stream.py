"""Notes from a worker to open streams, over a Redis that is restarted under both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from api.asking import Asking
from api.events import Hub
from tests.integration.conftest import Configure
from tests.support.services import RedisServer, start_or_give_up
from tests.support.watching import ChangesFleet, Page, status
from worker import changes
from worker.changes import Note


@pytest.fixture
def own_redis(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A Redis that no other test uses, and to which this process sends notes."""
    server = RedisServer(tmp_path / "redis")
    start_or_give_up(server)
    configure(REDIS_URL=server.url)
    monkeypatch.setattr(changes, "_channel", changes._Channel())
    yield server
    server.stop()


def test_a_restarted_redis_loses_no_change_and_later_notes_arrive(own_redis: RedisServer) -> None:
    async def work() -> None:
        fleet = ChangesFleet()
        hub = Hub(cast(Asking, fleet), own_redis.url, asyncio.Event())
        page = Page(hub)
        assert (await page.next())[0][0] == "snapshot"
        # The subscription and the greeting may come in any order; from here on both are there.
        fleet.videos = {"a": status("a", "zero")}
        while not (reads := [asked for asked in fleet.asked if asked["since"]]):
            await asyncio.to_thread(changes.publish, Note(user_id="u", video="k"))
            await asyncio.sleep(0.05)
        assert reads[-1]["keys"] in (["k"], None)
        assert (await page.next())[0][2]["error"] == "zero"
        await asyncio.to_thread(own_redis.stop)
        fleet.videos = {"a": status("a", "one")}
        await asyncio.to_thread(own_redis.start)
        assert (await page.next())[0][2]["error"] == "one", "without a note"
        assert fleet.asked[-1]["keys"] is None
        fleet.videos = {"a": status("a", "two")}
        await asyncio.to_thread(changes.publish, Note(user_id="u", video="key", people=True))
        told = await page.next()
        assert [name for name, _, _ in told] == ["video", "people"] and told[0][2]["error"] == "two"
        await hub.stop()

    asyncio.run(asyncio.wait_for(work(), 60))
