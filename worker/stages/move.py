"""move: give tracks to another person, a batch a transaction, for some seconds at a time."""

from __future__ import annotations

import time
from functools import partial

from sqlalchemy.orm import Session

from db.people import moves
from db.tables import Job
from worker.stages.batch_size import BatchSize
from worker.stages.context import Deferred, Outcome, StageContext

#: Then others' jobs have their turn, seconds.
SLICE_S = 5.0


def run(context: StageContext) -> Outcome:
    move = moves.read_move(context.claimed.payload)
    began = time.monotonic()
    size = BatchSize(moves.BATCH)

    def step(session: Session, job: Job, rows: int) -> bool:
        looked = moves.step(session, move, rows)
        done = int(job.payload["done"]) + looked
        job.payload = {**job.payload, "done": done}
        job.progress = min(1.0, done / max(1, int(job.payload["total"])))
        context.report(job.progress)
        return looked < rows

    while True:
        with size.timed() as rows:
            ended = context.write(partial(step, rows=rows))
        if ended:
            break
        if time.monotonic() - began > SLICE_S:
            raise Deferred(progressed=True)

    def write(session: Session) -> None:
        moves.end(session, move, context.runtime.policy)

    return Outcome(write=write)
