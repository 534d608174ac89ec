"""People: who is known, their photos and faces, and the decisions about them."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request

from api import problems
from api.asking import Asking
from api.bodies import json_body
from api.limits import read_body
from api.parameters import (
    AfterId,
    AfterNumber,
    Ask,
    EventId,
    Limit1000,
    OnceOnly,
    PersonId,
    PhotoId,
    Who,
)
from api.problems import BadRequest, UnsupportedMedia
from shared import routing
from shared.contracts import (
    MAX_PICTURE_BYTES,
    AddPhoto,
    CreatePerson,
    EventList,
    FacePage,
    JudgeFaces,
    ListEvents,
    ListFaces,
    ListPeople,
    MergePeople,
    PeoplePage,
    PersonRef,
    PersonView,
    PhotoList,
    PhotoRef,
    PhotoView,
    RenamePerson,
    SplitPerson,
    UndoEvent,
)
from shared.errors import ScenefleetError
from shared.storage import Storage

router = APIRouter(prefix="/people", tags=["people"], responses=problems.responses())
FOUND = problems.responses(404)
CHANGED = problems.responses(404, 409)
WRITTEN = problems.responses(404, 409, 413, 415)

NewPerson = json_body(CreatePerson, "user_id", name="NewPerson")
Rename = json_body(RenamePerson, "user_id", "person_id", name="Rename")
Merge = json_body(MergePeople, "user_id", "person_id", name="Merge")
Split = json_body(SplitPerson, "user_id", "person_id", name="Split")
Judge = json_body(JudgeFaces, "user_id", "person_id", name="Judge")
PHOTO_TYPES = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}
_BINARY = {"schema": {"type": "string", "format": "binary", "maxLength": MAX_PICTURE_BYTES}}
PHOTO_BODY = {"requestBody": {"required": True, "content": dict.fromkeys(PHOTO_TYPES, _BINARY)}}


@router.get("")
async def list_people(
    who: Who,
    ask: Ask,
    kind: Literal["named", "unknown"] | None = None,
    after: Annotated[
        str | None, Query(max_length=200, description="The previous page's `next_after`")
    ] = None,
    limit: Limit1000 = 200,
) -> PeoplePage:
    """Return a page of the people, by name."""
    kwargs = {"user_id": who.user_id, "kind": kind, "after": after, "limit": limit}
    return await ask.ask(routing.PEOPLE_LIST, ListPeople, kwargs, PeoplePage)


@router.post("", status_code=201, responses=WRITTEN, openapi_extra=NewPerson.extra)
async def create_person(
    who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(NewPerson.read)]
) -> PersonView:
    """Create a person, or return the one of this name or id; `accepted` says which."""
    return await ask.ask(routing.PEOPLE_CREATE, CreatePerson, {**body, "user_id": who.user_id}, PersonView)


# Before the routes of one person, whose id could be "events".
@router.get("/events")
async def list_people_events(
    who: Who, ask: Ask, before: AfterNumber = None, limit: Limit1000 = 100
) -> EventList:
    """Return the changes of the people, newest first."""
    kwargs = {"user_id": who.user_id, "before": before, "limit": limit}
    return await ask.ask(routing.PEOPLE_EVENTS, ListEvents, kwargs, EventList)


@router.post("/events/{event_id}/undo", responses=CHANGED)
async def undo_event(event_id: EventId, who: Who, ask: Ask) -> PersonView:
    """Undo a change."""
    kwargs = {"user_id": who.user_id, "event_id": event_id}
    return await ask.ask(routing.PEOPLE_UNDO, UndoEvent, kwargs, PersonView)


@router.get("/{person_id}", responses=FOUND)
async def get_person(person_id: PersonId, who: Who, ask: Ask) -> PersonView:
    """Return a person; also an erased one, with the receipt."""
    return await ask.ask(routing.PEOPLE_GET, PersonRef, _person(who.user_id, person_id), PersonView)


@router.patch("/{person_id}", responses=WRITTEN, openapi_extra=Rename.extra)
async def rename_person(
    person_id: PersonId, who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(Rename.read)]
) -> PersonView:
    """Rename a person; an unknown person becomes a named one."""
    kwargs = {**body, **_person(who.user_id, person_id)}
    return await ask.ask(routing.PEOPLE_RENAME, RenamePerson, kwargs, PersonView)


@router.delete("/{person_id}", status_code=202, responses=CHANGED)
async def delete_person(person_id: PersonId, who: Who, ask: Ask) -> PersonView:
    """Erase a person; the person's `receipt` later says what was removed."""
    return await ask.ask(routing.PEOPLE_DELETE, PersonRef, _person(who.user_id, person_id), PersonView)


@router.post("/{person_id}/enroll", status_code=202, responses=CHANGED)
async def enroll_person(person_id: PersonId, who: Who, ask: Ask) -> PersonView:
    """Check the new photos, then look for the person in all videos."""
    return await ask.ask(routing.PEOPLE_ENROLL, PersonRef, _person(who.user_id, person_id), PersonView)


@router.post("/{person_id}/cancel", status_code=202, responses=CHANGED)
async def cancel_enrolment(person_id: PersonId, who: Who, ask: Ask) -> PersonView:
    """Stop looking for a person; what was found stays."""
    return await ask.ask(routing.PEOPLE_CANCEL, PersonRef, _person(who.user_id, person_id), PersonView)


@router.post("/{person_id}/merge", responses=WRITTEN, openapi_extra=Merge.extra)
async def merge_people(
    person_id: PersonId, who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(Merge.read)]
) -> PersonView:
    """Merge a person into another and return the one that remains."""
    kwargs = {**body, **_person(who.user_id, person_id)}
    return await ask.ask(routing.PEOPLE_MERGE, MergePeople, kwargs, PersonView)


@router.post("/{person_id}/split", status_code=201, responses=WRITTEN, openapi_extra=Split.extra)
async def split_person(
    person_id: PersonId, who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(Split.read)]
) -> PersonView:
    """Move some faces of a person to a new person and return it."""
    kwargs = {**body, **_person(who.user_id, person_id)}
    return await ask.ask(routing.PEOPLE_SPLIT, SplitPerson, kwargs, PersonView)


@router.post("/{person_id}/judge", responses=WRITTEN, openapi_extra=Judge.extra)
async def judge_faces(
    person_id: PersonId, who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(Judge.read)]
) -> PersonView:
    """Confirm or reject that faces are this person's; matching never overrides it."""
    kwargs = {**body, **_person(who.user_id, person_id)}
    return await ask.ask(routing.PEOPLE_JUDGE, JudgeFaces, kwargs, PersonView)


@router.get("/{person_id}/faces", responses=FOUND)
async def list_faces(
    person_id: PersonId, who: Who, ask: Ask, after: AfterId = None, limit: Limit1000 = 200
) -> FacePage:
    """Return a page of the tracks that show a person."""
    kwargs = {**_person(who.user_id, person_id), "after": after, "limit": limit}
    return await ask.ask(routing.PEOPLE_FACES, ListFaces, kwargs, FacePage)


@router.get("/{person_id}/photos", responses=FOUND)
async def list_photos(person_id: PersonId, who: Who, ask: Ask) -> PhotoList:
    """Return the photos of a person, and what is wrong with them."""
    return await ask.ask(routing.PEOPLE_PHOTOS, PersonRef, _person(who.user_id, person_id), PhotoList)


@router.post("/{person_id}/photos", status_code=201, responses=WRITTEN, openapi_extra=PHOTO_BODY)
async def add_photo(person_id: PersonId, request: Request, who: Who, ask: Ask, once: OnceOnly) -> PhotoView:
    """Add a photo and look for the person in all videos; `GET` the photos to see whether it is good."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in PHOTO_TYPES:
        raise UnsupportedMedia(f"the photo's content type is {kind!r}: send {', '.join(PHOTO_TYPES)}")
    data = await read_body(request, MAX_PICTURE_BYTES)
    if not data:
        raise BadRequest("the body is empty: send the photo's bytes")
    storage: Storage = request.app.state.storage
    person = _person(who.user_id, person_id)
    digest = hashlib.sha256(data).hexdigest()
    return await once.run(digest, PhotoView, lambda: _add_photo(ask, storage, person, kind, data))


async def _add_photo(
    ask: Asking, storage: Storage, person: dict[str, str], kind: str, data: bytes
) -> PhotoView:
    kwargs = {**person, "extension": PHOTO_TYPES[kind]}
    photo = await ask.ask(routing.PEOPLE_ADD_PHOTO, AddPhoto, kwargs, PhotoView)
    try:
        await anyio.to_thread.run_sync(lambda: storage.put_bytes("uploads", photo.storage_key, data, kind))
    except ScenefleetError:
        # Nothing waits for a photo that did not come.
        named = {**person, "photo_id": photo.photo_id}
        await ask.ask(routing.PEOPLE_REMOVE_PHOTO, PhotoRef, named, PersonView)
        raise
    await ask.ask(routing.PEOPLE_ENROLL, PersonRef, person, PersonView)
    return photo.model_copy(update={"state": "pending", "upload_url": None})


@router.delete("/{person_id}/photos/{photo_id}", responses=CHANGED)
async def remove_photo(person_id: PersonId, photo_id: PhotoId, who: Who, ask: Ask) -> PersonView:
    """Remove a photo and look for the person again by the others."""
    kwargs = {**_person(who.user_id, person_id), "photo_id": photo_id}
    return await ask.ask(routing.PEOPLE_REMOVE_PHOTO, PhotoRef, kwargs, PersonView)


def _person(user_id: str, person_id: str) -> dict[str, str]:
    return {"user_id": user_id, "person_id": person_id}
