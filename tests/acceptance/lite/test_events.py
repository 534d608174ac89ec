"""Open pages: what they are told of a video's way through the fleet, and that they miss nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.support.api import Api
from tests.support.events import Event, Stream
from tests.support.figures import RecordFigure
from tests.support.fleet import Fleet

USER = "watcher"
WATCHERS = 500
#: Of the whole process with so many watchers, MiB.
MOST_MB = 200.0


@pytest.fixture(scope="module")
def api(fleet: Fleet) -> Iterator[Api]:
    """An API of another user than the folder's, so that others need not see these videos."""
    found = Api(fleet, "api-events", forked=False, SCENEFLEET_USER=USER)
    found.start()
    yield found
    found.stop()


@pytest.fixture
def stream(api: Api) -> Iterator[Stream]:
    """A page that has just been opened and has its snapshot."""
    found = Stream(api.url)
    found.wait(lambda events: events, "a snapshot")
    yield found
    found.close()


def of(stream: Stream, video_id: str) -> list[dict[str, Any]]:
    return [
        event.data for event in stream.events if event.name == "video" and event.data["video_id"] == video_id
    ]


def test_a_page_sees_a_video_from_its_upload_to_its_end_and_its_deletion(
    fleet: Fleet, api: Api, stream: Stream, spoken: Path
) -> None:
    first = stream.events[0]
    assert first.name == "snapshot" and first.data.keys() == {"as_of", "videos", "last_event_id"}
    assert stream.retry_ms > 0 and stream.last_id == first.data["as_of"]
    fleet.process(spoken, "watched", USER)
    stream.wait_state("watched", "indexed", within_s=180)

    def ended(_: list[Event]) -> bool:
        return of(stream, "watched")[-1]["stages"][-1]["state"] == "done"

    stream.wait(ended, "the end of the rendition")
    told = of(stream, "watched")
    assert told[-1] == httpx.get(f"{api.url}/api/v1/videos/watched").json()
    assert any(video["state"] == "processing" for video in told)
    seen = {(stage["stage"], stage["state"]) for video in told for stage in video["stages"]}
    assert {("split", "running"), ("split", "done"), ("asr", "running"), ("sidecar", "done")} <= seen
    assert len(told) == len({str(video) for video in told}), "nothing is told twice"
    other = Stream(api.url)
    (snapshot,) = other.wait(lambda events: events, "a snapshot")
    assert "watched" in {video["video_id"] for video in snapshot.data["videos"]}
    other.close()
    fleet.client.delete("watched", USER)
    assert stream.wait_state("watched", "deleted") == {"video_id": "watched", "state": "deleted"}


def test_a_page_of_another_user_sees_nothing_of_it(fleet: Fleet, stream: Stream, silent: Path) -> None:
    fleet.index(silent, "foreign", "somebody")
    fleet.index(silent, "own", USER)
    stream.wait_state("own", "indexed")
    assert of(stream, "foreign") == []


def test_people_that_change_are_told(fleet: Fleet, stream: Stream) -> None:
    fleet.client.create_person(USER, "Watched Person")
    event: Event = stream.wait(lambda events: [e for e in events if e.name == "people"], "a people event")[-1]
    assert event.data.keys() == {"last_event_id"}


def test_what_happened_while_the_api_was_dead_is_told_after_it(fleet: Fleet, api: Api, silent: Path) -> None:
    fleet.index(silent, "before", USER)
    fleet.index(silent, "gone", USER)
    page = Stream(api.url)
    page.wait(lambda events: events, "a snapshot")
    fleet.index(silent, "seen", USER)
    page.wait_state("seen", "indexed")
    api.kill()
    page.wait_end()
    fleet.index(silent, "missed", USER)
    fleet.client.delete("gone", USER)
    api.start()
    again = Stream(api.url, last_id=page.last_id)
    again.wait_state("missed", "indexed")
    again.wait_state("gone", "deleted")
    assert {event.name for event in again.events} <= {"video", "people"}, "what it knew is not sent again"
    assert of(again, "before") == []
    fleet.index(silent, "after", USER)
    again.wait_state("after", "indexed")
    again.close()
    # An id that no API has given: a new start.
    strange = Stream(api.url, last_id="nonsense;--")
    assert strange.wait(lambda events: events, "a snapshot")[0].name == "snapshot"
    strange.close()


def test_a_redis_that_loses_everything_and_everyone_costs_a_page_nothing(
    fleet: Fleet, stream: Stream, silent: Path
) -> None:
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.flushall()
        assert client.client_kill_filter(_type="pubsub") > 0
    fleet.index(silent, "flushed", USER)
    stream.wait_state("flushed", "indexed")
    assert not stream.ended
    # The other modules' fleet has published itself again.
    fleet.wait_ready()


def test_a_stopping_api_ends_its_streams(api: Api) -> None:
    page = Stream(api.url)
    page.wait(lambda events: events, "a snapshot")
    assert api.process is not None
    api.process.terminate()
    page.wait_end()
    api.process.wait(timeout=20)
    api.start()


def test_500_pages_on_one_process(fleet: Fleet, api: Api, silent: Path, record_figure: RecordFigure) -> None:
    # Each page gets a snapshot of 200 videos.
    fleet.rows(
        "INSERT INTO videos (video_id, user_id, external_id, storage_key, state)"
        " SELECT 'old' || n, %s, 'old' || n, 'x', 'indexed' FROM generate_series(1, 200) n RETURNING 1",
        USER,
    )
    before_mb = api.memory_mb
    states, held_mb = asyncio.run(_watch(fleet, api, silent))
    assert len(states) == WATCHERS and set(states) == {"indexed"}
    said = f"{held_mb:.0f} MiB, {before_mb:.0f} before"
    record_figure(f"memory of an API process with {WATCHERS} event streams", said)
    assert held_mb < MOST_MB, said
    assert httpx.get(f"{api.url}/api/v1/videos/crowd", timeout=10).status_code == 200


async def _watch(fleet: Fleet, api: Api, path: Path) -> tuple[list[str], float]:
    """The state that each of many pages has last been told of a new video, and the API's memory meanwhile."""
    opened = asyncio.Semaphore(50)
    ready = asyncio.Event()
    count = 0

    async def page() -> str:
        nonlocal count
        async with opened:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=2**22)
            writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            while not (await reader.readline()).startswith(b"event: snapshot"):
                pass
        count += 1
        if count == WATCHERS:
            ready.set()
        async for line in reader:
            if (
                line.startswith(b'data: {"version":1,"video_id":"crowd"')
                and b'"state":"indexed","run"' in line
            ):
                break
        writer.close()
        return "indexed"

    async with asyncio.timeout(240):
        pages = [asyncio.create_task(page()) for _ in range(WATCHERS)]
        await ready.wait()
        await asyncio.to_thread(fleet.process, path, "crowd", USER)
        held_mb = api.memory_mb
        done = await asyncio.gather(*pages)
    return done, max(held_mb, api.memory_mb)


def test_an_operator_sees_the_fleet_and_tries_failures_again(fleet: Fleet, api: Api, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 1000)
    fleet.process(broken, "broken", USER)
    fleet.wait_for("broken", "failed", USER)
    state = httpx.get(f"{api.url}/api/v1/fleet").json()
    ready = {node["family"] for node in state["nodes"] if node["state"] == "ready"}
    assert ready >= {node.family for node in fleet.nodes.values()}
    assert {row["queue"] for row in state["queues"]} >= {"media", "asr", "text", "face", "housekeeping"}
    kind = next(kind for kind in state["failures"] if kind["video_id"] == "broken")
    answer = httpx.post(f"{api.url}/api/v1/fleet/failures/retry", json={"error_class": kind["error_class"]})
    assert answer.status_code == 202 and answer.json()["videos"] >= 1
    fleet.wait_for("broken", "failed", USER)
    assert httpx.post(f"{api.url}/api/v1/fleet/failures/retry", json={}).status_code == 422
