"""Erasing a person: rows at once, objects and caches by a job, then a sweep that makes sure, and a receipt.

What stays is a tombstone: the id, so that it never comes back, and the receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from db import jobs
from db.ids import name_person
from db.jobs import NOW, Bell
from db.people import enrolment, registry
from db.people.events import record
from db.runs import Plan
from db.tables import (
    Face,
    FaceDecision,
    FaceTrack,
    Job,
    PeopleEvent,
    Person,
    PersonPhoto,
    PersonProfile,
    Scene,
    ScenePerson,
)

#: In the words of the receipt.
_TABLES: dict[str, type[PersonPhoto | PersonProfile | FaceTrack | ScenePerson | FaceDecision]] = {
    "photos": PersonPhoto,
    "profiles": PersonProfile,
    "face tracks": FaceTrack,
    "scenes": ScenePerson,
    "decisions": FaceDecision,
}


def begin(session: Session, person: Person, plan: Plan) -> list[Bell]:
    """Remove all rows of a person, whose row is locked, and of those merged into it; queue the job for the rest."""
    enrolment.stop(session, person)
    ids = [person.person_id, *registry.merged_into(session, person.person_id)]
    people = session.execute(select(Person.external_id, Person.name).where(Person.person_id.in_(ids))).all()
    names = [row.name for row in people]
    keys = list(session.scalars(select(PersonPhoto.storage_key).where(PersonPhoto.person_id.in_(ids))))
    videos, tracks = erase_tracks(session, ids)
    removed = {"face tracks": tracks}
    for what in ("photos", "profiles", "decisions"):
        table = _TABLES[what]
        done = session.execute(delete(table).where(table.person_id.in_(ids)))
        removed[what] = done.rowcount  # type: ignore[attr-defined]
    gone = session.execute(
        delete(PeopleEvent).where(
            PeopleEvent.user_id == person.user_id,
            or_(
                PeopleEvent.person_id.in_(ids),
                PeopleEvent.payload["into"].astext.in_(ids),
                PeopleEvent.payload["new"].astext.in_(ids),
            ),
        )
    )
    removed["events"] = gone.rowcount  # type: ignore[attr-defined]
    # Whose a face had been before it was said to be another's.
    were = PeopleEvent.payload["were"].astext
    session.execute(
        update(PeopleEvent)
        .where(PeopleEvent.user_id == person.user_id, or_(*(func.strpos(were, name) > 0 for name in ids)))
        .values(payload=PeopleEvent.payload.op("-")("were"))
    )
    session.execute(
        delete(Job).where(Job.subject_kind == "person", Job.subject_id.in_(ids), Job.lease_owner.is_(None))
    )
    session.execute(
        update(Person).where(Person.person_id.in_(ids)).values(name="", deleted_at=NOW, merged_into=None)
    )
    session.refresh(person)
    person.run += 1
    person.ended_run = person.run
    session.flush()
    record(session, person.user_id, "erase", person.person_id, {})
    job = enrolment.erasure_job(person, plan)
    job.payload = {
        "ids": ids,
        "external_ids": [row.external_id for row in people],
        "names": names,
        "keys": keys,
        "videos": videos,
        "removed": removed,
    }
    return jobs.insert(session, [job])


def erase_tracks(session: Session, ids: Sequence[str]) -> tuple[list[str], int]:
    """Remove the faces, vectors and tracks matched to these people; returns the videos concerned, and how many tracks.

    The sidecars of their scenes are written anew without them.
    """
    videos = sorted(
        session.scalars(select(FaceTrack.video_id).where(FaceTrack.person_id.in_(ids)).distinct()).all()
    )
    for video_id in videos:
        jobs.lock_video(session, video_id)
    tracks = session.execute(
        select(FaceTrack.track_id, FaceTrack.scene_id, FaceTrack.run, FaceTrack.track).where(
            FaceTrack.person_id.in_(ids)
        )
    ).all()
    places = [(row.scene_id, row.run, row.track) for row in tracks]
    session.execute(delete(Face).where(tuple_(Face.scene_id, Face.run, Face.track).in_(places)))
    session.execute(delete(FaceTrack).where(FaceTrack.track_id.in_([row.track_id for row in tracks])))
    scenes = {row.scene_id for row in tracks} | set(
        session.scalars(select(ScenePerson.scene_id).where(ScenePerson.person_id.in_(ids)))
    )
    session.execute(delete(ScenePerson).where(ScenePerson.person_id.in_(ids)))
    session.execute(update(Scene).where(Scene.live, Scene.scene_id.in_(scenes)).values(people_changed=True))
    return videos, len(tracks)


def is_waiting(session: Session, person_id: str, videos: Sequence[str], *, but: int) -> bool:
    """Whether somebody may still be at work with the person: its jobs, or those that write sidecars anew."""
    held = select(Job.job_id).where(
        Job.subject_kind == "person",
        Job.subject_id == person_id,
        Job.job_id != but,
        Job.lease_owner.is_not(None),
        Job.lease_until > NOW,
    )
    revising = select(Job.job_id).where(
        Job.video_id.in_(videos), Job.stage == "revise", Job.state.in_(("queued", "running"))
    )
    stale = select(Scene.scene_id).where(Scene.video_id.in_(videos), Scene.live, Scene.people_changed)
    return any(session.scalars(query.limit(1)).first() is not None for query in (held, revising, stale))


def kept_photos(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of some keys that are photos of somebody who stays: merges and their undoing move photos about."""
    return set(session.scalars(select(PersonPhoto.storage_key).where(PersonPhoto.storage_key.in_(keys))))


def current_sidecars(session: Session, keys: Sequence[str]) -> set[str]:
    """Those of some keys that callers are shown."""
    shown = session.scalars(select(Scene.sidecar_key).where(Scene.sidecar_key.in_(keys)))
    return {key for key in shown if key is not None}


def rows_left(session: Session, ids: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """What a sweep of every table about people finds of somebody erased, but the tombstone and the job at work."""
    left = {
        what: session.scalars(select(func.count()).select_from(table).where(table.person_id.in_(ids))).one()
        for what, table in _TABLES.items()
    }
    left["events"] = session.scalars(
        select(func.count())
        .select_from(PeopleEvent)
        .where(PeopleEvent.person_id.in_(ids), PeopleEvent.kind != "erase")
    ).one()
    left["names"] = session.scalars(
        select(func.count()).select_from(Person).where(Person.person_id.in_(ids), Person.name.in_(names))
    ).one()
    return left


def conclude(
    session: Session, person_id: str, job_id: int, ids: Sequence[str], receipt: dict[str, Any]
) -> None:
    """Write the receipt on the tombstones, and forget the name the job knew."""
    session.execute(
        delete(Job).where(Job.subject_kind == "person", Job.subject_id.in_(ids), Job.job_id != job_id)
    )
    session.execute(update(Person).where(Person.person_id == person_id).values(receipt=receipt))
    others = [name for name in ids if name != person_id]
    session.execute(
        update(Person)
        .where(Person.person_id.in_(others))
        .values(receipt={"erased_with": name_person(session, person_id)})
    )
    session.execute(update(Job).where(Job.job_id == job_id).values(payload={}))
