"""Requests about webhooks and their deliveries."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..webhooks import check_secret, check_url
from .base import Contract, Id, Part, Text

WebhookEvent = Literal["video.indexed", "video.partial", "video.failed", "video.cancelled", "person.found"]
DeliveryState = Literal["pending", "delivered", "failed"]

WebhookUrl = Annotated[Text, AfterValidator(check_url), Field(min_length=1, max_length=2048)]
WebhookSecret = Annotated[Text, AfterValidator(check_secret), Field(max_length=200)]


class CreateWebhook(Contract):
    """Tell a URL of events. Sent again for the same URL it changes that webhook, and enables it."""

    user_id: Id
    url: WebhookUrl
    #: Empty: all.
    events: tuple[WebhookEvent, ...] = Field((), max_length=5)
    #: ``whsec_`` and 24 to 64 random bytes in base64. None: the one it has, or a new one.
    secret: WebhookSecret | None = None


class ListWebhooks(Contract):
    """List the user's webhooks, without their secrets."""

    user_id: Id


class WebhookRef(Contract):
    user_id: Id
    webhook_id: Id


class ListDeliveries(Contract):
    """List deliveries, newest first."""

    user_id: Id
    webhook_id: Id | None = None
    state: DeliveryState | None = None
    #: The previous page's ``next_before``.
    before: int | None = Field(None, ge=1, le=2**63 - 1)
    limit: int = Field(100, ge=1, le=1000)


class ResendDelivery(Contract):
    """Send an event again, with the same id."""

    user_id: Id
    delivery_id: int = Field(ge=1, le=2**63 - 1)


class WebhookView(Contract):
    webhook_id: str
    url: str
    events: tuple[WebhookEvent, ...]
    #: False: the receiver has answered 410; create it again to enable it.
    enabled: bool
    #: Attempts in a row at which the receiver did not answer, or with an error of its own.
    failures: int
    created_at: datetime
    #: Only in the answer to its creation.
    secret: str | None = None


class WebhookList(Contract):
    webhooks: tuple[WebhookView, ...]


class DeletedWebhook(Contract):
    webhook_id: str
    deleted: bool = True


class DeliveryView(Part):
    delivery_id: int
    webhook_id: str
    #: As in the header ``webhook-id``.
    message_id: str
    event: WebhookEvent
    #: What is sent.
    body: dict[str, Any]
    state: DeliveryState
    attempts: int
    #: HTTP status and error of the last attempt.
    status: int | None
    error: str | None
    created_at: datetime
    #: None: it has ended.
    next_at: datetime | None
    ended_at: datetime | None


class DeliveryPage(Contract):
    deliveries: tuple[DeliveryView, ...]
    #: None: the end.
    next_before: int | None
