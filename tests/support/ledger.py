"""Jobs as workers take, finish and fail them, without workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Executable, Select, select, update
from sqlalchemy.orm import Session

from db import videos
from db.engine import reading, transact
from db.expressions import seconds_from_now
from db.ids import video_key
from db.ledger import attempts, claims
from db.ledger.claims import Claim, ClaimRules
from db.ledger.jobs import WakeUp
from db.ledger.policy import RunPolicy
from db.scenes import write_scenes
from db.tables import Job, Video
from shared.contracts import ProcessVideo, Receipt

POLICY = RunPolicy(skips={"vision": "unavailable: no model"}, max_failures=3, tmp_ttl_s=3600)
LEASE_S = 60.0
#: Primary key of u1's v1.
KEY = video_key("u1", "v1")


def read(query: Select[Any]) -> list[Any]:
    with reading() as session:
        return list(session.scalars(query))


def execute(statement: Executable) -> None:
    transact(lambda session: session.execute(statement))


def set_job(job_id: int, **columns: Any) -> None:
    execute(update(Job).where(Job.job_id == job_id).values(columns))


def accept(
    video_id: str = "v1",
    user_id: str = "u1",
    *,
    key: str | None = None,
    priority: int = 0,
    policy: RunPolicy = POLICY,
) -> Receipt:
    key = key or f"uploads/{user_id}/{video_id}/a.mp4"
    request = ProcessVideo(video_id=video_id, user_id=user_id, storage_key=key, priority=priority)
    return transact(lambda session: videos.accept(session, request, policy))[0]


def claim(
    queue: str = "media", owner: str = "n:1:0:2", lease_s: float = LEASE_S, rules: ClaimRules | None = None
) -> Claim | None:
    return transact(lambda session: claims.claim(session, queue, owner, lease_s, rules))


def must_claim(queue: str = "media", **options: Any) -> Claim:
    found = claim(queue, **options)
    assert found is not None, f"nothing claimable in {queue}"
    return found


def nothing(session: Session) -> None:
    """No rows."""


def finish(
    claimed: Claim, write: Callable[[Session], None] = nothing, *, policy: RunPolicy = POLICY, **result: Any
) -> list[WakeUp]:
    return transact(lambda session: attempts.finish(session, claimed, write, result, policy))


def fail(claimed: Claim, error: Exception, policy: RunPolicy = POLICY) -> list[WakeUp]:
    return transact(lambda session: attempts.fail(session, claimed, error, policy))


def scene_rows(count: int) -> list[dict[str, Any]]:
    """Scenes of one second, one keyframe each."""
    return [
        {"idx": i, "start_s": float(i), "end_s": i + 1.0, "kind": "cut", "keyframes": [{"ordinal": 0, "key": f"k{i}"}]}
        for i in range(count)
    ]  # fmt: skip


def split(claimed: Claim, scenes: int = 3, windows: int = 2, policy: RunPolicy = POLICY) -> list[WakeUp]:
    """Finish a split with so many scenes and windows."""
    rows, place = scene_rows(scenes), (claimed.video_id, claimed.user_id, claimed.run)
    found = [[i * 10.0, i * 10.0 + 10] for i in range(windows)]
    write: Callable[[Session], None] = lambda session: write_scenes(session, *place, rows)  # noqa: E731
    return finish(claimed, write, policy=policy, audio_key="a", windows=found)


def run_queue(*queues: str) -> int:
    """Finish all claimable jobs of some queues, one queue after the other."""
    count = 0
    for queue in queues:
        while (claimed := claim(queue)) is not None:
            finish(claimed)
            count += 1
    return count


def expire(claimed: Claim) -> None:
    """Let a lease run out."""
    set_job(claimed.job_id, lease_until=seconds_from_now(-1))


def job(job_id: int) -> Job:
    return read(select(Job).where(Job.job_id == job_id))[0]


def state(video_id: str = "v1") -> str:
    return read(select(Video.state).where(Video.external_id == video_id))[0]
