"""What any node does for all every few seconds: free the jobs of dead workers, advance stuck videos, ring lost bells.

Each step is a conditional change that is harmless when repeated or done by two nodes at once. Losing all of Redis
loses nothing: bells are made again from the ledger.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.orm import Session

from db import jobs, runs, switches
from db.engine import get_engine, outages, reading, transact
from db.jobs import Bell, Held
from db.people import enrolment, revisions
from shared.errors import Outage, ScenefleetError, WorkerLost
from shared.logs import get_logger
from worker.app import app
from worker.bells import ring
from worker.runner import advance
from worker.runtime import get_runtime

log = get_logger(__name__)

_LOCK = 7_305_002


class NodeLost(Outage):
    """The whole node that ran the job is gone."""

    loggable = True


def own_children(node: str, life: str, children: Callable[[], set[int] | None]) -> None:
    """Free, at once, jobs held by children of this node that no longer live, and by an earlier life of this node.

    A dead child counts as a failure of its job (the job may have killed it); a dead node does not. ``children`` gives
    None while the node ends its children itself: what they held is released when they have ended.
    """
    with reading() as session:
        held = [job for job in jobs.held_jobs(session) if job.owner.startswith(f"{node}:")]
    # Read after the ledger: a child born in between is among them.
    live = children()
    if live is None:
        return
    for job in held:
        holder, _, child = job.owner.removeprefix(f"{node}:").split(":")
        if holder == life:
            if int(child) not in live:
                _take_back(job, WorkerLost(f"the worker process (pid {child}) died while it ran this job"))
        else:
            main = int(holder.partition(".")[0])
            if main == os.getpid() or not _is_alive(main):
                _take_back(job, NodeLost(f"node {node} (pid {main}) died while it ran this job"))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fleet() -> None:
    """The steps for all nodes, done by one of them at a time."""
    with outages(), get_engine().connect() as connection, connection.begin():
        if not connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}).scalar():
            return
        expired_leases()
        stuck_videos()
        stuck_people()
        open_switches()
        stale_sidecars()
        missing_bells()


def expired_leases() -> None:
    """Queue again, or give up, every job whose lease has run out."""
    with reading() as session:
        held = [job for job in jobs.held_jobs(session) if job.expired]
    for job in held:
        _take_back(
            job, NodeLost(f"worker {job.owner} has not renewed its lease: it died or lost its connection")
        )


def _take_back(job: Held, error: ScenefleetError) -> None:
    runtime = get_runtime()

    def take_back(session: Session) -> list[Bell]:
        return jobs.take_back(session, job, error, runtime.policy, lambda s, v: advance(s, v, runtime))

    transact(take_back)
    log.warning("job taken back", job_id=job.job_id, attempt=job.attempt, reason=error)


def stuck_videos() -> None:
    """Advance every video whose open run has no job at work: some transition was lost."""
    with reading() as session:
        stuck = runs.stuck_videos(session)
    _go_on("video", stuck)


def stuck_people() -> None:
    """Advance every person whose open run has no job at work."""
    with reading() as session:
        stuck = enrolment.stuck_people(session)
    _go_on("person", stuck)


def open_switches() -> None:
    """Plan what switches of models have to do next: what was published meanwhile, too."""
    with reading() as session:
        found = switches.open_switches(session)
    _go_on("switch", found)


def _go_on(kind: str, subject_ids: Sequence[str]) -> None:
    runtime = get_runtime()
    for subject_id in subject_ids:

        def go_on(session: Session, subject_id: str = subject_id) -> None:
            subject = jobs.lock_subject(session, kind, subject_id)
            if subject is not None:
                advance(session, subject, runtime)

        transact(go_on)


def stale_sidecars() -> None:
    """Queue a revision of every video with a sidecar that no longer says who is in its scene."""
    runtime = get_runtime()
    with reading() as session:
        stale = revisions.stale_videos(session)
    for video_id in stale:

        def revise(session: Session, video_id: str = video_id) -> None:
            video = jobs.lock_video(session, video_id)
            if video is not None and revisions.is_stale(session, video_id):
                revisions.queue(session, video, runtime.plan)

        transact(revise)


def missing_bells() -> None:
    """Per lane, bring the queue's length up to the number of claimable jobs, never beyond: no storm of bells.

    Messages taken but not acknowledged are not counted: those of a dead worker ring only after the visibility
    timeout, and the live ones are no more than there are workers.
    """
    with reading() as session:
        claimable = jobs.claimable(session)
    if not claimable:
        return
    try:
        with app.connection_for_write() as connection:
            for lane, ids in claimable.items():
                waiting = connection.default_channel.client.llen(lane)
                ring([Bell(lane, job_id) for job_id in ids[waiting:]], connection)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("bells put off", error=error)
