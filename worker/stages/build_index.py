"""build_index: build the vector indexes of a model beside running work: its own, and those of users with many vectors."""

from __future__ import annotations

from db.engine import get_engine, reading
from db.tables import Model
from db.vectors import drop_index, ensure_index, model_row, users_of_own_indexes
from shared.errors import DatabaseBusy, StatementTimeout
from worker.stages.context import Deferred, Outcome, StageContext

#: First pause while another index is built or dropped, seconds.
BUSY_S = 2.0


def run(context: StageContext) -> Outcome:
    with reading() as session:
        model = model_row(session.get_one(Model, int(context.claimed.subject.id)))
        large, needless = users_of_own_indexes(session, model, context.runtime.settings.search_exact_rows)
    try:
        ensure_index(get_engine(), model, wait_s=0.0)
        if needless:
            drop_index(get_engine(), model.model_id, own=needless, wait_s=0.0)
        for place, user_id in enumerate(large):
            context.report(place / len(large))
            ensure_index(get_engine(), model, user_id=user_id, wait_s=0.0)
    except StatementTimeout:
        raise
    except DatabaseBusy as error:
        raise Deferred(BUSY_S) from error
    return Outcome()
