"""build_index: build the vector index of a model beside running work."""

from __future__ import annotations

from db.engine import get_engine, reading
from db.tables import Model
from db.vectors import ensure_index, model_row
from shared.errors import DatabaseBusy, StatementTimeout
from worker.stages.context import Deferred, Outcome, StageContext

#: First pause while another index is built or dropped, seconds.
BUSY_S = 2.0


def run(context: StageContext) -> Outcome:
    with reading() as session:
        model = model_row(session.get_one(Model, int(context.claimed.subject.id)))
    try:
        ensure_index(get_engine(), model, wait_s=0.0)
    except StatementTimeout:
        raise
    except DatabaseBusy as error:
        raise Deferred(BUSY_S) from error
    return Outcome()
