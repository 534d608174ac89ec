"""Runs of people: enrol photos, make the profile, match all videos of the user again.

Every function holds the lock on the person's row (``db.ledger.subjects.lock_person``).
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.orm import Session

from db.faces.profiles import make_profile
from db.faces.tracks import videos_with_faces
from db.ledger import jobs
from db.ledger.jobs import WakeUp, make_job, run_jobs
from db.ledger.policy import RunPolicy
from db.tables import LIVE, Job, JobState, Person, PersonPhoto
from shared import graph

#: After every video in progress.
PRIORITY = -1


def start(session: Session, person: Person, policy: RunPolicy, model_id: int | None = None) -> list[WakeUp]:
    """Start a run: enrol the photos that need it, then match all videos. Cancels the run before.

    ``model_id``: the active face model; photos with a vector of another one are enrolled again.
    """
    stop(session, person)
    person.run += 1
    wanted: ColumnElement[bool] = PersonPhoto.state.in_(("waiting", "pending", "failed"))
    if model_id is not None:
        wanted = or_(wanted, (PersonPhoto.state == "good") & (PersonPhoto.model_id != model_id))
    chosen = session.scalars(
        update(PersonPhoto)
        .where(PersonPhoto.person_id == person.person_id, wanted)
        .values(state="pending", error_class=None, error=None)
        .returning(PersonPhoto.photo_id)
    )
    ids = sorted(map(str, chosen))
    session.flush()
    batch = graph.ENROLL.batch
    parts = [{"photo_ids": ids[first : first + batch]} for first in range(0, len(ids), batch)]
    new = [make_job(person, graph.ENROLL, policy, part=part, payload=own) for part, own in enumerate(parts)]
    return jobs.insert(session, new) + advance(session, person, policy)


def stop(session: Session, person: Person) -> bool:
    """Cancel the person's jobs except lasting ones. Returns whether there were any."""
    cancelled = jobs.cancel(session, jobs.jobs_of(person), Job.stage.not_in(graph.LASTING))
    person.ended_run = person.run
    session.flush()
    return bool(cancelled)


def advance(session: Session, person: Person, policy: RunPolicy) -> list[WakeUp]:
    """Start the stage that follows one that has ended. Harmless at any time."""
    if person.deleted_at is not None or person.ended_run >= person.run:
        return []
    if person.moving_event is not None:
        # The end of the move starts another run.
        return []
    states = session.execute(select(Job.stage, Job.state).where(run_jobs(person)).distinct()).all()
    live = {stage for stage, state in states if state in LIVE}
    if {graph.ENROLL.name, graph.MATCH.name} & live:
        return []
    if graph.MATCH.name not in {stage for stage, _ in states}:
        _give_up_photos(session, person)
        make_profile(session, person.person_id)
        found = videos_with_faces(session, person.user_id)
        new = [
            make_job(person, graph.MATCH, policy, part=part, payload={"video_id": video}, priority=PRIORITY)
            for part, video in enumerate(found)
        ]
        if new:
            return jobs.insert(session, new)
    person.ended_run = person.run
    session.flush()
    return []


def _give_up_photos(session: Session, person: Person) -> None:
    """Set the state of photos whose job failed for good to ``failed``."""
    failed = (Job.stage == graph.ENROLL.name) & (Job.state == JobState.FAILED)
    pending = (PersonPhoto.person_id == person.person_id) & (PersonPhoto.state == "pending")
    for job in session.scalars(select(Job).where(run_jobs(person), failed)).all():
        looked_at = PersonPhoto.photo_id.in_([UUID(photo) for photo in job.payload["photo_ids"]])
        values = {"state": "failed", "error_class": job.error_class, "error": job.error}
        session.execute(update(PersonPhoto).where(pending, looked_at).values(values))


def find_stuck(session: Session) -> list[str]:
    """People that something has to advance."""

    def page(after: str, count: int) -> Select[str, int]:
        is_open = (Person.ended_run < Person.run, Person.deleted_at.is_(None), Person.moving_event.is_(None))
        people = select(Person.person_id, Person.run).where(*is_open, Person.person_id > after)
        return people.order_by(Person.person_id).limit(count)

    return jobs.find_stuck(session, "person", page)


def progress(session: Session, person: Person) -> float:
    """Progress of the person's run, erasure or move of tracks, 0..1."""
    if person.deleted_at is not None or person.moving_event is not None:
        if person.deleted_at is not None and person.receipt is not None:
            return 1.0
        stage = graph.ERASE_PERSON if person.deleted_at is not None else graph.MOVE
        first = (Job.stage == stage.name) & (Job.part == 0) & Job.state.in_(LIVE)
        return session.scalar(select(func.max(Job.progress)).where(jobs.jobs_of(person), first)) or 0.0
    if person.ended_run >= person.run:
        return 1.0
    return float(session.scalar(select(func.avg(Job.progress)).where(run_jobs(person))) or 0.0)
