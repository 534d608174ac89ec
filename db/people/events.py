"""The append-only list of what was done to a user's people."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from db.tables import PeopleEvent
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
    undo = aliased(PeopleEvent)
    query = (
        select(PeopleEvent, undo.event_id)
        .outerjoin(undo, undo.undoes == PeopleEvent.event_id)
        .where(PeopleEvent.user_id == request.user_id)
    )
    if request.before is not None:
        query = query.where(PeopleEvent.event_id < request.before)
    rows = session.execute(query.order_by(PeopleEvent.event_id.desc()).limit(request.limit)).all()
    return EventList(
        events=tuple(
            EventView(
                event_id=event.event_id,
                kind=event.kind,
                person_id=event.person_id,
                undoes=event.undoes,
                undone_by=undone_by,
                created_at=event.created_at,
            )
            for event, undone_by in rows
        )
    )
