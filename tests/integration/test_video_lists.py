"""Requests about a user's videos as a whole: pages by state, failures, a place to upload to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select

from db.engine import transact
from db.ids import video_key
from db.ledger import jobs
from db.scenes import write_scenes
from db.tables import Job, Run, Video
from shared.errors import Conflict, InvalidRequest, NotFound
from tasks import video
from tests.integration.conftest import Configure
from tests.support.ledger import read, scene_rows

pytestmark = pytest.mark.usefixtures("database", "configure")

STATES = ("uploaded", "processing", "indexed", "partial", "failed", "cancelled", "deleted")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def add(name: str, user: str, state: str, minute: int, *, failed: int = 0) -> None:
    """A video with its newest run, one scene, and so many failed jobs; one job of an older run failed, too."""
    key = video_key(user, name)

    def write(session: Any) -> None:
        session.add(
            Video(
                video_id=key, external_id=name, user_id=user, storage_key=f"uploads/{user}/{name}/a.mp4", state=state,
                run=2, published_run=1, created_at=BEGAN + timedelta(minutes=minute),
                deleted_at=BEGAN if state == "deleted" else None,
            )
        )  # fmt: skip
        session.flush()
        session.add(Run(video_id=key, run=2, stages=["split", "text"], stage_runs={}))
        write_scenes(session, key, user, 1, [{**scene_rows(1)[0], "live": True}])
        of_text = {"queue": "text", "stage": "text", "state": "failed"}
        common = {"subject_id": key, "video_id": key, "user_id": user, **of_text}
        newest = {"run": 2, "error_class": "BadMedia", "attempt": 3, "finished_at": BEGAN}
        new = [Job(**common, **newest, part=part, error=f"{user}/{name} {part}") for part in range(failed)]
        jobs.insert(session, [Job(**common, run=1, part=0, error="of an older run"), *new])

    transact(write)


def pages(request: Any, what: str, **payload: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after: Any = None
    while True:
        page = request(**payload, after=after)
        assert len(page[what]) <= payload.get("limit", 1000)
        found += page[what]
        after = page["next_after"]
        if after is None:
            return found


def test_videos_are_listed_newest_first_page_by_page_and_by_state() -> None:
    for number in range(14):
        # Two of a minute each: the order is whole all the same.
        add(f"v{number:02}", "u", STATES[number % 7], number // 2, failed=number % 3)
        add(f"v{number:02}", "other", "indexed", number)
    whole = pages(video.list_videos, "videos", user_id="u", limit=200)
    assert [row["created_at"] for row in whole] == sorted((row["created_at"] for row in whole), reverse=True)
    assert {row["video_id"] for row in whole} == {f"v{n:02}" for n in range(14) if n % 7 != 6}
    assert {row["user_id"] for row in whole} == {"u"}
    for limit in (1, 2, 5, 12):
        assert pages(video.list_videos, "videos", user_id="u", limit=limit) == whole
    assert whole == [video.status(user_id="u", video_id=row["video_id"]) for row in whole]
    assert {row["scenes"] for row in whole} == {1}
    failed = pages(video.list_videos, "videos", user_id="u", states=["failed", "partial"], limit=1)
    assert failed == [row for row in whole if row["state"] in ("failed", "partial")] and len(failed) == 4
    with pytest.raises(NotFound, match="no video 'strange'"):
        video.list_videos(user_id="u", after="strange")
    with pytest.raises(InvalidRequest, match="states"):
        video.list_videos(user_id="u", states=["deleted"])


def test_a_page_begins_behind_a_video_that_was_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.requests.notify", lambda wake_ups: None)
    for number in range(4):
        add(f"v{number}", "u", "indexed", number)
    first = video.list_videos(user_id="u", limit=2)
    video.delete(user_id="u", video_id=first["next_after"])
    rest = video.list_videos(user_id="u", after=first["next_after"])
    assert [row["video_id"] for row in rest["videos"]] == ["v1", "v0"]


def test_failures_are_those_of_newest_runs_by_video() -> None:
    for number in range(5):
        add(f"v{number}", "u", "deleted" if number == 4 else "partial", number, failed=number)
        add(f"v{number}", "other", "partial", number, failed=2)
    whole = pages(video.failures, "failures", user_id="u", limit=1000)
    assert [row["error"][2:] for row in whole] == ["v3 2", "v3 1", "v3 0", "v2 1", "v2 0", "v1 0"]
    expected = {"stage": "text", "error_class": "BadMedia", "attempts": 3, "run": 2}
    assert all(row.items() >= expected.items() and row["failed_at"] is not None for row in whole)
    for limit in (1, 2, 4):
        assert pages(video.failures, "failures", user_id="u", limit=limit) == whole
    of_one = pages(video.failures, "failures", user_id="u", video_id="v2", limit=1)
    assert of_one == [row for row in whole if row["video_id"] == "v2"]
    for name in ("v4", "strange"):
        with pytest.raises(NotFound):
            video.failures(user_id="u", video_id=name)


def test_a_place_to_upload_to_is_named_and_nothing_stored(configure: Configure) -> None:
    slot = video.upload(user_id="u", video_id="v", filename="../My film?.mp4")
    assert slot["storage_key"] == "uploads/u/v/My film?.mp4"
    assert slot["upload_url"] is None and slot["expires_at"] is None
    storage = {"BACKEND": "minio", "ENDPOINT": "127.0.0.1:9", "ACCESS_KEY": "k", "SECRET_KEY": "secret"}
    configure(**{f"STORAGE_{name}": value for name, value in storage.items()})
    slot = video.upload(user_id="u", video_id="v", filename="film.mp4", expires_s=60)
    url = urlsplit(slot["upload_url"])
    assert url.path == f"/uploads/{slot['storage_key']}" == "/uploads/uploads/u/v/film.mp4"
    assert "X-Amz-Expires=60" in url.query
    left_s = (datetime.fromisoformat(slot["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 0 < left_s <= 60
    assert read(select(Video)) == []
    add("v", "other", "indexed", 0)
    assert video.upload(user_id="u", video_id="v")["storage_key"] == "uploads/u/v/video"
    add("v", "u", "indexed", 0)
    add("gone", "u", "deleted", 0)
    for name, what in (("v", "is there already"), ("gone", "was deleted")):
        with pytest.raises(Conflict, match=f"video {name} {what}: choose another id"):
            video.upload(user_id="u", video_id=name)
