"""What an operator sees of the fleet, and another try of what has failed, of all users."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from sqlalchemy import text, update

from db.engine import reading
from db.expressions import seconds_from_now
from db.ledger import overview
from db.tables import Job, Video
from shared import nodes
from shared.errors import BadMedia, BrokerUnavailable, InvalidRequest, ObjectMissing
from tasks import fleet
from tests.integration.conftest import Configure
from tests.support.ledger import accept, execute, fail, finish, must_claim, split, state
from tests.support.services import RedisServer

pytestmark = pytest.mark.usefixtures("database", "configure")


@pytest.fixture(autouse=True)
def node(redis_server: RedisServer, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node that could not load its model."""
    configure(REDIS_URL=redis_server.url)
    monkeypatch.setattr("tasks.fleet.notify", lambda wake_ups: None)
    described = {"node": "asr@box", "family": "asr", "state": "failed", "error": "no model", "pid": 7, "evictions": 0,
                 "loads": {}, "slots": [{"models": [{"name": "pocketsphinx"}]}]}  # fmt: skip
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        nodes.publish(client, described)


def queue(name: str) -> dict[str, Any]:
    found = fleet.state()
    return next(row for row in found["queues"] if row["queue"] == name)


def test_the_state_of_the_fleet() -> None:
    for number in range(4):
        accept(f"v{number}", f"u{number}")
    split(must_claim())
    fail(must_claim(), BadMedia("not a video"))
    running = must_claim()
    execute(update(Job).where(Job.user_id == "u3").values(not_before=seconds_from_now(-100)))
    media = queue("media")
    counts = {
        "waiting": 1,
        "running": 1,
        "deferred": 0,
        "done_last_minute": 1,
        "failed": 1,
        "backlog_s": 600.0,
    }
    assert media.items() >= counts.items()
    families = {row["family"]: (row["ready"], row["level"]) for row in fleet.state()["families"]}
    assert families == {"media": (0, 2), "asr": (0, 2), "face": (0, 2), "ocr": (0, 2)}
    assert 100 <= media["oldest_s"] < 400
    execute(update(Job).where(Job.user_id == "u3").values(not_before=seconds_from_now(100)))
    execute(update(Job).where(Job.state == "done").values(finished_at=seconds_from_now(-61)))
    later = queue("media")
    assert later["deferred"] == 1 and later["done_last_minute"] == 0
    finish(running, audio_key="a", windows=[])
    found = fleet.state()
    assert json.loads(json.dumps(found)) == found
    assert found["nodes"] == [
        {
            "name": "asr@box",
            "family": "asr",
            "state": "failed",
            "error": "no model",
            "models": ["pocketsphinx"],
            "uptime_s": None,
            "resources": None,
        }
    ]
    assert found["queues"][0]["queue"] == "media"
    assert {row["kind"] for row in found["models"]} == {"text", "vision"}
    (failure,) = found["failures"]
    expected = {"error_class": "BadMedia", "count": 1, "videos": 1, "user_id": "u1", "video_id": "v1",
                "stage": "split", "error": "not a video"}  # fmt: skip
    assert failure.items() >= expected.items()


def test_failures_of_a_class_run_again_for_all_users() -> None:
    for number in range(5):
        accept(f"v{number}", f"u{number % 2}")
        fail(must_claim(), ObjectMissing(f"no file {number}") if number else BadMedia("x"))
    # A deleted video is not tried again.
    execute(
        update(Video).where(Video.external_id == "v4").values(state="deleted", deleted_at=seconds_from_now(0))
    )
    kinds = {kind["error_class"]: (kind["count"], kind["videos"]) for kind in fleet.state()["failures"]}
    assert kinds == {"ObjectMissing": (3, 3), "BadMedia": (1, 1)}
    first = fleet.retry(error_class="ObjectMissing", limit=2)
    assert (first["videos"], first["refused"], first["more"]) == (2, 0, True)
    rest = fleet.retry(error_class="ObjectMissing", limit=2)
    assert (rest["videos"], rest["more"]) == (1, False)
    assert [state(f"v{number}") for number in range(4)] == [
        "failed",
        "processing",
        "processing",
        "processing",
    ]
    assert fleet.retry(error_class="ObjectMissing")["videos"] == 0
    assert {kind["error_class"] for kind in fleet.state()["failures"]} == {"BadMedia"}
    with pytest.raises(InvalidRequest, match="error_class is missing"):
        fleet.retry()


def test_one_video_that_cannot_run_again_does_not_keep_out_the_others(
    configure: Configure, redis_server: RedisServer
) -> None:
    for number in range(3):
        accept(f"v{number}", "u1" if number < 2 else "u2")
        fail(must_claim(), ObjectMissing("no file"))
    configure(REDIS_URL=redis_server.url, USER_MAX_OPEN_VIDEOS="1")
    answer = fleet.retry(error_class="ObjectMissing")
    assert (answer["videos"], answer["refused"]) == (2, 1) and "USER_MAX_OPEN_VIDEOS" in answer["error"]


def test_without_redis_the_answer_says_so(configure: Configure) -> None:
    configure()
    with pytest.raises(BrokerUnavailable):
        fleet.state()


def test_the_statements_read_indexes(database: str) -> None:
    accept("v1")
    rows = (
        "SELECT 'video', video_id, video_id, user_id, 'media', 1, 'split', n, 'done', clock_timestamp() - interval '1 day'"
        " FROM videos, generate_series(1, 20000) n"
    )
    columns = "subject_kind, subject_id, video_id, user_id, queue, run, stage, part, state, finished_at"
    execute(text(f"INSERT INTO jobs ({columns}) {rows}"))
    execute(text("ANALYZE jobs"))
    with reading() as session:
        for statement, values in (
            (overview._QUEUES, {"queues": ["media"], "counted": 9}),
            (overview._FAILURES, {"counted": 9}),
            (overview._FAILED_VIDEOS, {"error_class": "x", "stages": ["split"], "limit": 9}),
        ):
            plan = "\n".join(session.execute(text(f"EXPLAIN {statement.text}"), values).scalars())
            assert "Seq Scan on jobs" not in plan, plan
