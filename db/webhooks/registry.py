"""The webhooks of users: create, list, delete; list deliveries and send one again."""

from __future__ import annotations

import json
from uuid import uuid4

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from db.expressions import NOW, seconds_from_now
from db.locks import AdvisoryLock
from db.tables import Job, Webhook, WebhookDelivery
from db.webhooks.deliveries import name_message
from shared.contracts import (
    CreateWebhook,
    DeletedWebhook,
    DeliveryPage,
    DeliveryView,
    ListDeliveries,
    ResendDelivery,
    WebhookEvent,
    WebhookList,
    WebhookRef,
    WebhookView,
)
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.settings import get_settings
from shared.webhooks import make_secret

#: Webhooks of one user.
MAX_WEBHOOKS = 10
_ALL: tuple[WebhookEvent, ...] = WebhookEvent.__args__  # type: ignore[attr-defined]
_LOCK = text(f"SELECT pg_advisory_xact_lock({AdvisoryLock.WEBHOOKS:d}, hashtext(:user_id))")


def create(session: Session, request: CreateWebhook) -> WebhookView:
    """Store a webhook, or change and enable the one of the same URL. Only this answer has its secret.

    Raises:
        InvalidRequest: the URL is not https, and WEBHOOK_ALLOW_HTTP is off.
        Conflict: the user has ``MAX_WEBHOOKS`` others.
    """
    if not request.url.startswith("https://") and not get_settings().webhook_allow_http:
        raise InvalidRequest(f"url={request.url[:80]!r} is not acceptable: send an https URL")
    session.execute(_LOCK, {"user_id": request.user_id})
    mine = select(Webhook).where(Webhook.user_id == request.user_id)
    found = session.scalars(
        mine.where(Webhook.url == request.url).with_for_update(key_share=True)
    ).one_or_none()
    if found is None:
        count = session.scalars(select(func.count()).select_from(mine.subquery())).one()
        if count >= MAX_WEBHOOKS:
            raise Conflict(
                f"user {request.user_id!r} has {count} webhooks, as many as there may be: delete one first"
            )
        found = Webhook(
            webhook_id=uuid4().hex, user_id=request.user_id, url=request.url, secret=make_secret()
        )
        session.add(found)
    found.events = list(request.events or _ALL)
    found.secret = request.secret or found.secret
    found.enabled, found.failures, found.not_before = True, 0, NOW
    session.flush()
    return _view(found).model_copy(update={"secret": found.secret})


def list_webhooks(session: Session, user_id: str) -> WebhookList:
    """The user's webhooks, oldest first."""
    mine = select(Webhook).where(Webhook.user_id == user_id)
    found = session.scalars(mine.order_by(Webhook.created_at, Webhook.webhook_id))
    return WebhookList(webhooks=tuple(map(_view, found)))


def remove(session: Session, request: WebhookRef) -> DeletedWebhook:
    """Delete a webhook with its deliveries and jobs; a request that is just being sent still arrives.

    Raises:
        NotFound: the user has no such webhook.
    """
    mine = (Webhook.webhook_id == request.webhook_id, Webhook.user_id == request.user_id)
    found = session.scalars(select(Webhook).where(*mine).with_for_update()).one_or_none()
    if found is None:
        raise NotFound(f"there is no webhook {request.webhook_id}: see `scenefleet webhooks list`")
    session.execute(
        delete(Job).where(Job.subject_kind == "webhook", Job.subject_id == found.webhook_id),
        execution_options={"synchronize_session": False},
    )
    session.delete(found)
    session.flush()
    return DeletedWebhook(webhook_id=request.webhook_id)


def list_deliveries(session: Session, request: ListDeliveries) -> DeliveryPage:
    """A page of the user's deliveries, newest first."""
    query = select(WebhookDelivery).where(WebhookDelivery.user_id == request.user_id)
    if request.webhook_id is not None:
        query = query.where(WebhookDelivery.webhook_id == request.webhook_id)
    if request.state is not None:
        query = query.where(WebhookDelivery.state == request.state)
    if request.before is not None:
        query = query.where(WebhookDelivery.delivery_id < request.before)
    newest = query.order_by(WebhookDelivery.delivery_id.desc()).limit(request.limit + 1)
    found = session.scalars(newest).all()
    shown = tuple(map(_view_delivery, found[: request.limit]))
    more = len(found) > request.limit
    return DeliveryPage(deliveries=shown, next_before=shown[-1].delivery_id if more else None)


def resend(session: Session, request: ResendDelivery) -> DeliveryView:
    """Send an event again, with the same id, for WEBHOOK_RETRY_S from now on.

    Raises:
        NotFound: the user has no such delivery, or it is older than WEBHOOK_RETENTION_S.
        Conflict: its webhook is disabled.
    """
    mine = (WebhookDelivery.delivery_id == request.delivery_id, WebhookDelivery.user_id == request.user_id)
    # The webhook's row first, as an attempt locks them.
    of = select(WebhookDelivery.webhook_id).where(*mine).scalar_subquery()
    owner = session.scalars(
        select(Webhook).where(Webhook.webhook_id == of).with_for_update(key_share=True)
    ).one_or_none()
    found = session.scalars(select(WebhookDelivery).where(*mine).with_for_update()).one_or_none()
    if owner is None or found is None:
        raise NotFound(f"there is no delivery {request.delivery_id}: see `scenefleet webhooks deliveries`")
    if not owner.enabled:
        raise Conflict(f"webhook {owner.webhook_id} is disabled: create it again with the same URL first")
    owner.not_before = found.next_at = NOW
    found.state, found.attempts, found.ended_at = "pending", 0, None
    found.give_up_at = seconds_from_now(get_settings().webhook_retry_s)
    session.flush()
    return _view_delivery(found)


def _view(webhook: Webhook) -> WebhookView:
    return WebhookView(
        webhook_id=webhook.webhook_id,
        url=webhook.url,
        events=tuple(webhook.events),
        enabled=webhook.enabled,
        failures=webhook.failures,
        created_at=webhook.created_at,
    )


def _view_delivery(delivery: WebhookDelivery) -> DeliveryView:
    return DeliveryView(
        delivery_id=delivery.delivery_id,
        webhook_id=delivery.webhook_id,
        message_id=name_message(delivery.webhook_id, delivery.delivery_id),
        event=delivery.event,  # type: ignore[arg-type]
        body=json.loads(delivery.body),
        state=delivery.state,  # type: ignore[arg-type]
        attempts=delivery.attempts,
        status=delivery.status,
        error=delivery.error,
        created_at=delivery.created_at,
        next_at=delivery.next_at if delivery.state == "pending" else None,
        ended_at=delivery.ended_at,
    )
