"""Requests about people, and the answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from .base import MAX_NAME_CHARS, Box, Contract, Id, Part, PersonName, Text


class CreatePerson(Contract):
    """Create a person to be found in the user's videos. Sending it again with the same id or name changes nothing."""

    user_id: Id
    name: PersonName
    #: None: the fleet makes one.
    person_id: Id | None = None


class PersonRef(Contract):
    """Names a person of a user."""

    user_id: Id
    person_id: Id


class RenamePerson(PersonRef):
    """Give a person another name; an unknown one becomes a named one."""

    name: PersonName


class ListPeople(Contract):
    """The user's people, by name, from ``after`` (exclusive) on."""

    user_id: Id
    kind: Literal["named", "unknown"] | None = None
    after: Text | None = Field(None, max_length=MAX_NAME_CHARS)
    limit: int = Field(200, ge=1, le=1000)


class AddPhoto(PersonRef):
    """Reserve a photo upload: the answer has the key to store it under, and the URL to PUT it to if there is one."""

    extension: Literal["jpg", "jpeg", "png", "webp"] = "jpg"
    #: Of the URL, seconds; None: ``UPLOAD_LINK_S``.
    expires_s: int | None = Field(None, ge=1, le=604_800)


class PhotoRef(PersonRef):
    photo_id: Id


class ListFaces(PersonRef):
    """Where a person is seen, track by track, from ``after`` (a track's id, exclusive) on."""

    after: Id | None = None
    limit: int = Field(200, ge=1, le=1000)


class JudgeFaces(PersonRef):
    """Confirm or reject tracks of a person. The decision holds in later runs, too."""

    track_ids: tuple[Id, ...] = Field(min_length=1, max_length=64)
    is_person: bool


class MergePeople(PersonRef):
    """Merge a person into another one, who gets all its photos and tracks."""

    into: Id


class SplitPerson(PersonRef):
    """Split some tracks of a person off as another person."""

    track_ids: tuple[Id, ...] = Field(min_length=1, max_length=64)
    #: None: the next free "unknown N".
    name: PersonName | None = None


class UndoEvent(Contract):
    user_id: Id
    event_id: int = Field(ge=1, le=2**63 - 1)


class ListEvents(Contract):
    """The events of the user's people, newest first, before ``before`` (exclusive)."""

    user_id: Id
    before: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class PhotoView(Contract):
    photo_id: str
    person_id: str
    storage_key: str
    #: waiting (for its upload), pending, good, refused (for what it shows), failed (the fleet's fault)
    state: str
    error_class: str | None
    error: str | None
    #: x, y, width, height of the face in the photo's pixels.
    box: Box | None
    quality: float | None
    #: Where to PUT it; None where storage has no URLs, and for a photo that is there.
    upload_url: str | None = None


class PersonView(Contract):
    person_id: str
    user_id: str
    name: str
    kind: Literal["named", "unknown"]
    #: empty (no good photo), working (photos or videos are processed), ready, erasing, erased
    state: Literal["empty", "working", "ready", "erasing", "erased"]
    #: 0..1, of the work that goes on.
    progress: float
    photos: int
    good_photos: int
    scenes: int
    videos: int
    created_at: datetime
    #: After an erasure: what was removed and what a sweep found afterwards.
    receipt: dict[str, Any] | None = None
    #: Of a change: the event that undoes it.
    event_id: int | None = None
    #: Of a creation: False when the person had been there before.
    accepted: bool = True


class PeoplePage(Contract):
    people: tuple[PersonView, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: str | None


class PhotoList(Contract):
    person_id: str
    photos: tuple[PhotoView, ...]


class FaceView(Part):
    """One face through one scene."""

    track_id: str
    video_id: str
    scene_id: str
    #: The scene's number in its video.
    idx: int
    #: Of its best keyframe, seconds from the video's start.
    ts_s: float
    keyframe_key: str
    box: Box
    faces: int
    similarity: float | None
    decided_by: Literal["machine", "human"] | None


class FacePage(Contract):
    person_id: str
    faces: tuple[FaceView, ...]
    next_after: str | None


class EventView(Part):
    event_id: int
    #: create, rename, confirm (these faces are the person's), reject (they are not), merge, split, undo, erase
    kind: str
    person_id: str | None
    #: Of the person, as it is now; None once erased.
    name: str | None
    #: Into whom the person was merged, or who was split off, and what that one is called now.
    other_id: str | None
    other: str | None
    #: Of a renaming: the name before, and the one given.
    old_name: str | None
    new_name: str | None
    #: How many faces it was about, where it was about faces, and in which videos when a human picked them.
    faces: int | None
    video_ids: tuple[str, ...]
    undoes: int | None
    undone_by: int | None
    created_at: datetime


class EventList(Contract):
    events: tuple[EventView, ...]
