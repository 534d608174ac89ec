"""build_index: build the vector indexes of a model beside running work: its own, and those of users with many vectors."""

from __future__ import annotations

from db.engine import get_engine, reading
from db.tables import Model
from db.vectors import ensure_indexes, model_row
from shared.errors import DatabaseBusy, StatementTimeout
from worker.stages.context import Deferred, Outcome, StageContext

#: First pause while another index is built or dropped, seconds.
BUSY_S = 2.0


def run(context: StageContext) -> Outcome:
    with reading() as session:
        model = model_row(session.get_one(Model, int(context.claimed.subject.id)))
    exact_rows = context.runtime.settings.search_exact_rows
    try:
        ensure_indexes(get_engine(), model, exact_rows, wait_s=0.0, report=context.report)
    except StatementTimeout:
        raise
    except DatabaseBusy as error:
        raise Deferred(BUSY_S) from error
    return Outcome()
