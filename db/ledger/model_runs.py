"""Runs of models: one job builds a model's vector indexes. Whoever needs the index asks for the job, and does not wait for it.

A build waits until every older transaction has ended. So nobody may wait for a build in a transaction of his own.
"""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from db.ledger import jobs
from db.ledger.jobs import WakeUp, jobs_of, make_job
from db.ledger.policy import RunPolicy
from db.tables import LIVE, Job, Model
from db.vectors import is_indexed, lacks_own_index, model_row
from shared import graph


def want_index(
    session: Session, model_id: int, policy: RunPolicy, *, user_id: str, exact_rows: int
) -> list[WakeUp]:
    """Queue the job that builds a model's indexes, unless the one that this user's searches need is there, or such a job
    waits or runs. ``exact_rows``: vectors of a user that are searched without any index."""
    row = model_row(session.get_one(Model, model_id))
    if is_indexed(session, row) and not lacks_own_index(session, row, user_id, exact_rows):
        return []
    model = lock(session, str(model_id))
    assert model is not None
    if session.scalars(select(Job.job_id).where(jobs_of(model), Job.state.in_(LIVE)).limit(1)).first():
        return []
    session.execute(delete(Job).where(jobs_of(model)), execution_options={"synchronize_session": False})
    model.run += 1
    session.flush()
    return jobs.insert(session, [make_job(model, graph.BUILD_INDEX, policy, user_id="", model_id=model_id)])


def lock(session: Session, model_id: str, *, skip_locked: bool = False) -> Model | None:
    """The model's row, locked; a transaction that writes its vectors need not wait."""
    how = {"key_share": True, "skip_locked": skip_locked}
    return session.get(Model, int(model_id), populate_existing=True, with_for_update=how)


def advance(session: Session, model: Model, policy: RunPolicy) -> list[WakeUp]:
    """Nothing follows a build."""
    return []


def find_stuck(session: Session) -> list[str]:
    """None: a build is tried until it succeeds."""
    return []
