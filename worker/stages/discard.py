"""discard: remove the vectors of the model that a switch has left behind, with their index."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy import text
from sqlalchemy.orm import Session

from db import switches
from db.engine import get_engine, reading, transact
from db.vectors import drop_index
from shared.errors import DatabaseBusy, StatementTimeout
from worker.stages.build_index import BUSY_S
from worker.stages.context import Deferred, Outcome, StageContext

_AT_ONCE = 2_000
#: After so long it gives way to other housekeeping, seconds; what is left is all it needs to go on.
_SLICE_S = 20.0


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    model_id = int(claimed.payload["model_id"])
    # First: without it a row costs little to remove.
    try:
        drop_index(get_engine(), model_id, wait_s=0.0)
    except StatementTimeout:
        raise
    except DatabaseBusy as error:
        raise Deferred(BUSY_S) from error
    with reading() as session:
        users = list(session.execute(text("SELECT DISTINCT user_id FROM videos ORDER BY 1")).scalars())
    removed = 0
    began_s: float | None = None
    for place, user_id in enumerate(users):
        discard = partial(switches.discard_some, model_id=model_id, user_id=user_id, most=_AT_ONCE)
        while gone := transact(discard):
            removed += gone
            # Raises when the attempt is not ours any more.
            context.report(place / len(users))
            # From the first rows on: going past users who have none left is no progress.
            began_s = began_s or time.monotonic()
            if time.monotonic() - began_s > _SLICE_S:
                raise Deferred(progressed=True)

    def write(session: Session) -> None:
        switches.end(session, claimed.subject.id, claimed.job_id)

    return Outcome(result={"removed": removed}, write=write)
