"""The append-only list of changes of a user's people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from db.ids import name_videos
from db.tables import PeopleEvent, Person
from shared.contracts import EventList, EventView, ListEvents


def record(
    session: Session,
    user_id: str,
    kind: str,
    person_id: str | None,
    payload: dict[str, Any],
    undoes: int | None = None,
) -> int:
    """Append an event; returns its id."""
    event = PeopleEvent(user_id=user_id, kind=kind, person_id=person_id, payload=payload, undoes=undoes)
    session.add(event)
    session.flush()
    return event.event_id


def page(session: Session, request: ListEvents) -> EventList:
    """A page of the user's events, newest first, with the external ids of people and videos."""
    undo, person, other = aliased(PeopleEvent), aliased(Person), aliased(Person)
    # The other person of a merge is its target, of a split the new person.
    other_id = func.coalesce(PeopleEvent.payload["into"].astext, PeopleEvent.payload["new"].astext)
    query = (
        select(PeopleEvent, undo.event_id, person, other)
        .outerjoin(undo, undo.undoes == PeopleEvent.event_id)
        .outerjoin(person, (person.person_id == PeopleEvent.person_id) & (person.user_id == request.user_id))
        .outerjoin(other, (other.person_id == other_id) & (other.user_id == request.user_id))
        .where(PeopleEvent.user_id == request.user_id)
    )
    if request.before is not None:
        query = query.where(PeopleEvent.event_id < request.before)
    rows = session.execute(query.order_by(PeopleEvent.event_id.desc()).limit(request.limit)).all()
    videos = {video for row in rows for video in row[0].payload.get("videos", ())}
    names = name_videos(session, request.user_id, videos)
    return EventList(events=tuple(_view(*row, names) for row in rows))


def _view(
    event: PeopleEvent,
    undone_by: int | None,
    person: Person | None,
    other: Person | None,
    videos: Mapping[str, str],
) -> EventView:
    payload = event.payload
    about = dict.fromkeys(payload.get("videos", ()))
    # Events of an erased person are deleted in batches.
    gone = person is not None and person.deleted_at is not None
    return EventView(
        event_id=event.event_id,
        kind=event.kind,
        person_id=None if person is None else person.external_id,
        name=None if gone or person is None else person.name,
        other_id=None if other is None else other.external_id,
        other=None if other is None else other.name,
        old_name=None if gone else payload.get("before", {}).get("name"),
        new_name=None if gone else payload.get("after"),
        faces=payload.get("faces", len(payload["tracks"]) if "tracks" in payload else None),
        video_ids=tuple(videos[video] for video in about if video in videos),
        undoes=event.undoes,
        undone_by=undone_by,
        created_at=event.created_at,
    )
