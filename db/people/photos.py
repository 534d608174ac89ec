"""Photos of a person: which wait for the model, what it found, and URLs by which they may still be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds, seconds_from_now
from db.ledger import jobs, person_runs
from db.ledger.jobs import WakeUp
from db.ledger.policy import RunPolicy
from db.tables import Person, PersonPhoto
from shared import graph

#: An upload that began just before its URL ended may take so long, seconds.
UPLOAD_GRACE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class PhotoResult:
    """What the model found in one photo, or why it is of no use."""

    state: str
    error_class: str | None = None
    error: str | None = None
    model_id: int | None = None
    vec: Any = None
    quality: float | None = None
    box: list[float] | None = None


def remove_late(session: Session, person: Person, policy: RunPolicy, keys: Sequence[str]) -> list[WakeUp]:
    """Queue the removal of photos' objects for when no URL is left by which they could be stored again."""
    ends = func.greatest(func.coalesce(person.uploads_until, NOW), NOW)
    job = jobs.make_job(
        person,
        graph.LATE_PHOTOS,
        policy,
        priority=person_runs.PRIORITY,
        payload={"keys": list(keys)},
        not_before=ends + seconds(UPLOAD_GRACE_S),
    )
    return jobs.insert(session, [job])


def note_upload_url(session: Session, person: Person, lasts_s: float) -> None:
    """Remember that for so long a photo of the person, whose row is locked, may be stored by a URL."""
    person.uploads_until = func.greatest(func.coalesce(Person.uploads_until, NOW), seconds_from_now(lasts_s))
    session.flush()


def photos_to_look_at(
    session: Session, person_id: str, user_id: str, ids: Sequence[str]
) -> list[PersonPhoto]:
    """The photos of a part that still wait for it."""
    wanted = (PersonPhoto.state == "pending") & PersonPhoto.photo_id.in_([UUID(photo) for photo in ids])
    theirs = (PersonPhoto.person_id == person_id) & (PersonPhoto.user_id == user_id)
    photos = select(PersonPhoto).where(theirs, wanted).order_by(PersonPhoto.created_at, PersonPhoto.photo_id)
    return list(session.scalars(photos))


def write_photos(session: Session, person_id: str, results: Mapping[UUID, PhotoResult]) -> None:
    """Store what became of some photos; one that was removed meanwhile is left alone."""
    for photo_id, result in results.items():
        session.execute(
            update(PersonPhoto)
            .where(PersonPhoto.photo_id == photo_id, PersonPhoto.person_id == person_id)
            .values(**vars(result))
        )
