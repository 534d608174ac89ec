"""erase_video: remove all of a deleted video, then look once more after the longest time limit."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.ledger import attempts, video_runs
from db.ledger.subjects import lock_video
from db.people.unknowns import leave_video
from db.scenes import drop_some_scenes
from shared.errors import NotFound
from shared.storage import Bucket
from worker.stages.context import Deferred, Outcome, StageContext
from worker.stages.sweep import PLACES

_PATIENCE_S = 2.0
_PLACES: tuple[tuple[Bucket, str], ...] = (*PLACES, ("uploads", "uploads"))


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        if attempts.leases_held(session, claimed.video_id, but=claimed.job_id):
            raise Deferred(_PATIENCE_S)
    removed = 0
    for bucket, role in _PLACES:
        removed += context.storage.delete_prefix(bucket, f"{role}/{claimed.user_id}/{context.video_name}/")
        context.report(0.5)

    while transact(lambda session: leave_video(session, claimed.video_id)):
        context.report(0.9)

    # In short transactions; the rest is deleted with the end of the job.
    while context.write(lambda session, _: drop_some_scenes(session, claimed.video_id)):
        context.report(0.9)

    def write(session: Session) -> None:
        video = lock_video(session, claimed.video_id)
        if video is None:
            raise NotFound(f"no video {claimed.video_id!r}")
        video_runs.erase_rows(session, video, claimed.job_id)
        if claimed.part == 0:
            video_runs.erase_again(session, video, context.runtime.policy)

    return Outcome(result={"removed": removed}, write=write)
