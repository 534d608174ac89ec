"""Requests about webhooks: create, list, delete; list deliveries and send one again."""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.webhooks import registry
from shared import routing
from shared.contracts import (
    CreateWebhook,
    DeliveryPage,
    ListDeliveries,
    ListWebhooks,
    ResendDelivery,
    WebhookList,
    WebhookRef,
)
from tasks.requests import Changed, change_task, read_task


@change_task(routing.WEBHOOKS_CREATE, CreateWebhook)
def create(session: Session, request: CreateWebhook) -> Changed:
    """Store a webhook, or change the one of the same URL; return it with its secret."""
    return registry.create(session, request), []


@change_task(routing.WEBHOOKS_DELETE, WebhookRef)
def delete(session: Session, request: WebhookRef) -> Changed:
    """Delete a webhook and its deliveries."""
    return registry.remove(session, request), []


@change_task(routing.WEBHOOKS_RESEND, ResendDelivery)
def resend(session: Session, request: ResendDelivery) -> Changed:
    """Send an event again."""
    return registry.resend(session, request), []


@read_task(routing.WEBHOOKS_LIST, ListWebhooks)
def list_webhooks(session: Session, request: ListWebhooks) -> WebhookList:
    """Return the user's webhooks, without their secrets."""
    return registry.list_webhooks(session, request.user_id)


@read_task(routing.WEBHOOKS_DELIVERIES, ListDeliveries)
def deliveries(session: Session, request: ListDeliveries) -> DeliveryPage:
    """Return a page of deliveries, newest first."""
    return registry.list_deliveries(session, request)
