"""Jobs: creates, inserts, cancels and requeues them.

A function that makes jobs claimable returns their wake-up messages, to be sent after the commit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Double,
    Integer,
    Select,
    Text,
    case,
    cast,
    func,
    insert as insert_rows,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Session

from db.expressions import NOW, array, seconds_since
from db.ledger import usage
from db.ledger.policy import RunPolicy
from db.tables import LIVE, TERMINAL, Job, JobState, Model, ModelSwitch, Person, Video, Webhook
from shared import graph, trace_context
from shared.stage import Stage

#: The row of a subject: locked before its jobs; names the current run.
SubjectRow = Video | Person | ModelSwitch | Webhook | Model


@dataclass(frozen=True)
class Subject:
    """What a job is about; ``db.ledger.subjects`` says what each kind can do."""

    #: video, person, switch, webhook, model
    kind: str
    id: str


def subject_of(row: SubjectRow) -> Subject:
    match row:
        case Video():
            return Subject("video", row.video_id)
        case Person():
            return Subject("person", row.person_id)
        case Webhook():
            return Subject("webhook", row.webhook_id)
        case Model():
            return Subject("model", str(row.model_id))
    return Subject("switch", str(row.switch_id))


def jobs_of(row: SubjectRow) -> ColumnElement[bool]:
    """The jobs of a subject, as a condition."""
    subject = subject_of(row)
    return (Job.subject_kind == subject.kind) & (Job.subject_id == subject.id)


def run_jobs(row: SubjectRow) -> ColumnElement[bool]:
    """The jobs of a subject's current run, as a condition."""
    return jobs_of(row) & (Job.run == row.run)


#: Maximum number of wake-up messages that are sent for a queue at once: the reconciler sends others when these are taken.
MOST_WAKE_UPS = 500


@dataclass(frozen=True)
class WakeUp:
    """A wake-up message to send: the queue has work. The job's id is for the logs."""

    queue: str
    job_id: int


#: Queued or running, in the words of the partial index ``ix_jobs_live``.
IS_LIVE = Job.state.in_([literal_column(f"'{state}'") for state in LIVE])
#: Device time of a running attempt, seconds; time after its lease expired does not count.
RAN_S = seconds_since(Job.started_at) - func.greatest(
    func.coalesce(cast(func.extract("epoch", NOW - Job.lease_until), Double), 0.0), 0.0
)


def make_job(
    row: SubjectRow, stage: Stage, policy: RunPolicy, *, state: JobState = JobState.QUEUED, **values: Any
) -> Job:
    """A job of a subject's current run, not yet inserted.

    Args:
        values: other columns that differ from their defaults. A job of a switch, or of a model, needs a ``user_id``: the
            owner of its scenes, or empty.
    """
    subject = subject_of(row)
    if isinstance(row, Video):
        values["video_id"] = row.video_id
    if not isinstance(row, ModelSwitch | Model):
        values["user_id"] = row.user_id
    if state in TERMINAL:
        values |= {"finished_at": NOW, "progress": 1.0}
    return Job(
        subject_kind=subject.kind,
        subject_id=subject.id,
        queue=stage.queue,
        run=row.run,
        stage=stage.name,
        state=state,
        max_failures=policy.max_failures,
        **values,
    )


def insert(session: Session, jobs: Sequence[Job]) -> list[WakeUp]:
    """Add jobs of one run; returns wake-up messages for the queued ones."""
    trace = _traceparent(session, jobs[0]) if jobs else None
    # A queued job has the column's default, now, or a time in the future.
    deferred = {id(job) for job in jobs if job.not_before is not None}
    for job in jobs:
        job.depth = graph.depth(job.stage) if job.depth is None else job.depth
        job.traceparent = trace
    if len(jobs) >= _MANY and _differ_in_parts_only(jobs):
        return _insert_parts(session, jobs)
    session.add_all(jobs)
    session.flush()
    for job in jobs:
        if job.state == JobState.QUEUED:
            usage.add_waiting(session, job.queue, job.account, deferred=id(job) in deferred)
    return [WakeUp(job.queue, job.job_id) for job in jobs if job.state == JobState.QUEUED]


def _values(job: Job) -> dict[str, Any]:
    """What was set of a job that is not inserted, without its part and payload."""
    own = ("_sa_instance_state", "part", "payload")
    return {name: value for name, value in vars(job).items() if name not in own}


def _differ_in_parts_only(jobs: Sequence[Job]) -> bool:
    values = _values(jobs[0])
    plain = not any(isinstance(value, ClauseElement) for value in values.values())
    return plain and jobs[0].state == JobState.QUEUED and all(_values(job) == values for job in jobs)


def _insert_parts(session: Session, jobs: Sequence[Job]) -> list[WakeUp]:
    """Insert the parts of one stage in one statement: a long film has tens of thousands, while its row is locked."""
    first, values = jobs[0], _values(jobs[0])
    session.flush()
    parts = (
        func.unnest(
            literal([job.part for job in jobs], ARRAY(Integer)),
            literal([json.dumps(job.payload) for job in jobs], ARRAY(Text)),
        )
        .table_valued("part", "payload")
        .render_derived()
    )
    columns = [literal(value, Job.__table__.c[name].type) for name, value in values.items()]
    rows = select(*columns, parts.c.part, cast(parts.c.payload, JSONB))
    added = insert_rows(Job).from_select([*values, "part", "payload"], rows).returning(Job.job_id)
    ids = session.scalars(added).all()
    account = session.scalars(select(Job.account).where(Job.job_id == ids[0])).one()
    usage.add_waiting(session, first.queue, account)
    return [WakeUp(first.queue, job_id) for job_id in ids[:MOST_WAKE_UPS]]


def has_live(session: Session, job: Job) -> bool:
    """Whether the run of a job has another one of its stage that waits or runs."""
    same = (Job.subject_kind == job.subject_kind, Job.subject_id == job.subject_id, Job.run == job.run)
    others = select(Job.job_id).where(*same, Job.stage == job.stage, IS_LIVE, Job.job_id != job.job_id)
    return session.scalars(others.limit(1)).first() is not None


def _traceparent(session: Session, job: Job) -> str | None:
    """The span that this code runs in; without one (the reconciler) that of another job of the run."""
    context = trace_context.current()
    if context is not None:
        return str(context)
    same = (Job.subject_kind == job.subject_kind, Job.subject_id == job.subject_id, Job.run == job.run)
    earlier = select(Job.traceparent).where(*same, Job.traceparent.is_not(None))
    with session.no_autoflush:
        return session.scalars(earlier.limit(1)).first()


def cancel(session: Session, *which: ColumnElement[bool]) -> int:
    """Cancel queued and running jobs; a running attempt keeps its lease until it notices. Returns how many."""
    # Only a running job has an owner; the rest of its time is added when its lease ends.
    ran_s = case((Job.lease_owner.is_not(None), func.greatest(RAN_S, 0.0)), else_=0.0)
    cancelled = session.execute(
        update(Job)
        .where(*which, Job.state.in_(LIVE))
        .values(
            state=JobState.CANCELLED,
            finished_at=NOW,
            device_seconds=func.coalesce(Job.device_seconds, 0.0) + ran_s,
        )
        .returning(Job.queue, Job.account, ran_s.label("seconds")),
        execution_options={"synchronize_session": False},
    ).all()
    for row in cancelled:
        if row.seconds:
            usage.add_seconds(session, row.queue, row.account, row.seconds)
    return len(cancelled)


#: As many jobs of one stage are inserted in one statement.
_MANY = 100
#: Subjects with an open run that one look examines, and where this process's next look begins, by kind.
_PAGE_SIZE = 500
_page_after: dict[str, str] = {}


def find_stuck(
    session: Session, kind: str, page: Callable[[str, int], Select[str, int]], limit: int = 100
) -> list[str]:
    """Ids of subjects whose run is open while none of its jobs is queued or running.

    Successive calls of a process look at one page of subjects each, in turn: thousands may have an open run. Some of those
    found at random: subjects that can't be advanced must not keep out the others.

    Args:
        page: makes a query of so many open runs after an id, in the order of their subjects: subject, run.
    """
    seen = page(_page_after.get(kind, ""), _PAGE_SIZE).subquery()
    subject_id, run = seen.c
    of_run = (Job.subject_kind == kind) & (Job.subject_id == subject_id) & (Job.run == run)
    live = select(Job.job_id).where(of_run, Job.stage.in_(list(graph.STAGES)), IS_LIVE)
    # Looked up run by run: as EXISTS, Postgres may read all live jobs into a hash table.
    found = session.execute(select(subject_id, live.limit(1).scalar_subquery().is_(None))).all()
    _page_after[kind] = max(row[0] for row in found) if len(found) == _PAGE_SIZE else ""
    stuck = [row[0] for row in found if row[1]]
    return random.sample(stuck, min(limit, len(stuck)))


def requeue_failed(session: Session, *which: ColumnElement[bool]) -> list[WakeUp]:
    """Queue failed jobs again, and those that left something out, with what they left out.

    Failures and deaths start from zero; attempts go on counting, they are the fence.
    """
    fresh = {
        **dict.fromkeys(("failures", "outages", "deaths", "deaths_alone"), 0),
        **dict.fromkeys(("error_class", "error", "finished_at", "not_looked_at")),
        "payload": Job.payload.op("-")(array(("without", "trials"))),
    }
    has_gap = (Job.state == JobState.DONE) & Job.not_looked_at.is_not(None)
    again = session.execute(
        update(Job)
        .where(*which, (Job.state == JobState.FAILED) | has_gap)
        .values(state=JobState.QUEUED, not_before=NOW, **fresh)
        .returning(Job.queue, Job.account, Job.job_id)
    ).all()
    for row in again:
        usage.add_waiting(session, row.queue, row.account)
    return [WakeUp(row.queue, row.job_id) for row in again]
