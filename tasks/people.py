"""Requests about people: create, list, rename, delete, photos, enrolment, corrections."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from db.ledger import person_runs
from db.ledger.jobs import WakeUp
from db.people import acts, erasure, events, registry
from db.people.photos import note_upload_url, remove_late
from db.precedence import admit
from db.tables import Person
from db.vectors import find_model
from shared import graph, routing
from shared.contracts import (
    AddPhoto,
    CreatePerson,
    JudgeFaces,
    ListEvents,
    ListFaces,
    ListPeople,
    MergePeople,
    PersonRef,
    PersonView,
    PhotoList,
    PhotoRef,
    RenamePerson,
    SplitPerson,
    UndoEvent,
)
from shared.errors import Conflict, InvalidRequest
from tasks.requests import (
    Answer,
    Changed,
    PeopleRequest,
    arrival,
    change_task,
    commit,
    read_task,
    request_task,
)
from worker.runtime import get_runtime

list_people = read_task(routing.PEOPLE_LIST, ListPeople, base=PeopleRequest)(registry.list_page)
faces = read_task(routing.PEOPLE_FACES, ListFaces, base=PeopleRequest)(registry.faces_page)
list_events = read_task(routing.PEOPLE_EVENTS, ListEvents, base=PeopleRequest)(events.page)


def _require_enrolment() -> None:
    """Refuse requests that need the face model or a feature that is off.

    Raises:
        Conflict: says which.
    """
    runtime = get_runtime()
    if not runtime.settings.feature_face_enrollment:
        raise Conflict("people can't be enrolled: FEATURE_FACE_ENROLLMENT is off; those that are there stay")
    reason = runtime.policy.skips.get(graph.FACE.name)
    if reason is not None:
        raise Conflict(f"people can't be enrolled: {reason}")


def _lock(session: Session, request: PersonRef, *, deleted_too: bool = False) -> Person:
    person = registry.lock(session, request.person_id, request.user_id, deleted_too=deleted_too)
    _admit(session, person)
    return person


def _admit(session: Session, *people: Person) -> None:
    """Raises:
    Conflict: a request about one of these people that was sent later has been done.
    """
    for person in people:
        admit(session, person, arrival(), f"person {person.external_id}")


def _view(
    session: Session, person: Person, event_id: int | None = None, wake_ups: Sequence[WakeUp] = ()
) -> Changed:
    session.flush()
    return registry.view(session, person, event_id=event_id), list(wake_ups)


@change_task(routing.PEOPLE_CREATE, CreatePerson, base=PeopleRequest)
def create(session: Session, request: CreatePerson) -> Changed:
    """Create a person; repeating it with the same id or name changes nothing."""
    _require_enrolment()
    return registry.create(session, request), []


@read_task(routing.PEOPLE_GET, PersonRef, base=PeopleRequest)
def get(session: Session, request: PersonRef) -> PersonView:
    """Return one person, also an erased one with its receipt."""
    return registry.view(session, registry.get(session, request.person_id, request.user_id))


@change_task(routing.PEOPLE_RENAME, RenamePerson, base=PeopleRequest)
def rename(session: Session, request: RenamePerson) -> Changed:
    """Rename a person; an unknown person becomes a named one."""
    person = _lock(session, request)
    return _view(session, person, registry.rename(session, person, request.name))


@change_task(routing.PEOPLE_DELETE, PersonRef, base=PeopleRequest)
def delete(session: Session, request: PersonRef) -> Changed:
    """Erase a person: hide it now; a job removes rows, photos, sidecars and cached answers, and writes a receipt (get)."""
    person = _lock(session, request, deleted_too=True)
    wake_ups = erasure.begin(session, person, get_runtime().policy) if person.deleted_at is None else []
    return registry.view(session, person), wake_ups


@change_task(routing.PEOPLE_ADD_PHOTO, AddPhoto, base=PeopleRequest)
def add_photo(session: Session, request: AddPhoto) -> Changed:
    """Reserve a photo upload. After the upload send tasks.people.enroll."""
    _require_enrolment()
    runtime = get_runtime()
    # Undoes nothing: the order of photos does not matter.
    person = registry.lock(session, request.person_id, request.user_id)
    photo = registry.add_photo(session, person, request.extension)
    url: str | None = None
    if runtime.settings.storage_backend != "local":
        # Before the commit: a request that ends with an error stores nothing.
        lasts_s = request.expires_s or runtime.settings.upload_link_s
        url = runtime.storage.presign_put("uploads", photo.storage_key, lasts_s)
        note_upload_url(session, person, lasts_s)
    return registry.photo_view(person, photo, url), []


@read_task(routing.PEOPLE_PHOTOS, PersonRef, base=PeopleRequest)
def photos(session: Session, request: PersonRef) -> PhotoList:
    """Return the photos of a person and their states."""
    person = registry.get(session, request.person_id, request.user_id)
    found = tuple(registry.photo_view(person, photo) for photo in registry.photos_of(session, person))
    return PhotoList(person_id=person.external_id, photos=found)


@request_task(routing.PEOPLE_REMOVE_PHOTO, PhotoRef, base=PeopleRequest)
def remove_photo(request: PhotoRef) -> Answer:
    """Remove a photo, compute the profile again, and match all videos again."""
    runtime = get_runtime()
    keys: list[str] = []

    def work(session: Session) -> Changed:
        person = _lock(session, request)
        keys[:] = [registry.remove_photo(session, person, request.photo_id)]
        wake_ups = person_runs.start(session, person, runtime.policy)
        # A URL may still be used to store it again.
        remove_late(session, person, runtime.policy, keys)
        return _view(session, person, wake_ups=wake_ups)

    shown = commit(work, request)
    for key in keys:
        runtime.storage.delete("uploads", key)
    return shown


@change_task(routing.PEOPLE_ENROLL, PersonRef, base=PeopleRequest)
def enroll(session: Session, request: PersonRef) -> Changed:
    """Check the person's new photos, compute the profile, then match all of the user's videos."""
    _require_enrolment()
    runtime = get_runtime()
    spec = runtime.catalog.active(runtime.settings)["face"]
    person = _lock(session, request)
    model = find_model(session, spec.name, spec.revision)
    if not registry.photos_of(session, person):
        raise InvalidRequest(f"{person.name!r} has no photos: send tasks.people.add_photo first")
    # A model without a row has made none of the vectors that are there.
    model_id = model.model_id if model else -1
    return _view(session, person, wake_ups=person_runs.start(session, person, runtime.policy, model_id))


@change_task(routing.PEOPLE_CANCEL, PersonRef, base=PeopleRequest)
def cancel(session: Session, request: PersonRef) -> Changed:
    """Stop the enrolment of a person; results so far are kept, and enrolling again continues."""
    person = _lock(session, request)
    person_runs.stop(session, person)
    return _view(session, person)


@change_task(routing.PEOPLE_JUDGE, JudgeFaces, base=PeopleRequest)
def judge(session: Session, request: JudgeFaces) -> Changed:
    """Confirm or reject that faces are a person's; the decision is permanent, also in later runs."""
    person, rule = _lock(session, request), get_runtime().face_rule
    event = acts.judge(session, person, request.track_ids, rule, is_person=request.is_person)
    return _view(session, person, event)


@change_task(routing.PEOPLE_MERGE, MergePeople, base=PeopleRequest)
def merge(session: Session, request: MergePeople) -> Changed:
    """Merge two people and return the one that remains."""
    person, into = acts.lock_two(session, request.person_id, request.into, request.user_id)
    _admit(session, person, into)
    return _view(session, into, *acts.merge(session, person, into, get_runtime().policy))


@change_task(routing.PEOPLE_SPLIT, SplitPerson, base=PeopleRequest)
def split(session: Session, request: SplitPerson) -> Changed:
    """Move some faces of a person to a new person and return it."""
    person, runtime = _lock(session, request), get_runtime()
    return _view(
        session,
        *acts.split(session, person, request.track_ids, request.name, runtime.face_rule, runtime.policy),
    )


@change_task(routing.PEOPLE_UNDO, UndoEvent, base=PeopleRequest)
def undo(session: Session, request: UndoEvent) -> Changed:
    """Undo a change of people and return its person."""
    runtime = get_runtime()
    return _view(
        session,
        *acts.undo(session, request.user_id, request.event_id, runtime.face_rule, runtime.policy),
    )
