"""match: compare one video's faces with the user's people again, after one of these has changed."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.ledger import subjects
from db.people.unknowns import assign_people
from worker.stages.context import Outcome, StageContext


def run(context: StageContext) -> Outcome:
    claimed = context.claimed

    def write(session: Session) -> None:
        video = subjects.lock_video(session, str(claimed.payload["video_id"]))
        if video is None or video.deleted_at is not None or video.user_id != claimed.user_id:
            return
        assign_people(session, video, context.runtime.face_rule)

    return Outcome(result={"video_id": claimed.payload["video_id"]}, write=write)
