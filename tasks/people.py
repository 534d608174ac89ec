"""Requests about people: create, list, rename, delete, photos, enrolment, corrections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from db.engine import reading_as
from db.ledger import person_runs
from db.ledger.jobs import WakeUp
from db.people import acts, erasure, events, registry
from db.people.photos import note_upload_url, remove_late
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
    PhotoView,
    RenamePerson,
    SplitPerson,
    UndoEvent,
    parse,
)
from shared.errors import Conflict, InvalidRequest
from tasks.requests import PEOPLE_REQUEST, answer, change
from worker.app import app
from worker.runtime import get_runtime
from worker.wakeup import notify


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


@app.task(name=routing.PEOPLE_CREATE, **PEOPLE_REQUEST)
def create(**payload: Any) -> dict[str, Any]:
    """Create a person; repeating it with the same id or name changes nothing."""
    request = parse(CreatePerson, payload)
    _require_enrolment()
    return answer(change(lambda session: registry.create(session, request)))


@app.task(name=routing.PEOPLE_LIST, **PEOPLE_REQUEST)
def list_people(**payload: Any) -> dict[str, Any]:
    """Return a page of the user's people."""
    request = parse(ListPeople, payload)
    with reading_as(request.user_id) as session:
        return answer(registry.list_page(session, request))


@app.task(name=routing.PEOPLE_GET, **PEOPLE_REQUEST)
def get(**payload: Any) -> dict[str, Any]:
    """Return one person, also an erased one with its receipt."""
    request = parse(PersonRef, payload)
    with reading_as(request.user_id) as session:
        person = registry.get(session, request.person_id, request.user_id)
        return answer(registry.view(session, person))


def _act(work: Callable[[Session], tuple[Person, int | None, list[WakeUp]]]) -> dict[str, Any]:
    """Change people, notify the queues, return one of them."""

    def shown(session: Session) -> tuple[PersonView, list[WakeUp]]:
        person, event, wake_ups = work(session)
        session.flush()
        return registry.view(session, person, event_id=event), wake_ups

    result, wake_ups = change(shown)
    notify(wake_ups)
    return answer(result)


def _change(
    request: PersonRef, act: Callable[[Session, Person], tuple[int | None, list[WakeUp]]]
) -> dict[str, Any]:
    """Lock the caller's person, change it, notify the queues, return it."""

    def work(session: Session) -> tuple[Person, int | None, list[WakeUp]]:
        person = registry.lock(session, request.person_id, request.user_id)
        return (person, *act(session, person))

    return _act(work)


@app.task(name=routing.PEOPLE_RENAME, **PEOPLE_REQUEST)
def rename(**payload: Any) -> dict[str, Any]:
    """Rename a person; an unknown person becomes a named one."""
    request = parse(RenamePerson, payload)
    return _change(request, lambda session, person: (registry.rename(session, person, request.name), []))


@app.task(name=routing.PEOPLE_DELETE, **PEOPLE_REQUEST)
def delete(**payload: Any) -> dict[str, Any]:
    """Erase a person: hide it now; a job removes rows, photos, sidecars and cached answers, and writes a receipt (get)."""
    request = parse(PersonRef, payload)
    policy = get_runtime().policy

    def work(session: Session) -> tuple[PersonView, list[WakeUp]]:
        person = registry.lock(session, request.person_id, request.user_id, deleted_too=True)
        wake_ups = erasure.begin(session, person, policy) if person.deleted_at is None else []
        return registry.view(session, person), wake_ups

    shown, wake_ups = change(work)
    notify(wake_ups)
    return answer(shown)


@app.task(name=routing.PEOPLE_ADD_PHOTO, **PEOPLE_REQUEST)
def add_photo(**payload: Any) -> dict[str, Any]:
    """Reserve a photo upload. After the upload send tasks.people.enroll."""
    request = parse(AddPhoto, payload)
    _require_enrolment()
    runtime = get_runtime()

    def work(session: Session) -> PhotoView:
        person = registry.lock(session, request.person_id, request.user_id)
        photo = registry.add_photo(session, person, request.extension)
        url: str | None = None
        if runtime.settings.storage_backend != "local":
            # Before the commit: a request that ends with an error stores nothing.
            lasts_s = request.expires_s or runtime.settings.upload_link_s
            url = runtime.storage.presign_put("uploads", photo.storage_key, lasts_s)
            note_upload_url(session, person, lasts_s)
        return registry.photo_view(person, photo, url)

    return answer(change(work))


@app.task(name=routing.PEOPLE_PHOTOS, **PEOPLE_REQUEST)
def photos(**payload: Any) -> dict[str, Any]:
    """Return the photos of a person and their states."""
    request = parse(PersonRef, payload)
    with reading_as(request.user_id) as session:
        person = registry.get(session, request.person_id, request.user_id)
        found = tuple(registry.photo_view(person, photo) for photo in registry.photos_of(session, person))
        return answer(PhotoList(person_id=person.external_id, photos=found))


@app.task(name=routing.PEOPLE_REMOVE_PHOTO, **PEOPLE_REQUEST)
def remove_photo(**payload: Any) -> dict[str, Any]:
    """Remove a photo, compute the profile again, and match all videos again."""
    request = parse(PhotoRef, payload)
    runtime = get_runtime()
    keys: list[str] = []

    def act(session: Session, person: Person) -> tuple[int | None, list[WakeUp]]:
        keys[:] = [registry.remove_photo(session, person, request.photo_id)]
        wake_ups = person_runs.start(session, person, runtime.policy)
        # A URL may still be used to store it again.
        remove_late(session, person, runtime.policy, keys)
        return None, wake_ups

    shown = _change(request, act)
    for key in keys:
        runtime.storage.delete("uploads", key)
    return shown


@app.task(name=routing.PEOPLE_ENROLL, **PEOPLE_REQUEST)
def enroll(**payload: Any) -> dict[str, Any]:
    """Check the person's new photos, compute the profile, then match all of the user's videos."""
    request = parse(PersonRef, payload)
    _require_enrolment()
    runtime = get_runtime()
    spec = runtime.catalog.active(runtime.settings)["face"]

    def act(session: Session, person: Person) -> tuple[int | None, list[WakeUp]]:
        model = find_model(session, spec.name, spec.revision)
        if not registry.photos_of(session, person):
            raise InvalidRequest(f"{person.name!r} has no photos: send tasks.people.add_photo first")
        # A model without a row has made none of the vectors that are there.
        return None, person_runs.start(session, person, runtime.policy, model.model_id if model else -1)

    return _change(request, act)


@app.task(name=routing.PEOPLE_CANCEL, **PEOPLE_REQUEST)
def cancel(**payload: Any) -> dict[str, Any]:
    """Stop the enrolment of a person; results so far are kept, and enrolling again continues."""
    request = parse(PersonRef, payload)

    def act(session: Session, person: Person) -> tuple[int | None, list[WakeUp]]:
        person_runs.stop(session, person)
        return None, []

    return _change(request, act)


@app.task(name=routing.PEOPLE_FACES, **PEOPLE_REQUEST)
def faces(**payload: Any) -> dict[str, Any]:
    """Return a page of the tracks that show a person."""
    request = parse(ListFaces, payload)
    with reading_as(request.user_id) as session:
        return answer(registry.faces_page(session, request))


@app.task(name=routing.PEOPLE_EVENTS, **PEOPLE_REQUEST)
def list_events(**payload: Any) -> dict[str, Any]:
    """Return the changes of the user's people, newest first."""
    request = parse(ListEvents, payload)
    with reading_as(request.user_id) as session:
        return answer(events.page(session, request))


@app.task(name=routing.PEOPLE_JUDGE, **PEOPLE_REQUEST)
def judge(**payload: Any) -> dict[str, Any]:
    """Confirm or reject that faces are a person's; the decision is permanent, also in later runs."""
    request = parse(JudgeFaces, payload)
    rule = get_runtime().face_rule
    return _change(
        request,
        lambda session, person: (
            acts.judge(session, person, request.track_ids, rule, is_person=request.is_person),
            [],
        ),
    )


@app.task(name=routing.PEOPLE_MERGE, **PEOPLE_REQUEST)
def merge(**payload: Any) -> dict[str, Any]:
    """Merge two people and return the one that remains."""
    request = parse(MergePeople, payload)
    policy = get_runtime().policy

    def work(session: Session) -> tuple[Person, int, list[WakeUp]]:
        person, into = acts.lock_two(session, request.person_id, request.into, request.user_id)
        event, wake_ups = acts.merge(session, person, into, policy)
        return into, event, wake_ups

    return _act(work)


@app.task(name=routing.PEOPLE_SPLIT, **PEOPLE_REQUEST)
def split(**payload: Any) -> dict[str, Any]:
    """Move some faces of a person to a new person and return it."""
    request = parse(SplitPerson, payload)
    runtime = get_runtime()

    def work(session: Session) -> tuple[Person, int, list[WakeUp]]:
        person = registry.lock(session, request.person_id, request.user_id)
        return acts.split(session, person, request.track_ids, request.name, runtime.face_rule, runtime.policy)

    return _act(work)


@app.task(name=routing.PEOPLE_UNDO, **PEOPLE_REQUEST)
def undo(**payload: Any) -> dict[str, Any]:
    """Undo a change of people and return its person."""
    request = parse(UndoEvent, payload)
    runtime = get_runtime()
    return _act(
        lambda session: acts.undo(
            session, request.user_id, request.event_id, runtime.face_rule, runtime.policy
        )
    )
