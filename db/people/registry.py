"""Create, find, list, rename people, and their photos. Functions for requests take the external id."""

from __future__ import annotations

import time
from collections.abc import Collection
from uuid import UUID, uuid4

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.faces.tracks import mark_scenes_of
from db.ids import name_person, person_key
from db.ledger.person_runs import progress
from db.people.events import record
from db.tables import FaceTrack, Person, PersonPhoto, PersonProfile, Scene, ScenePerson, Video
from shared.contracts import (
    CreatePerson,
    FacePage,
    FaceView,
    ListFaces,
    ListPeople,
    PeoplePage,
    PersonView,
    PhotoView,
)
from shared.errors import Conflict, LimitExceeded, NotFound
from shared.storage import photo_key

#: A dozen photos suffice; each costs a run of the model.
MAX_PHOTOS = 100


def _no_person(person_id: str) -> NotFound:
    return NotFound(f"no person {person_id!r}: check the id, or send tasks.people.create first")


def lock(session: Session, person_id: str, user_id: str, *, deleted_too: bool = False) -> Person:
    """The user's person, locked.

    Raises:
        NotFound: no such person of this user (or it is another user's).
    """
    person = _lock(session, person_id, user_id)
    if person is None or (person.deleted_at is not None and not deleted_too):
        raise _no_person(person_id)
    if person.merged_into is not None:
        into = name_person(session, person.merged_into)
        raise NotFound(f"person {person_id!r} was merged into {into!r}: use that id, or undo the merge")
    return person


def _lock(session: Session, external_id: str, user_id: str) -> Person | None:
    """As ``db.ledger.subjects.lock_person``, by the user's own id."""
    mine = (Person.user_id == user_id) & (Person.external_id == external_id)
    locked = select(Person).where(mine).with_for_update(key_share=True)
    return session.scalars(locked, execution_options={"populate_existing": True}).one_or_none()


def get(session: Session, person_id: str, user_id: str) -> Person:
    """The user's person, unlocked, also an erased one, for its receipt.

    Raises:
        NotFound: no such person of this user.
    """
    mine = (Person.user_id == user_id) & (Person.external_id == person_id)
    person = session.scalars(select(Person).where(mine)).one_or_none()
    if person is None:
        raise _no_person(person_id)
    return person


def merged_into(session: Session, person_id: str) -> list[str]:
    """All people merged into this person, directly or indirectly."""
    found: list[str] = []
    level = [person_id]
    while level:
        level = list(session.scalars(select(Person.person_id).where(Person.merged_into.in_(level))))
        found += level
    return found


def create(session: Session, request: CreatePerson) -> PersonView:
    """Create the person, or return the existing one of this id or, without an id, of this name.

    Raises:
        Conflict: the user has erased or merged a person of this id, or it has another name, or the name is taken.
    """
    if request.person_id is None:
        same = _named(session, request.user_id, request.name)
        if same is not None:
            return view(session, same, accepted=False)
    external_id = request.person_id or str(uuid4())
    key = external_id if request.person_id is None else person_key(request.user_id, external_id)
    made = session.scalars(
        insert(Person)
        .values(person_id=key, user_id=request.user_id, external_id=external_id, name=request.name)
        .on_conflict_do_nothing()
        .returning(Person.person_id)
    ).one_or_none()
    person = _lock(session, external_id, request.user_id)
    if person is None:
        raise _taken(request.name)
    if person.deleted_at is not None or person.merged_into is not None:
        raise Conflict(f"person {external_id} was erased or merged: choose another id")
    if person.name != request.name:
        raise Conflict(f"person {external_id} already is {person.name!r}: rename it, or choose another id")
    accepted = made is not None
    event = record(session, request.user_id, "create", person.person_id, {}) if accepted else None
    return view(session, person, accepted=accepted, event_id=event)


def _taken(name: str) -> Conflict:
    return Conflict(f"a person {name!r} exists already: choose another name, or merge the two")


def _named(session: Session, user_id: str, name: str) -> Person | None:
    return session.scalars(
        select(Person).where(
            Person.user_id == user_id,
            func.lower(Person.name) == func.lower(name),
            Person.deleted_at.is_(None),
            Person.merged_into.is_(None),
        )
    ).one_or_none()


def require_free(session: Session, user_id: str, name: str, *, but: str | None = None) -> None:
    """Make sure that no person of the user, ``but`` left out, has the name.

    Raises:
        Conflict: one has.
    """
    other = _named(session, user_id, name)
    if other is not None and other.person_id != but:
        raise _taken(name)


def set_name(session: Session, person: Person, name: str, kind: str) -> None:
    """Rename the person.

    Raises:
        Conflict: another person has the name.
    """
    require_free(session, person.user_id, name, but=person.person_id)
    person.name, person.kind = name, kind
    session.flush()
    mark_scenes_of(session, person.person_id)


def rename(session: Session, person: Person, name: str) -> int:
    """As ``set_name``; an unknown person becomes a named one. Returns the event's id."""
    before = {"name": person.name, "kind": person.kind}
    set_name(session, person, name, "named")
    return record(session, person.user_id, "rename", person.person_id, {"before": before, "after": name})


def list_page(session: Session, request: ListPeople) -> PeoplePage:
    """A page of the user's people, by name; unknown ones without scenes are left out."""
    query = select(Person).where(
        Person.user_id == request.user_id, Person.deleted_at.is_(None), Person.merged_into.is_(None)
    )
    if request.kind is not None:
        query = query.where(Person.kind == request.kind)
    if request.after is not None:
        query = query.where(func.lower(Person.name) > request.after.lower())
    seen = select(FaceTrack.track_id).where(FaceTrack.person_id == Person.person_id).exists()
    query = query.where((Person.kind == "named") | seen)
    found = session.scalars(query.order_by(func.lower(Person.name)).limit(request.limit + 1)).all()
    people = tuple(view(session, person) for person in found[: request.limit])
    return PeoplePage(people=people, next_after=people[-1].name if len(found) > request.limit else None)


def view(
    session: Session, person: Person, *, accepted: bool = True, event_id: int | None = None
) -> PersonView:
    """A person as callers see it."""
    # Rows of an erased person that a job has still to delete are not shown.
    there = person.deleted_at is None
    photos = session.execute(
        select(func.count(), func.count().filter(PersonPhoto.state == "good")).where(
            PersonPhoto.person_id == person.person_id
        )
    ).one()
    seen = session.execute(
        select(func.count(), func.count(Scene.video_id.distinct()))
        .select_from(ScenePerson)
        .join(Scene, Scene.scene_id == ScenePerson.scene_id)
        .where(ScenePerson.person_id == person.person_id, ScenePerson.user_id == person.user_id, Scene.live)
    ).one()
    known = session.scalars(
        select(PersonProfile.model_id).where(PersonProfile.person_id == person.person_id).limit(1)
    ).first()
    if person.deleted_at is not None:
        done = person.receipt is not None and person.receipt.get("state") != "incomplete"
        state = "erased" if done else "erasing"
    elif person.ended_run < person.run or person.moving_event is not None:
        state = "working"
    else:
        state = "empty" if known is None else "ready"
    return PersonView(
        person_id=person.external_id,
        user_id=person.user_id,
        name=person.name,
        kind=person.kind,  # type: ignore[arg-type]
        state=state,  # type: ignore[arg-type]
        progress=progress(session, person),
        photos=photos[0] if there else 0,
        good_photos=photos[1] if there else 0,
        scenes=seen[0] if there else 0,
        videos=seen[1] if there else 0,
        created_at=person.created_at,
        receipt=person.receipt,
        event_id=event_id,
        accepted=accepted,
    )


def add_photo(session: Session, person: Person, extension: str) -> PersonPhoto:
    """Reserve a photo upload for the person, whose row is locked.

    Raises:
        LimitExceeded: the person has ``MAX_PHOTOS``.
    """
    keys = select(PersonPhoto.storage_key).where(PersonPhoto.person_id == person.person_id)
    taken = set(session.scalars(keys))
    if len(taken) >= MAX_PHOTOS:
        raise LimitExceeded(f"{person.name!r} has {len(taken)} photos, the maximum: remove some")
    stamp = time.time_ns() // 1000
    while any(key.rpartition(".")[0].endswith(f"photo_{stamp}") for key in taken):
        stamp += 1
    photo = PersonPhoto(
        photo_id=uuid4(),
        person_id=person.person_id,
        user_id=person.user_id,
        storage_key=photo_key(person.user_id, person.external_id, stamp, extension),
        state="waiting",
    )
    session.add(photo)
    session.flush()
    return photo


def photos_of(session: Session, person: Person) -> list[PersonPhoto]:
    """The person's photos, the oldest first; none of an erased person."""
    if person.deleted_at is not None:
        return []
    theirs = (PersonPhoto.person_id == person.person_id) & (PersonPhoto.user_id == person.user_id)
    photos = select(PersonPhoto).where(theirs).order_by(PersonPhoto.created_at, PersonPhoto.photo_id)
    return list(session.scalars(photos))


def remove_photo(session: Session, person: Person, photo_id: str) -> str:
    """Delete a photo and its vector; returns its storage key.

    Raises:
        NotFound: the person has no such photo.
    """
    for photo in photos_of(session, person):
        if str(photo.photo_id) == photo_id:
            session.delete(photo)
            session.flush()
            return photo.storage_key
    raise NotFound(f"{person.name!r} has no photo {photo_id!r}: see tasks.people.photos")


def photo_view(person: Person, photo: PersonPhoto, upload_url: str | None = None) -> PhotoView:
    return PhotoView(
        photo_id=str(photo.photo_id),
        person_id=person.external_id,
        storage_key=photo.storage_key,
        state=photo.state,
        error_class=photo.error_class,
        error=photo.error,
        box=None if photo.box is None else tuple(photo.box),
        quality=photo.quality,
        upload_url=upload_url,
    )


def faces_page(session: Session, request: ListFaces) -> FacePage:
    """A page of a person's tracks in published scenes, by track id.

    Raises:
        NotFound: no such person of this user.
    """
    person = get(session, request.person_id, request.user_id)
    if person.deleted_at is not None:
        return FacePage(person_id=request.person_id, faces=(), next_after=None)
    query = (
        select(FaceTrack, Video.external_id, Scene.idx, Scene.keyframes)
        .join(Scene, Scene.scene_id == FaceTrack.scene_id)
        .join(Video, Video.video_id == FaceTrack.video_id)
        .where(
            FaceTrack.user_id == request.user_id,
            FaceTrack.person_id == person.person_id,
            Scene.user_id == request.user_id,
            Scene.live,
            Scene.face_run == FaceTrack.run,
        )
    )
    if request.after is not None:
        query = query.where(FaceTrack.track_id > as_uuid(request.after))
    rows = session.execute(query.order_by(FaceTrack.track_id).limit(request.limit + 1)).all()
    faces = tuple(_face_view(*row) for row in rows[: request.limit])
    next_after = faces[-1].track_id if len(rows) > request.limit else None
    return FacePage(person_id=request.person_id, faces=faces, next_after=next_after)


def _face_view(
    track: FaceTrack, video_id: str, idx: int, keyframes: Collection[dict[str, object]]
) -> FaceView:
    keys = {frame["ordinal"]: str(frame["key"]) for frame in keyframes}
    return FaceView(
        track_id=str(track.track_id),
        video_id=video_id,
        scene_id=str(track.scene_id),
        idx=idx,
        ts_s=track.ts_s,
        keyframe_key=keys.get(track.ordinal, ""),
        box=tuple(track.box),
        faces=track.faces,
        similarity=track.similarity,
        decided_by=track.decided_by,  # type: ignore[arg-type]
    )


def as_uuid(text: str) -> UUID:
    """Parse an id of the fleet.

    Raises:
        NotFound: it is not a UUID.
    """
    try:
        return UUID(text)
    except ValueError:
        raise NotFound(f"there is no {text!r}: check the id") from None
