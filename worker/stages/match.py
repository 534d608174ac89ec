"""match: compare one video's faces with the user's people again, after one of these has changed."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.engine import reading
from db.ledger import subjects
from db.people import unknowns
from worker.stages.context import Outcome, StageContext


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    video_id, rule = str(claimed.payload["video_id"]), context.runtime.face_rule
    with reading() as session:
        similar = unknowns.find_similar(
            session, claimed.user_id, unknowns.strangers_of(session, claimed.user_id, video_id), rule
        )

    def write(session: Session) -> None:
        video = subjects.lock_video(session, video_id)
        if video is None or video.deleted_at is not None or video.user_id != claimed.user_id:
            return
        unknowns.assign_people(session, video, rule, similar=similar)

    return Outcome(result={"video_id": claimed.payload["video_id"]}, write=write)
