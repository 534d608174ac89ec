"""Requests about people, and their answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from .base import MAX_NAME_CHARS, Contract, Id, PersonName, Text


class CreatePerson(Contract):
    """Create a person. Sending it again with the same id or name changes nothing."""

    user_id: Id
    name: PersonName
    #: None: the fleet chooses an id.
    person_id: Id | None = None


class PersonRef(Contract):
    """Names a person of a user."""

    user_id: Id
    person_id: Id


class RenamePerson(PersonRef):
    """Rename a person; an unknown person becomes a named one."""

    name: PersonName


class ListPeople(Contract):
    """List the user's people by name, starting after the name ``after``."""

    user_id: Id
    kind: Literal["named", "unknown"] | None = None
    after: Text | None = Field(None, max_length=MAX_NAME_CHARS)
    limit: int = Field(200, ge=1, le=1000)


class AddPhoto(PersonRef):
    """Reserve a photo upload: the answer has the storage key and, with S3 storage, a URL for a PUT."""

    extension: Literal["jpg", "jpeg", "png", "webp"] = "jpg"
    #: Lifetime of the URL, seconds; None: ``UPLOAD_LINK_S``.
    expires_s: int | None = Field(None, ge=1, le=604_800)


class PhotoRef(PersonRef):
    photo_id: Id


class ListFaces(PersonRef):
    """List the tracks of a person, starting after the track id ``after``."""

    after: Id | None = None
    limit: int = Field(200, ge=1, le=1000)


class JudgeFaces(PersonRef):
    """Confirm or reject that tracks show a person. The decision is permanent, also in later runs."""

    track_ids: tuple[Id, ...] = Field(min_length=1, max_length=64)
    is_person: bool


class MergePeople(PersonRef):
    """Merge a person into another: its photos and tracks become the other's."""

    into: Id


class SplitPerson(PersonRef):
    """Move some tracks of a person to a new person."""

    track_ids: tuple[Id, ...] = Field(min_length=1, max_length=64)
    #: None: the next free "unknown N".
    name: PersonName | None = None


class UndoEvent(Contract):
    user_id: Id
    event_id: int = Field(ge=1, le=2**63 - 1)


class ListEvents(Contract):
    """List the changes of the user's people, newest first, before the event ``before``."""

    user_id: Id
    before: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class PhotoView(Contract):
    photo_id: str
    person_id: str
    storage_key: str
    #: waiting (for its upload), pending, good, refused (for its content), failed (internal error)
    state: str
    error_class: str | None
    error: str | None
    #: x, y, width, height of the face in the photo's pixels.
    box: tuple[float, float, float, float] | None
    quality: float | None
    #: URL for a PUT; None: the storage has no URLs, or the photo is stored.
    upload_url: str | None = None


class PersonView(Contract):
    person_id: str
    user_id: str
    name: str
    kind: Literal["named", "unknown"]
    #: empty (no photo or face to match with), working (photos or videos are processed), ready, erasing, erased
    state: Literal["empty", "working", "ready", "erasing", "erased"]
    #: Progress of the current work, 0..1.
    progress: float
    photos: int
    good_photos: int
    scenes: int
    videos: int
    created_at: datetime
    #: After an erasure: what was removed and what is left.
    receipt: dict[str, Any] | None = None
    #: The event of this change, for ``undo``.
    event_id: int | None = None
    #: False: the person existed before.
    accepted: bool = True


class PeoplePage(Contract):
    people: tuple[PersonView, ...]
    #: Pass as ``after`` for the next page; None at the end.
    next_after: str | None


class PhotoList(Contract):
    person_id: str
    photos: tuple[PhotoView, ...]


class FaceView(Contract):
    """One track of a person."""

    track_id: str
    video_id: str
    scene_id: str
    #: The scene's number in its video.
    idx: int
    #: Time of its best keyframe, seconds from the video's start.
    ts_s: float
    keyframe_key: str
    box: tuple[float, float, float, float]
    faces: int
    similarity: float | None
    decided_by: Literal["machine", "human"] | None


class FacePage(Contract):
    person_id: str
    faces: tuple[FaceView, ...]
    next_after: str | None


class EventView(Contract):
    event_id: int
    #: create, rename, confirm (these faces are the person's), reject (they are not), merge, split, undo, erase
    kind: str
    person_id: str | None
    #: Current name of the person; None: erased.
    name: str | None
    #: The person merged into, or split off; ``other``: its current name.
    other_id: str | None
    other: str | None
    #: Of a rename: the name before and after.
    old_name: str | None
    new_name: str | None
    #: Number of faces concerned; ``video_ids``: their videos, if a human chose them.
    faces: int | None
    video_ids: tuple[str, ...]
    undoes: int | None
    undone_by: int | None
    created_at: datetime


class EventList(Contract):
    events: tuple[EventView, ...]
