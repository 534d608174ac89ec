"""What the commands of ``scenefleet webhooks`` do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from cli import screen
from cli.connection import connect
from shared.contracts import DeliveryPage, WebhookList


def add(url: str, events: Sequence[str], secret: str | None, *, as_json: bool, user: str | None) -> None:
    """Add a webhook; only its secret goes to stdout, so that a script can keep it."""
    client, owner = connect(user)
    made = client.create_webhook(owner, url, events=events, secret=secret)
    if as_json:
        screen.write_json(made)
        return
    screen.tell(
        f"webhook {made.webhook_id} of user {owner}, for {', '.join(made.events)}; its secret is not shown again:"
    )
    sys.stdout.write(f"{made.secret}\n")


def show_list(*, as_json: bool, user: str | None) -> None:
    """List the webhooks of a user."""
    client, owner = connect(user)
    found = client.webhooks(owner)
    nothing = "there are no webhooks yet: `scenefleet webhooks add URL`"
    screen.answer(found, lambda: _hooks(found) if found.webhooks else nothing, as_json=as_json)


def remove(webhook_id: str, *, as_json: bool, user: str | None) -> None:
    """Remove a webhook."""
    client, owner = connect(user)
    gone = client.delete_webhook(owner, webhook_id)
    screen.answer(gone, lambda: f"webhook {gone.webhook_id} is removed", as_json=as_json)


def show_deliveries(
    webhook_id: str | None, state: str | None, limit: int, *, as_json: bool, user: str | None
) -> None:
    """List deliveries of a user."""
    client, owner = connect(user)
    found = client.webhook_deliveries(owner, webhook_id=webhook_id, state=state, limit=limit)
    nothing = "there are no such deliveries"
    screen.answer(found, lambda: _deliveries(found) if found.deliveries else nothing, as_json=as_json)


def resend(delivery_id: int, *, as_json: bool, user: str | None) -> None:
    """Send an event again."""
    client, owner = connect(user)
    again = client.resend_delivery(owner, delivery_id)
    screen.answer(again, lambda: f"delivery {again.delivery_id} will be sent again", as_json=as_json)


def _hooks(found: WebhookList) -> Table:
    table = screen.make_table("webhook", "state", ">failures", "created", "~events", "~url")
    for hook in found.webhooks:
        state = "enabled" if hook.enabled else "disabled"
        times = (str(hook.failures or ""), screen.minute(hook.created_at))
        table.add_row(hook.webhook_id, state, *times, ", ".join(hook.events), escape(hook.url))
    return table


def _deliveries(found: DeliveryPage) -> Table:
    table = screen.make_table(">delivery", "event", "state", ">attempts", "created", "next", "~error")
    for one in found.deliveries:
        times = (screen.minute(one.created_at), screen.minute(one.next_at) if one.next_at else "")
        state = screen.styled(one.state)
        table.add_row(
            str(one.delivery_id), one.event, state, str(one.attempts), *times, escape(one.error or "")
        )
    return table
