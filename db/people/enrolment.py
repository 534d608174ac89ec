"""A person's jobs: check the photos, compute the profile, match all videos of the user; resumable part by part.

Every function holds the lock on the person's row (``db.ledger.jobs.lock_person``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from pgvector import HalfVector
from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.ledger import jobs
from db.ledger.jobs import NOW, WakeUp, seconds
from db.ledger.runs import Plan
from db.people.tracks import as_array, videos_with_faces
from db.people.vote import centroid
from db.tables import TERMINAL, FaceTrack, Job, Model, Person, PersonPhoto, PersonProfile
from shared import graph

#: After all videos in progress.
_PRIORITY = -1
#: Maximum duration of an upload that began just before its URL expired, seconds.
UPLOAD_GRACE_S = 60.0
#: Maximum number of tracks for a profile without photos.
_MAX_TRACKS = 500


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """The face in one photo, or the reason why the photo can't be used."""

    photo_id: UUID
    state: str
    error_class: str | None = None
    error: str | None = None
    model_id: int | None = None
    vec: Any = None
    quality: float | None = None
    box: list[float] | None = None


def start(session: Session, person: Person, plan: Plan, model_id: int | None = None) -> list[WakeUp]:
    """Start a run that checks the pending photos, then matches all videos. Ends an earlier run.

    ``model_id``: the active face model; photos with a vector of another model are checked again.
    """
    stop(session, person)
    person.run += 1
    wanted: ColumnElement[bool] = PersonPhoto.state.in_(("waiting", "pending", "failed"))
    if model_id is not None:
        wanted = or_(wanted, (PersonPhoto.state == "good") & (PersonPhoto.model_id != model_id))
    ids = list(
        session.scalars(
            update(PersonPhoto)
            .where(PersonPhoto.person_id == person.person_id, wanted)
            .values(state="pending", error_class=None, error=None)
            .returning(PersonPhoto.photo_id)
        )
    )
    session.flush()
    batch = graph.ENROLL.batch
    parts = [sorted(map(str, ids))[first : first + batch] for first in range(0, len(ids), batch)]
    wake_ups = jobs.insert(
        session,
        [
            _job(person, graph.ENROLL, plan, part=part, payload={"photo_ids": chosen}, priority=0)
            for part, chosen in enumerate(parts)
        ],
    )
    return wake_ups + advance(session, person, plan)


def stop(session: Session, person: Person) -> bool:
    """Cancel the person's jobs except lasting ones. Returns whether there were any."""
    cancelled = jobs.cancel(
        session,
        Job.subject_kind == "person",
        Job.subject_id == person.person_id,
        Job.stage.not_in(jobs.LASTING),
    )
    person.ended_run = person.run
    session.flush()
    return bool(cancelled)


def advance(session: Session, person: Person, plan: Plan) -> list[WakeUp]:
    """Insert the jobs that follow an ended stage. Harmless at any time."""
    if person.deleted_at is not None or person.ended_run >= person.run:
        return []
    if person.moving_event is not None:
        # The job that moves its tracks starts a new run at its end.
        return []
    mine = (Job.subject_kind == "person") & (Job.subject_id == person.person_id) & (Job.run == person.run)
    states: dict[str, set[str]] = {}
    for stage, state in session.execute(select(Job.stage, Job.state).where(mine).distinct()):
        states.setdefault(stage, set()).add(state)
    if any(state not in TERMINAL for state in states.get("enroll", ())):
        return []
    if "match" not in states:
        _give_up_photos(session, person)
        make_profile(session, person.person_id)
        found = videos_with_faces(session, person.user_id)
        new = [
            _job(person, graph.MATCH, plan, part=part, payload={"video_id": video}, priority=_PRIORITY)
            for part, video in enumerate(found)
        ]
        if new:
            return jobs.insert(session, new)
    elif any(state not in TERMINAL for state in states["match"]):
        return []
    person.ended_run = person.run
    session.flush()
    return []


def _give_up_photos(session: Session, person: Person) -> None:
    """Mark the photos of a job that failed for good as failed."""
    failed = session.execute(
        select(Job.payload, Job.error_class, Job.error).where(
            Job.subject_kind == "person",
            Job.subject_id == person.person_id,
            Job.run == person.run,
            Job.stage == "enroll",
            Job.state == "failed",
        )
    ).all()
    for row in failed:
        session.execute(
            update(PersonPhoto)
            .where(
                PersonPhoto.person_id == person.person_id,
                PersonPhoto.state == "pending",
                PersonPhoto.photo_id.in_([UUID(photo) for photo in row.payload["photo_ids"]]),
            )
            .values(state="failed", error_class=row.error_class, error=row.error)
        )


def _job(person: Person, stage: graph.Stage, plan: Plan, **values: Any) -> Job:
    return Job(
        subject_kind="person",
        subject_id=person.person_id,
        user_id=person.user_id,
        queue=stage.queue,
        run=person.run,
        stage=stage.name,
        max_failures=plan.max_failures,
        **values,
    )


def erasure_job(person: Person, plan: Plan) -> Job:
    """The job that erases a person and verifies it."""
    return _job(person, graph.ERASE_PERSON, plan, priority=0)


def move_job(person: Person, plan: Plan, payload: Mapping[str, Any]) -> Job:
    """The job that moves tracks to a person (``db.people.moves``)."""
    return _job(person, graph.MOVE, plan, priority=0, payload=dict(payload))


def late_photos_job(person: Person, plan: Plan, keys: Sequence[str]) -> Job:
    """The job that removes photos again after the last upload URL has expired."""
    ends = func.greatest(func.coalesce(person.uploads_until, NOW), NOW)
    return _job(
        person,
        graph.LATE_PHOTOS,
        plan,
        priority=_PRIORITY,
        payload={"keys": list(keys)},
        not_before=ends + seconds(UPLOAD_GRACE_S),
    )


def note_upload_url(session: Session, person: Person, lasts_s: float) -> None:
    """Store until when an upload URL of the person, whose row is locked, is valid."""
    person.uploads_until = func.greatest(
        func.coalesce(Person.uploads_until, NOW), jobs.seconds_from_now(lasts_s)
    )
    session.flush()


def photos_to_look_at(
    session: Session, person_id: str, user_id: str, ids: Sequence[str]
) -> list[PersonPhoto]:
    """The pending photos of a part."""
    return list(
        session.scalars(
            select(PersonPhoto)
            .where(
                PersonPhoto.person_id == person_id,
                PersonPhoto.user_id == user_id,
                PersonPhoto.state == "pending",
                PersonPhoto.photo_id.in_([UUID(photo) for photo in ids]),
            )
            .order_by(PersonPhoto.created_at, PersonPhoto.photo_id)
        )
    )


def write_photos(session: Session, person_id: str, results: Sequence[PhotoResult]) -> None:
    """Store the results of photos; skip those removed meanwhile."""
    for result in results:
        session.execute(
            update(PersonPhoto)
            .where(PersonPhoto.photo_id == result.photo_id, PersonPhoto.person_id == person_id)
            .values(
                state=result.state,
                error_class=result.error_class,
                error=result.error,
                model_id=result.model_id,
                vec=result.vec,
                quality=result.quality,
                box=result.box,
            )
        )


def make_profile(session: Session, person_id: str) -> None:
    """Compute the person's profiles: from the good photos, weighted by quality; without any, from tracks in videos.

    A named person's profile uses confirmed tracks only: otherwise one wrong match would cause the next.
    """
    session.execute(delete(PersonProfile).where(PersonProfile.person_id == person_id))
    user_id, kind, gone = session.execute(
        select(
            Person.user_id, Person.kind, Person.deleted_at.is_not(None) | Person.merged_into.is_not(None)
        ).where(Person.person_id == person_id)
    ).one()
    if gone:
        # Their tracks are deleted in batches; the remaining ones must not form a profile.
        return
    believed = FaceTrack.person_id == person_id
    if kind == "named":
        believed &= FaceTrack.decided_by == "human"
    metrics: Mapping[int, str] = {
        row.model_id: row.metric or "cosine"
        for row in session.scalars(select(Model).where(Model.family == "face"))
    }
    photos = session.execute(
        select(PersonPhoto.model_id, PersonPhoto.vec, PersonPhoto.quality)
        .where(PersonPhoto.person_id == person_id, PersonPhoto.state == "good")
        .order_by(PersonPhoto.photo_id)
    ).all()
    for model_id, metric in metrics.items():
        own = [row for row in photos if row.model_id == model_id]
        tracks: list[Any] = []
        if own:
            weights = [1.0 if row.quality is None else max(row.quality, 1e-6) for row in own]
        else:
            tracks = list(
                session.execute(
                    select(FaceTrack.vec, FaceTrack.faces)
                    .where(believed, FaceTrack.model_id == model_id)
                    .order_by(FaceTrack.faces.desc(), FaceTrack.track_id)
                    .limit(_MAX_TRACKS)
                )
            )
            weights = [float(row.faces) for row in tracks]
        if not weights:
            continue
        middle = centroid(as_array([row.vec for row in own or tracks]), np.array(weights), metric)
        session.execute(
            insert(PersonProfile).values(
                person_id=person_id,
                model_id=model_id,
                user_id=user_id,
                vec=HalfVector(middle),
                photos=len(own),
                tracks=len(tracks),
            )
        )


def stuck_people(session: Session, limit: int = 100) -> list[str]:
    """People with an open run without queued or running jobs: the reconciler advances them."""
    live = (
        select(Job.job_id)
        .where(
            Job.subject_kind == "person",
            Job.subject_id == Person.person_id,
            Job.run == Person.run,
            Job.state.in_(("queued", "running")),
        )
        .exists()
    )
    return list(
        session.scalars(
            select(Person.person_id)
            .where(
                Person.ended_run < Person.run,
                Person.deleted_at.is_(None),
                Person.moving_event.is_(None),
                ~live,
            )
            # Random: people that can't be advanced must not block the others.
            .order_by(func.random())
            .limit(limit)
        )
    )


def progress(session: Session, person: Person) -> float:
    """Progress of the person's run, its erasure, or the move of its tracks, 0..1."""
    if person.deleted_at is not None or person.moving_event is not None:
        stage = graph.ERASE_PERSON if person.deleted_at is not None else graph.MOVE
        found = session.scalars(
            select(func.max(Job.progress)).where(
                Job.subject_kind == "person",
                Job.subject_id == person.person_id,
                Job.stage == stage.name,
                Job.part == 0,
                Job.state.in_(("queued", "running")),
            )
        ).one()
        return float(found or 0.0) if person.deleted_at is None or person.receipt is None else 1.0
    if person.ended_run >= person.run:
        return 1.0
    row = session.execute(
        select(func.count().label("parts"), func.sum(Job.progress).label("done")).where(
            Job.subject_kind == "person", Job.subject_id == person.person_id, Job.run == person.run
        )
    ).one()
    return float(row.done or 0.0) / row.parts if row.parts else 0.0
