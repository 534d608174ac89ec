"""Jobs: what they are about, how they are made, inserted, cancelled and queued again.

A function that makes jobs claimable returns their wake-up messages, to be sent after the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Double, case, cast, func, update
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds_since
from db.ledger import usage
from db.ledger.policy import RunPolicy
from db.tables import LIVE, TERMINAL, Job, JobState, ModelSwitch, Person, Video
from shared import graph
from shared.stage import Stage

#: The row of a subject: locked before its jobs, and says which run counts.
SubjectRow = Video | Person | ModelSwitch


@dataclass(frozen=True)
class Subject:
    """What a job is about; ``db.ledger.subjects`` says what each kind can do."""

    #: video, person, switch
    kind: str
    id: str


def subject_of(row: SubjectRow) -> Subject:
    match row:
        case Video():
            return Subject("video", row.video_id)
        case Person():
            return Subject("person", row.person_id)
    return Subject("switch", str(row.switch_id))


def jobs_of(row: SubjectRow) -> ColumnElement[bool]:
    """The jobs of a subject, as a condition."""
    subject = subject_of(row)
    return (Job.subject_kind == subject.kind) & (Job.subject_id == subject.id)


def run_jobs(row: SubjectRow) -> ColumnElement[bool]:
    """The jobs of a subject's current run, as a condition."""
    return jobs_of(row) & (Job.run == row.run)


@dataclass(frozen=True)
class WakeUp:
    """Work waits in this queue; the job's id rides along for the logs."""

    queue: str
    job_id: int


#: How long a running attempt has taken, seconds; what came after its lease had run out is not its user's.
RAN_S = seconds_since(Job.started_at) - func.greatest(
    func.coalesce(cast(func.extract("epoch", NOW - Job.lease_until), Double), 0.0), 0.0
)


def make_job(
    row: SubjectRow, stage: Stage, policy: RunPolicy, *, state: JobState = JobState.QUEUED, **values: Any
) -> Job:
    """A job of a subject's current run, not yet inserted.

    Args:
        values: other columns that differ from their defaults. A job of a switch needs a ``user_id``: whose scenes it is
            about, or empty.
    """
    subject = subject_of(row)
    if isinstance(row, Video):
        values["video_id"] = row.video_id
    if not isinstance(row, ModelSwitch):
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
    """Add jobs; returns wake-up messages for those that can be claimed at once."""
    for job in jobs:
        job.depth = graph.depth(job.stage)
    session.add_all(jobs)
    session.flush()
    for job in jobs:
        if job.state == JobState.QUEUED:
            usage.add_waiting(session, job.queue, job.account)
    return [WakeUp(job.queue, job.job_id) for job in jobs if job.state == JobState.QUEUED]


def cancel(session: Session, *which: ColumnElement[bool]) -> int:
    """Cancel those of some jobs that have not ended; a running attempt keeps its lease until it notices. Returns how many."""
    # Only a running job has an owner; the rest of its attempt is added when its lease ends.
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


def requeue_failed(session: Session, *which: ColumnElement[bool]) -> list[WakeUp]:
    """Queue those of some jobs again that were given up. Failures start from zero; attempts go on counting, they are the fence."""
    again = session.execute(
        update(Job)
        .where(*which, Job.state == JobState.FAILED)
        .values(
            state=JobState.QUEUED,
            failures=0,
            outages=0,
            not_before=NOW,
            error_class=None,
            error=None,
            finished_at=None,
        )
        .returning(Job.queue, Job.account, Job.job_id)
    ).all()
    for row in again:
        usage.add_waiting(session, row.queue, row.account)
    return [WakeUp(row.queue, row.job_id) for row in again]
