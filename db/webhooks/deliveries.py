"""Events for webhooks: recorded in the transaction in which they happen, sent until they are delivered or given up.

So no event is lost, and one that is rolled back is not sent. A job takes the next due one (``next_due``), sends it, and
marks what came of it. A worker that dies between both has it sent again with the same id, by which receivers know it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, any_, delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.expressions import NOW, array, seconds_from_now
from db.tables import Person, Video, Webhook, WebhookDelivery
from shared.contracts import WebhookEvent
from shared.settings import get_settings

#: Each pause of an event is so many times the one before, up to the longest, seconds.
_GROWTH, _LONGEST_PAUSE_S = 4.0, 4 * 3600.0
#: Longest pause of a webhook whose receiver is out of order, seconds: then one of its events is tried.
_LONGEST_REST_S = 300.0
#: The receiver wants no more (RFC 9110): its webhook is disabled.
_GONE = 410
_MAX_ERROR_CHARS = 500
_PURGE_BATCH = 1000
_BY_STATE: dict[str, WebhookEvent] = {
    "indexed": "video.indexed",
    "partial": "video.partial",
    "failed": "video.failed",
    "cancelled": "video.cancelled",
}
#: Deliveries, joined with their webhook, that are to be sent now.
DUE = (
    WebhookDelivery.state == "pending",
    WebhookDelivery.next_at <= NOW,
    Webhook.enabled,
    Webhook.not_before <= NOW,
)


@dataclass(frozen=True, kw_only=True)
class Happening:
    """Something that happened, by primary keys."""

    #: Tells it apart from others of its kind.
    occurrence: str
    video_id: str
    person_id: str | None = None
    data: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, order=True)
class Shown:
    """A person in published scenes of a video, by primary keys."""

    video_id: str
    #: The run whose faces are published.
    face_run: int
    person_id: str


@dataclass(frozen=True, kw_only=True)
class Due:
    """An event to send now."""

    delivery_id: int
    message_id: str
    url: str
    secret: str
    body: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of sending an event."""

    #: HTTP status; None: no answer.
    status: int | None
    #: Empty: it was delivered.
    error: str = ""

    @property
    def out_of_order(self) -> bool:
        """Whether the receiver would not take other events either."""
        return bool(self.error) and (self.status is None or self.status == 429 or self.status >= 500)


def record(session: Session, user_id: str, event: WebhookEvent, happenings: Sequence[Happening]) -> None:
    """Store events for each of the user's webhooks that wants them; one that is stored already is left alone."""
    if not happenings:
        return
    wanting = _wanting(session, user_id, event)
    if not wanting:
        return
    now = session.scalars(select(NOW)).one()
    rows = [
        {
            "webhook_id": webhook_id,
            "user_id": user_id,
            "event": event,
            "occurrence": happening.occurrence,
            "video_id": happening.video_id,
            "person_id": happening.person_id,
            "body": json.dumps({"type": event, "timestamp": now.isoformat(), "data": happening.data}),
        }
        for webhook_id in wanting
        for happening in happenings
    ]
    store = insert(WebhookDelivery).on_conflict_do_nothing()
    for row in rows:
        session.execute(store.values(**row, give_up_at=seconds_from_now(get_settings().webhook_retry_s)))


def _wanting(session: Session, user_id: str, event: WebhookEvent) -> list[str]:
    """The user's webhooks that want an event; they can't be deleted until this transaction ends."""
    wants = Webhook.events.contains([event])
    query = select(Webhook.webhook_id).where(Webhook.user_id == user_id, Webhook.enabled, wants)
    # Locked, as rows will refer to them.
    locked = query.order_by(Webhook.webhook_id).with_for_update(read=True, key_share=True)
    return list(session.scalars(locked))


def video_ended(session: Session, video: Video) -> None:
    """Record that a video's run has ended, in the state that the video has now."""
    # A run ends once, and once more after a retry: the transaction tells these apart.
    xid = session.scalars(text("SELECT pg_current_xact_id()::text")).one()
    data = {
        "video_id": video.external_id,
        "run": video.run,
        "state": video.state,
        "error_class": video.error_class,
    }
    happening = Happening(
        occurrence=f"{video.video_id}.{video.run}.{xid}", video_id=video.video_id, data=data
    )
    record(session, video.user_id, _BY_STATE[video.state], [happening])


def people_shown(session: Session, user_id: str, shown: Collection[Shown]) -> None:
    """Record the named people among those that have just appeared in published scenes of the user's."""
    if not shown or not _wanting(session, user_id, "person.found"):
        return
    people = _names(session, Person.person_id, {one.person_id for one in shown}, Person.kind == "named")
    videos = _names(session, Video.video_id, {one.video_id for one in shown})
    happenings = [
        Happening(
            occurrence=f"{one.video_id}.{one.face_run}.{one.person_id}",
            video_id=one.video_id,
            person_id=one.person_id,
            data={"video_id": videos[one.video_id], "person_id": people[one.person_id]},
        )
        for one in sorted(shown)
        if one.person_id in people
    ]
    record(session, user_id, "person.found", happenings)


def _names(
    session: Session, key: InstrumentedAttribute[str], keys: Collection[str], *which: ColumnElement[bool]
) -> dict[str, str]:
    """The users' own ids, by primary key."""
    query = select(key, key.class_.external_id).where(key == any_(array(keys)), *which)
    return {row[0]: row[1] for row in session.execute(query)}


# --- sending


def next_due(session: Session, webhook_id: str) -> Due | None:
    """The next event to send; None: nothing is due, or the receiver is to be left alone."""
    row = session.execute(
        select(WebhookDelivery.delivery_id, WebhookDelivery.body, Webhook.url, Webhook.secret)
        .join(Webhook, Webhook.webhook_id == WebhookDelivery.webhook_id)
        .where(Webhook.webhook_id == webhook_id, *DUE)
        .order_by(WebhookDelivery.next_at, WebhookDelivery.delivery_id)
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    message_id = name_message(webhook_id, row.delivery_id)
    return Due(
        delivery_id=row.delivery_id, message_id=message_id, url=row.url, secret=row.secret, body=row.body
    )


def name_message(webhook_id: str, delivery_id: int) -> str:
    """The id of an event as its receiver sees it, the same at every attempt."""
    return f"msg_{webhook_id}_{delivery_id}"


def mark(session: Session, webhook: Webhook, delivery_id: int, answer: Answer) -> None:
    """Note what came of an attempt; the webhook's row is locked."""
    delivery = session.get(WebhookDelivery, delivery_id, populate_existing=True, with_for_update=True)
    if delivery is None or delivery.state != "pending":
        # Erased meanwhile, with what it was about.
        return
    now = session.scalars(select(NOW)).one()
    delivery.attempts += 1
    delivery.status, delivery.error = answer.status, answer.error[:_MAX_ERROR_CHARS] or None
    if not answer.error:
        delivery.state, delivery.ended_at = "delivered", now
    elif answer.status == _GONE or now >= delivery.give_up_at:
        delivery.state, delivery.ended_at = "failed", now
    else:
        pause = _pause(delivery.attempts, _LONGEST_PAUSE_S)
        # The last attempt is at the end of the time.
        delivery.next_at = min(now + pause, delivery.give_up_at)
    if answer.out_of_order:
        webhook.failures += 1
        webhook.not_before = now + _pause(webhook.failures, _LONGEST_REST_S)
    else:
        webhook.failures = 0
        webhook.enabled = webhook.enabled and answer.status != _GONE
    session.flush()


def _pause(failures: int, longest_s: float) -> timedelta:
    first_s = get_settings().webhook_backoff_s
    return timedelta(seconds=min(longest_s, first_s * _GROWTH ** min(failures - 1, 20)))


def purge(session: Session) -> int:
    """Delete some old deliveries that have ended, or whose webhook is disabled; returns how many."""
    off = select(Webhook.webhook_id).where(~Webhook.enabled)
    old = (
        select(WebhookDelivery.delivery_id)
        .where(
            WebhookDelivery.give_up_at < seconds_from_now(-get_settings().webhook_retention_s),
            (WebhookDelivery.state != "pending") | WebhookDelivery.webhook_id.in_(off),
        )
        .limit(_PURGE_BATCH)
        .with_for_update(skip_locked=True)
    )
    gone = session.execute(
        delete(WebhookDelivery).where(WebhookDelivery.delivery_id.in_(old)),
        execution_options={"synchronize_session": False},
    )
    return gone.rowcount  # type: ignore[attr-defined, no-any-return]
