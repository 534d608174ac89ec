"""Runs of webhooks: one job sends what is due. The reconciler makes it, and its end makes the next one.

So no transaction that records an event waits for a webhook's row, and an event with a pause needs no job meanwhile.
"""

from __future__ import annotations

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from db.ledger import jobs
from db.ledger.jobs import WakeUp, jobs_of, make_job
from db.ledger.policy import RunPolicy
from db.tables import LIVE, Job, Webhook, WebhookDelivery
from db.webhooks.deliveries import DUE
from shared import graph

#: After erasures and sweeps of the same user: a receiver may be slow.
_PRIORITY = -1
_FOUND_AT_ONCE = 100


def advance(session: Session, webhook: Webhook, policy: RunPolicy) -> list[WakeUp]:
    """Queue the job if something is due and none waits or runs. Harmless at any time."""
    mine = jobs_of(webhook)
    due = _due().where(Webhook.webhook_id == webhook.webhook_id).exists()
    is_live = select(Job.job_id).where(mine, Job.state.in_(LIVE)).exists()
    if not session.scalar(select(due & ~is_live)):
        return []
    # Only the newest is of use: there would be one per event.
    session.execute(delete(Job).where(mine), execution_options={"synchronize_session": False})
    webhook.run += 1
    session.flush()
    return jobs.insert(session, [make_job(webhook, graph.DELIVER, policy, priority=_PRIORITY)])


def find_due(session: Session) -> list[str]:
    """Webhooks with something to send and no job."""
    mine = (Job.subject_kind == "webhook") & (Job.subject_id == Webhook.webhook_id)
    is_live = select(Job.job_id).where(mine, Job.state.in_(LIVE)).exists()
    due = _due().correlate(Webhook).exists()
    return list(session.scalars(select(Webhook.webhook_id).where(due, ~is_live).limit(_FOUND_AT_ONCE)))


def _due() -> Select[int]:
    return select(WebhookDelivery.delivery_id).where(WebhookDelivery.webhook_id == Webhook.webhook_id, *DUE)
