"""The order of requests that change the same row: by when they were sent, not by when they arrive.

A broker delivers a message again whose node has frozen or died, perhaps an hour later. What its sender wanted then must not
undo what was wanted since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.expressions import NOW
from db.tables import Requested
from shared.errors import Conflict

#: Requests that were sent within this time of each other may be done in any order: as long as callers wait, and busy nodes
#: overtake each other. A message that is delivered again is older.
_TOGETHER = timedelta(seconds=30)


@dataclass(frozen=True)
class Arrival:
    """A request as it has arrived."""

    #: The same each time the message is delivered; None: not known.
    id: str | None = None
    #: Returns how long ago it was sent, seconds.
    age_s: Callable[[], float] = lambda: 0.0


def admit(session: Session, row: Requested, arrival: Arrival, what: str) -> bool:
    """Note a request as the newest about ``row``, which is locked. Returns False if it has changed the row already.

    Raises:
        Conflict: a request that was sent later has been done; ``what``: the row, for the message.
    """
    if arrival.id is not None and row.requested_by == arrival.id:
        return False
    # In this order: if this process stops between both, the request seems older than it is, never newer.
    now = session.execute(select(NOW)).scalar_one()
    sent = now - timedelta(seconds=max(0.0, arrival.age_s()))
    newest = row.requested_at
    if newest is not None and sent < newest - _TOGETHER:
        raise Conflict(
            f"this request about {what} was sent {(newest - sent).total_seconds():.0f} s before another one that is done:"
            " send it again if you still want it"
        )
    row.requested_at = sent if newest is None else max(sent, newest)
    row.requested_by = arrival.id
    return True
