"""deliver: send the events of a webhook that are due, one after the other.

Each outcome is stored at once. Not deferred at the end: the reconciler makes another job when something is due again.
"""

from __future__ import annotations

import time

from db.engine import reading
from db.tables import Webhook
from db.webhooks import deliveries
from shared.logs import get_logger
from worker.stages.context import Outcome, StageContext
from worker.webhooks.sending import send

log = get_logger(__name__)

#: After so long it gives way to other housekeeping, seconds.
_SLICE_S = 20.0


def run(context: StageContext) -> Outcome:
    settings, webhook_id = context.runtime.settings, context.claimed.subject.id
    began_s, sent, failed = time.monotonic(), 0, 0
    while time.monotonic() - began_s < _SLICE_S:
        # Raises when the webhook is gone, or the attempt is not ours any more.
        context.report(0.0)
        with reading() as session:
            due = deliveries.next_due(session, webhook_id)
        if due is None:
            break
        answer = send(
            due, allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private
        )
        context.write(
            lambda session, _: deliveries.mark(
                session,
                session.get_one(Webhook, webhook_id),
                due.delivery_id,  # noqa: B023 - run at once
                answer,  # noqa: B023
            )
        )
        sent, failed = sent + 1, failed + bool(answer.error)
        # Its error may name the receiver: it is in the delivery's row, for the user.
        log.info("webhook sent", delivery_id=due.delivery_id, status=answer.status, failed=bool(answer.error))
    return Outcome(result={"sent": sent, "failed": failed})
