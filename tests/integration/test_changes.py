"""What watchers read: no commit is lost between two answers, and notes are sent after commits only."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from db.engine import reading, reading_as, transact
from db.ids import video_key
from db.ledger import attempts
from db.tables import PeopleEvent, Video
from shared import routing
from shared.errors import BadMedia, InvalidRequest
from shared.routing import JOB_QUEUES
from tasks import people, video
from tests.integration.conftest import Configure
from tests.support.ledger import KEY, accept, claim, execute, finish, must_claim, split
from tests.support.services import RedisServer
from worker import changes, runner

pytestmark = pytest.mark.usefixtures("database", "configure")


class Page:
    """What an open page knows, from answers alone."""

    def __init__(self) -> None:
        self.as_of: str | None = None
        self.videos: dict[str, dict[str, Any]] = {}
        self.last: dict[str, Any] = {}

    def read(self, *keys: str, since: str | None = None) -> list[str]:
        """Read once more; the ids of the videos in the answer."""
        self.last = video.changes(user_id="u1", since=since or self.as_of, keys=list(keys))
        if self.last["snapshot"]:
            self.videos.clear()
        self.videos |= {status["video_id"]: status for status in self.last["videos"]}
        for name in self.last["deleted"]:
            self.videos.pop(name, None)
        self.as_of = self.last["as_of"]
        return sorted([*(status["video_id"] for status in self.last["videos"]), *self.last["deleted"]])

    def is_true(self) -> bool:
        """Whether it knows what the database has."""
        return list(self.videos.values()) == [
            video.status(user_id="u1", video_id=name) for name in self.videos
        ] and self.videos.keys() == {row["video_id"] for row in video.list_videos(user_id="u1")["videos"]}


def touch(name: str) -> Any:
    return update(Video).where(Video.video_id == video_key("u1", name)).values(priority=Video.priority + 1)


def test_a_transaction_that_commits_after_a_later_one_is_not_lost(database: str) -> None:
    for name in ("early", "late", "third"):
        accept(name)
    page = Page()
    assert page.read() == ["early", "late", "third"] and page.last["snapshot"]
    with psycopg.connect(database) as first, psycopg.connect(database) as second:
        # The first has the lower number, and commits last.
        first.execute("UPDATE videos SET error = 'one' WHERE external_id = 'early'")
        second.execute("UPDATE videos SET error = 'two' WHERE external_id = 'late'")
        second.commit()
        assert page.read() == ["late"]
        assert page.read() == [], "an open transaction repeats nothing"
        execute(touch("third"))
        assert page.read() == ["third"]
        first.commit()
    assert page.read() == ["early"] and page.videos["early"]["error"] == "one"
    assert page.read() == [] and page.is_true()


def test_nothing_of_a_videos_life_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.requests.notify", lambda wake_ups: None)
    page = Page()
    page.read()
    accept("v1")
    page.read()
    assert page.videos.keys() == {"v1"} and page.videos["v1"]["state"] == "uploaded"
    claimed = must_claim()
    page.read()
    assert page.videos["v1"]["stages"][0]["state"] == "running", "a running job is read without a note"
    split(claimed)
    page.read(KEY)
    assert page.is_true()
    # Each job to its end: what the end of a video changes needs no note.
    while (job := next(filter(None, map(claim, JOB_QUEUES)), None)) is not None:
        transact(lambda session, job=job: attempts.mark_started(session, job))
        page.read()
        finish(job)
    page.read()
    assert page.videos["v1"]["state"] == "indexed" and page.is_true()
    video.rerun(user_id="u1", video_id="v1", stages=["text"])
    page.read()
    assert page.videos["v1"]["run"] == 2
    video.cancel(user_id="u1", video_id="v1")
    page.read()
    assert page.videos["v1"]["state"] == "cancelled" and page.is_true()
    video.delete(user_id="u1", video_id="v1")
    page.read()
    assert page.last["deleted"] == ["v1"] and page.videos == {} and page.is_true()


def test_nothing_is_lost_between_transactions_that_overlap() -> None:
    names = [f"v{number}" for number in range(8)]
    for name in names:
        accept(name)
    execute(update(Video).values(state="indexed"))
    page = Page()
    page.read()

    def change_some(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(40):
            transact(partial(change, chance.choice(names), f"{seed}/{number}", chance.uniform(0, 0.01)))

    def change(name: str, error: str, pause_s: float, session: Session) -> None:
        session.execute(update(Video).where(Video.external_id == name).values(error=error))
        session.execute(select(func.pg_sleep(pause_s)))

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(change_some, seed) for seed in range(4)]
        while not all(writer.done() for writer in writers):
            page.read()
        for writer in writers:
            writer.result()
    page.read()
    assert page.is_true() and all(status["error"] for status in page.videos.values())


def test_answers_are_bounded_and_a_page_that_is_far_behind_gets_a_snapshot() -> None:
    for number in range(12):
        accept(f"v{number:02}")
    page = Page()
    page.read()
    old = page.as_of
    execute(update(Video).values(priority=1))
    answer = video.changes(user_id="u1", since=old, keys=[], limit=11)
    assert answer["snapshot"] and len(answer["videos"]) == 11
    answer = video.changes(user_id="u1", since=old, keys=[], limit=12)
    assert not answer["snapshot"] and len(answer["videos"]) == 12
    # Every video is in progress, and none has changed.
    assert len(page.read()) == 12 and page.read() == []
    assert len(video.changes(user_id="u1", since=page.as_of)["videos"]) == 12
    assert video.changes(user_id="u1", since=page.as_of, limit=11)["snapshot"]
    # A snapshot has the newest, and those in progress however old they are.
    execute(update(Video).where(Video.external_id > "v03").values(state="indexed"))
    answer = video.changes(user_id="u1", limit=4)
    names = [status["video_id"] for status in answer["videos"]]
    assert names == ["v11", "v10", "v09", "v08", "v03", "v02", "v01", "v00"]


def test_a_version_of_another_server_gets_a_snapshot_and_restored_rows_no_repetition(database: str) -> None:
    accept("v1")
    execute(update(Video).values(state="indexed"))
    page = Page()
    page.read()
    assert video.changes(user_id="u1", since=str(10**17), keys=[])["snapshot"]
    with psycopg.connect(database, autocommit=True) as connection:
        # A dump is restored before its triggers are made.
        connection.execute("ALTER TABLE videos DISABLE TRIGGER set_changed")
        connection.execute("UPDATE videos SET changed = 100000000000")
        connection.execute("ALTER TABLE videos ENABLE TRIGGER set_changed")
    assert page.read() == []
    execute(touch("v1"))
    assert page.read() == ["v1"]
    for wrong in ("1;", "-1", "1..2", "x", "1." * 900):
        with pytest.raises(InvalidRequest, match="since"):
            video.changes(user_id="u1", since=wrong)


def test_another_user_sees_nothing_even_by_key() -> None:
    accept("v1")
    transact(
        lambda session: session.add(PeopleEvent(user_id="u1", kind="rename", person_id=None, payload={}))
    )
    mine = video.changes(user_id="u1")
    answer = video.changes(user_id="u2", since="3", keys=[KEY])
    assert mine["last_event_id"] > 0 and len(mine["videos"]) == 1
    assert (answer["videos"], answer["deleted"], answer["last_event_id"]) == ([], [], 0)


def test_a_read_of_changes_uses_an_index() -> None:
    rows = "SELECT 'k' || n, 'u1', 'v' || n, 'x', 'indexed' FROM generate_series(1, 20000) n"
    execute(text(f"INSERT INTO videos (video_id, user_id, external_id, storage_key, state) {rows}"))
    execute(text("ANALYZE videos"))
    page = Page()
    page.read()
    execute(update(Video).where(Video.video_id == "k7").values(error="x"))
    with reading_as("u1", snapshot=True) as session:
        scan = (
            "EXPLAIN SELECT * FROM videos WHERE user_id = 'u1' AND changed >= 5000000 AND changed < 6000000"
        )
        assert "ix_videos_user_id_changed" in "\n".join(session.execute(text(scan)).scalars())
    assert page.read() == ["v7"]


@pytest.fixture
def notes(redis_server: RedisServer, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The notes that have been sent since the last look."""
    configure(REDIS_URL=redis_server.url)
    monkeypatch.setattr(changes, "_channel", changes._Channel())
    with redis.Redis.from_url(redis_server.url) as client, client.pubsub() as channel:
        channel.subscribe(routing.CHANGES)
        assert channel.get_message(timeout=5)["type"] == "subscribe"

        def look() -> list[dict[str, Any]]:
            # Redis keeps the order: all that was sent before this one is there.
            client.publish(routing.CHANGES, "end")
            found: list[dict[str, Any]] = []
            while (message := channel.get_message(timeout=5))["data"] != b"end":
                found.append(json.loads(message["data"]))
            return found

        yield look


def test_notes_come_after_the_commit_and_have_ids_only(
    notes: Any, configure: Configure, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.requests.notify", lambda wake_ups: None)
    monkeypatch.setattr("worker.runner.notify", lambda wake_ups: None)
    key = "uploads/u1/v1/secret name.mp4"
    video.process(user_id="u1", video_id="v1", storage_key=key)
    assert notes() == [{"user_id": "u1", "video": None, "people": False}]
    with pytest.raises(Exception, match="already is"):
        video.process(user_id="u1", video_id="v1", storage_key=key + "x")
    assert notes() == [], "nothing is committed"
    people.create(user_id="u1", name="Anna Secret")
    assert notes() == [{"user_id": "u1", "video": None, "people": True}]

    seen: list[tuple[str, list[Any]]] = []

    def stage(context: Any) -> Any:
        with reading() as session:
            seen.append((session.scalars(select(Video.state)).one(), notes()))
        raise BadMedia("no video")

    runtime = configure(REDIS_URL=redis_server.url)
    monkeypatch.setattr("worker.stages.run", stage)
    assert runner.work("media", runtime)["outcome"] == "failed"
    note = {"user_id": "u1", "video": KEY, "people": False}
    # The note of the start came when the start could be read, that of the end when the end could.
    assert seen == [("processing", [note])] and notes() == [note]
    assert video.status(user_id="u1", video_id="v1")["state"] == "failed"


def test_without_redis_nothing_fails_and_one_line_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.requests.notify", lambda wake_ups: None)
    channel = changes._Channel()
    monkeypatch.setattr(changes, "_channel", channel)
    logged: list[str] = []
    monkeypatch.setattr(changes.log, "warning", lambda line, **_: logged.append(line), raising=False)
    for number in range(3):
        accepted = video.process(
            user_id="u1", video_id=f"v{number}", storage_key=f"uploads/u1/v{number}/a.mp4"
        )
        assert accepted["accepted"]
        channel._paused_until_s = float("-inf")
    assert len(logged) == 1
