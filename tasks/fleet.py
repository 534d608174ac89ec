"""Operators' requests about the whole fleet. They name no user: whoever may send them sees every user's failures."""

from __future__ import annotations

import time
from functools import partial
from typing import get_args

from sqlalchemy.orm import Session

from db.engine import reading
from db.ledger import overview, video_runs
from db.ledger.jobs import WakeUp
from db.ledger.subjects import lock_video
from db.precedence import admit
from shared import nodes, routing, scaling
from shared.contracts import FleetQuery, FleetState, NodeView, Retried, RetryFailures, SearchedKind
from shared.errors import Conflict, DatabaseBusy, QuotaExceeded
from tasks.models import read_state
from tasks.requests import arrival, request_task
from worker import changes
from worker.changes import Note
from worker.runtime import get_runtime
from worker.wakeup import notify


@request_task(routing.FLEET_STATE, FleetQuery)
def state(request: FleetQuery) -> FleetState:
    """Return the nodes, queues, failures and switches of the fleet."""
    found = nodes.read_nodes(get_runtime().settings.redis_url)
    with reading() as session:
        queues = overview.queues(session)
        return FleetState(
            nodes=tuple(
                NodeView(
                    name=node.name,
                    family=node.family,
                    state=node.state,
                    error=node.error,
                    models=node.models,
                    uptime_s=time.time() - node.telemetry["started"] if "started" in node.telemetry else None,
                    resources=nodes.resources_of(node),
                )
                for _, node in sorted(found.items())
            ),
            queues=queues,
            families=scaling.views(found.values(), queues),
            failures=overview.failures(session),
            models=tuple(read_state(session, kind) for kind in get_args(SearchedKind)),
        )


@request_task(routing.FLEET_RETRY, RetryFailures)
def retry(request: RetryFailures) -> Retried:
    """Run the failed jobs with this class of error again, video by video, each in a transaction of its own."""
    runtime = get_runtime()
    with reading() as session:
        keys = overview.failed_videos(session, request.error_class, request.limit + 1)
    videos, errors = 0, list[str]()

    def run_again(key: str, session: Session) -> tuple[str, bool, list[WakeUp]]:
        video = lock_video(session, key)
        if video is None or video.deleted_at is not None:
            return "", False, []
        admit(session, video, arrival(), f"video {video.external_id}")
        return video.user_id, *video_runs.retry(session, video, runtime.policy)

    for key in keys[: request.limit]:
        try:
            user_id, accepted, wake_ups = runtime.transact(partial(run_again, key))
        except (Conflict, DatabaseBusy, QuotaExceeded) as error:
            errors.append(str(error))
            continue
        notify(wake_ups)
        if accepted:
            videos += 1
            changes.publish(Note(user_id=user_id))
    return Retried(
        videos=videos, refused=len(errors), error=next(iter(errors), None), more=len(keys) > request.limit
    )
