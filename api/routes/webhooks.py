"""Webhooks: the URLs of the caller that are told of events, and what was sent to them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query

from api import problems
from api.bodies import json_body
from api.parameters import MAX_NUMBER, WHOLE_ID, AfterNumber, Ask, Limit1000, Who
from shared import routing
from shared.contracts import (
    CreateWebhook,
    DeletedWebhook,
    DeliveryPage,
    DeliveryState,
    DeliveryView,
    ListDeliveries,
    ListWebhooks,
    ResendDelivery,
    WebhookList,
    WebhookRef,
    WebhookView,
)

router = APIRouter(tags=["webhooks"], responses=problems.responses())
CHANGED = problems.responses(404, 409)
NewWebhook = json_body(CreateWebhook, "user_id", name="NewWebhook")

WebhookId = Annotated[str, Path(pattern=WHOLE_ID)]
DeliveryId = Annotated[int, Path(ge=1, le=MAX_NUMBER)]


@router.get("/webhooks")
async def list_webhooks(who: Who, ask: Ask) -> WebhookList:
    """Return the webhooks, without their secrets."""
    return await ask.ask(routing.WEBHOOKS_LIST, ListWebhooks, {"user_id": who.user_id}, WebhookList)


@router.post(
    "/webhooks",
    status_code=201,
    responses=problems.responses(409, 413, 415),
    openapi_extra=NewWebhook.extra,
)
async def create_webhook(
    who: Who, ask: Ask, body: Annotated[dict[str, Any], Depends(NewWebhook.read)]
) -> WebhookView:
    """Create a webhook, or change and enable the one of this URL; only this answer has its `secret`."""
    kwargs = {**body, "user_id": who.user_id}
    return await ask.ask(routing.WEBHOOKS_CREATE, CreateWebhook, kwargs, WebhookView)


@router.delete("/webhooks/{webhook_id}", responses=CHANGED)
async def delete_webhook(webhook_id: WebhookId, who: Who, ask: Ask) -> DeletedWebhook:
    """Delete a webhook and its deliveries."""
    kwargs = {"user_id": who.user_id, "webhook_id": webhook_id}
    return await ask.ask(routing.WEBHOOKS_DELETE, WebhookRef, kwargs, DeletedWebhook)


@router.get("/webhook-deliveries")
async def list_deliveries(
    who: Who,
    ask: Ask,
    webhook_id: Annotated[str | None, Query(pattern=WHOLE_ID)] = None,
    state: DeliveryState | None = None,
    before: AfterNumber = None,
    limit: Limit1000 = 100,
) -> DeliveryPage:
    """Return a page of deliveries, newest first; the next page is `before` its `next_before`."""
    kwargs = {
        "user_id": who.user_id, "webhook_id": webhook_id, "state": state, "before": before, "limit": limit
    }  # fmt: skip
    return await ask.ask(routing.WEBHOOKS_DELIVERIES, ListDeliveries, kwargs, DeliveryPage)


@router.post("/webhook-deliveries/{delivery_id}/resend", status_code=202, responses=CHANGED)
async def resend_delivery(delivery_id: DeliveryId, who: Who, ask: Ask) -> DeliveryView:
    """Send an event again, with the same id."""
    kwargs = {"user_id": who.user_id, "delivery_id": delivery_id}
    return await ask.ask(routing.WEBHOOKS_RESEND, ResendDelivery, kwargs, DeliveryView)
