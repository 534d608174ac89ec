"""late_photos: remove photos once more when no URL is left by which they could have been stored again."""

from __future__ import annotations

from db.engine import reading
from db.people import erasure
from shared.storage import check_key
from worker.stages.context import Outcome, StageContext


def run(context: StageContext) -> Outcome:
    keys = [check_key(str(key)) for key in context.claimed.payload["keys"]]
    with reading() as session:
        kept = erasure.kept_photos(session, keys)
    for key in keys:
        if key not in kept:
            context.storage.delete("uploads", key)
    return Outcome()
