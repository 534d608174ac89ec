"""sweep: after a run, remove its temporary objects and everything nothing points at."""

from __future__ import annotations

from db import jobs
from db.engine import reading
from db.scenes import referenced_keys
from shared.storage import Bucket
from worker.stages.context import Deferred, Outcome, StageContext

#: How long to wait for attempts that have lost their job to let go, seconds.
_PATIENCE_S = 10.0


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        context.video_and_run(session)
        if jobs.leases_held(session, claimed.video_id, but=claimed.job_id):
            raise Deferred(_PATIENCE_S)
        kept = referenced_keys(session, claimed.video_id)
    removed = 0
    places: tuple[tuple[Bucket, str], ...] = (
        ("tmp", "tmp"),
        ("sidecars", "keyframes"),
        ("sidecars", "sidecars"),
    )
    for bucket, role in places:
        for found in context.storage.list(bucket, f"{role}/{claimed.user_id}/{claimed.video_id}/"):
            if found.key not in kept:
                context.storage.delete(bucket, found.key)
                removed += 1
            context.report(0.5)
    return Outcome(result={"removed": removed})
