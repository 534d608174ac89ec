"""A silent connection that has one video's row, in a fleet of real nodes: every other video goes on, and it too, later."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import pytest
import redis

from shared.errors import ScenefleetError
from tests.support.clips import Shot, make_clip
from tests.support.fleet import Fleet, eventually

#: Without these, two nodes make a whole video of pictures only.
OFF = {"FEATURE_SEMANTIC_SEARCH": "false", "FEATURE_FACE": "false", "FEATURE_OCR": "false"}
LIMITS = {"DATABASE_LOCK_S": "2", "RECONCILE_S": "0.5"}
#: The silent connection is ended after so long: by default 45 s, on a server of ours.
IDLE_S = 25.0


def test_a_silent_connection_stops_one_video_and_not_the_fleet(fleet: Fleet, tmp_path: Path) -> None:
    clip = tmp_path / "film.mp4"
    make_clip(clip, [Shot(seed=6, frames=20), Shot(seed=7, frames=20)])
    fleet.start("search", **OFF, **LIMITS)
    fleet.wait_ready()
    for video_id in ("held", "lost", "unrung", "stopped"):
        fleet.process(clip, video_id)
    with psycopg.connect(
        fleet.postgres_url, options=f"-c idle_in_transaction_session_timeout={round(IDLE_S * 1000)}"
    ) as silent:
        silent.execute("SELECT 1 FROM videos WHERE external_id = 'held' FOR UPDATE")
        began = time.monotonic()
        with (
            psycopg.connect(fleet.postgres_url, autocommit=True) as operator,
            redis.Redis.from_url(fleet.redis_url) as client,
        ):
            # Two whose worker is gone, and all wake-up messages with it.
            operator.execute(
                "UPDATE jobs SET state = 'running', attempt = attempt + 1, lease_owner = 'gone@h:1.a:0:2',"
                " lease_until = clock_timestamp() - interval '1 s' WHERE video_id IN"
                " (SELECT video_id FROM videos WHERE external_id IN ('held', 'lost'))"
            )
            client.delete("media")
        queued = "stage = 'split' AND state = 'queued'"
        eventually(lambda: fleet.of_video("jobs", "lost", queued), within_s=5, what="taken back in two ticks")
        with redis.Redis.from_url(fleet.redis_url) as client:
            eventually(lambda: client.llen("media"), within_s=5, what="wake-up messages are rung again")

        asked = time.monotonic()
        assert fleet.client.cancel("stopped", "u1").accepted
        with pytest.raises(ScenefleetError) as refused:
            fleet.client.cancel("held", "u1")
        assert refused.value.code == "DatabaseBusy" and refused.value.retryable
        assert time.monotonic() - asked < 15.0, "2 s for the row, the rest is a busy machine"

        fleet.start("media", **OFF, **LIMITS)
        fleet.wait_ready()
        for video_id in ("lost", "unrung"):
            fleet.wait_for(video_id, within_s=60)
        silent_for_s = time.monotonic() - began
        fleet.wait_for("held", within_s=60)
        assert fleet.client.status("stopped", "u1").state == "cancelled"
        print(f"others indexed {silent_for_s:.1f} s, the held one {time.monotonic() - began:.1f} s after")
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            silent.execute("SELECT 1")
