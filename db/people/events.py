"""The append-only list of what was done to a user's people."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

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
    """The user's events, newest first."""
    undo, person, other = aliased(PeopleEvent), aliased(Person), aliased(Person)
    # A merge is into somebody, a split makes somebody new.
    other_id = func.coalesce(PeopleEvent.payload["into"].astext, PeopleEvent.payload["new"].astext)
    query = (
        select(PeopleEvent, undo.event_id, person.name, other.person_id, other.name)
        .outerjoin(undo, undo.undoes == PeopleEvent.event_id)
        .outerjoin(
            person,
            (person.person_id == PeopleEvent.person_id)
            & (person.user_id == request.user_id)
            & person.deleted_at.is_(None),
        )
        .outerjoin(other, (other.person_id == other_id) & (other.user_id == request.user_id))
        .where(PeopleEvent.user_id == request.user_id)
    )
    if request.before is not None:
        query = query.where(PeopleEvent.event_id < request.before)
    rows = session.execute(query.order_by(PeopleEvent.event_id.desc()).limit(request.limit)).all()
    return EventList(events=tuple(_view(*row) for row in rows))


def _view(
    event: PeopleEvent, undone_by: int | None, name: str | None, other_id: str | None, other: str | None
) -> EventView:
    payload = event.payload
    return EventView(
        event_id=event.event_id,
        kind=event.kind,
        person_id=event.person_id,
        name=name,
        other_id=other_id,
        other=other,
        old_name=payload.get("before", {}).get("name"),
        new_name=payload.get("after"),
        faces=len(payload["tracks"]) if "tracks" in payload else None,
        video_ids=tuple(dict.fromkeys(payload.get("videos", ()))),
        undoes=event.undoes,
        undone_by=undone_by,
        created_at=event.created_at,
    )
