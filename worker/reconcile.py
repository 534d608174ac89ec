"""What any node does for all every few seconds: free the jobs of dead workers, advance stuck videos, replace lost wake-up messages.

Each step is a conditional change that is harmless when repeated or done by several nodes at once, so no lock keeps
them apart. What a step is about is taken one by one, each in a small transaction of its own with short limits: what
somebody else has locked is skipped and comes with the next tick, what raises is logged by its id, and the rest goes
on. So neither a dead peer's open transaction nor a row that can't be advanced stops the fleet. Losing all of Redis
loses nothing: wake-up messages are made again from the ledger.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.ledger import attempts, claims, subjects, usage
from db.ledger.attempts import Held
from db.ledger.jobs import Subject, WakeUp
from db.people import revisions
from shared.errors import DatabaseBusy, DatabaseUnavailable, Outage, ScenefleetError, WorkerLost
from shared.logs import get_logger
from shared.routing import JOB_QUEUES
from worker.app import app
from worker.forks import forks
from worker.runtime import get_runtime
from worker.wakeup import notify

log = get_logger(__name__)
T = TypeVar("T")

#: For Redis to connect and to answer, seconds: a fork may be waiting.
_REDIS_S = 3.0
#: How often it is looked after what claims choose users by, seconds; and when it was last, monotonic.
_TEND_USAGE_S = 60.0
#: A message claims its job so soon after it was taken, seconds; and how many of those are looked at.
_TAKEN_S, _MOST_TAKEN = 2.0, 200
#: Stands in Redis while one node tops up its queues.
_TOPPING_UP = "scenefleet:topping-up"
_usage_tended_s = -_TEND_USAGE_S
#: What raised is left alone for a while, doubling, seconds: it must not fill the log, nor the time of every tick.
_PAUSE_S, _PAUSE_MAX_S = 1.0, 60.0
#: (step, subject) -> (monotonic time from which it is tried again, the pause before that).
_paused: dict[tuple[str, str], tuple[float, float]] = {}
_MAX_PAUSED = 10_000


class NodeLost(Outage):
    """The whole node that ran the job is gone."""

    loggable = True


@contextmanager
def guarded(step: str, subject: str = "") -> Iterator[None]:
    """Log what this block raises, by its step and subject, and go on.

    Raises:
        DatabaseUnavailable: Postgres is away: the rest would find the same.
    """
    try:
        yield
    except DatabaseBusy as error:
        log.warning("reconcile skipped", step=step, subject=subject, reason=error)
    except DatabaseUnavailable:
        raise
    except ScenefleetError as error:
        log.warning("reconcile skipped", step=step, subject=subject, reason=error)
    except Exception:
        log.exception("reconcile skipped", step=step, subject=subject)
    else:
        _paused.pop((step, subject), None)
        return
    if len(_paused) > _MAX_PAUSED:
        _paused.clear()
    _, pause_s = _paused.get((step, subject), (0.0, 0.0))
    pause_s = min(_PAUSE_MAX_S, max(_PAUSE_S, 2 * pause_s))
    _paused[step, subject] = (time.monotonic() + pause_s, pause_s)


def _each(step: str, subjects: Iterable[T], name: Callable[[T], object], act: Callable[[T], None]) -> None:
    """Do something about each subject, whatever becomes of the others."""
    for subject in subjects:
        called = str(name(subject))
        if _paused.get((step, called), (0.0, 0.0))[0] > time.monotonic():
            continue
        with guarded(step, called):
            act(subject)


def _find(look: Callable[[Session], T]) -> T:
    with forks.held_off(), reading() as session:
        return look(session)


def _change(work: Callable[[Session], T]) -> T:
    with forks.held_off():
        return transact(work)


def own_children(node: str, life: str, children: Callable[[], set[int] | None]) -> None:
    """Free, at once, jobs held by children of this node that no longer live, and by an earlier life of this node.

    A dead child counts as a failure of its job (the job may have killed it); a dead node does not. ``children`` gives
    None while the node ends its children itself: what they held is released when they have ended.
    """
    held = [job for job in _find(attempts.held_jobs) if job.owner.startswith(f"{node}:")]
    # Read after the ledger: a child born in between is among them.
    live = children()
    if live is None:
        return

    def look(job: Held) -> None:
        holder, _, child = job.owner.removeprefix(f"{node}:").split(":")
        if holder == life:
            if int(child) not in live:
                _reclaim(job, WorkerLost(f"the worker process (pid {child}) died while it ran this job"))
        else:
            main = int(holder.partition(".")[0])
            if main == os.getpid() or not _is_alive(main):
                _reclaim(job, NodeLost(f"node {node} (pid {main}) died while it ran this job"))

    _each("own_children", held, lambda job: job.job_id, look)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def fleet() -> None:
    """The steps for all nodes; any number of them may do this at the same time.

    Raises:
        DatabaseUnavailable: Postgres is away.
    """
    with guarded("expired_leases"):
        expired_leases()
    for kind in subjects.KINDS:
        with guarded(f"stuck {kind}"):
            stuck(kind)
    for step in (stale_sidecars, queue_usage, missing_wake_ups):
        with guarded(step.__name__):
            step()


def expired_leases() -> None:
    """Queue again, or give up, every job whose lease has run out."""

    def reclaim(job: Held) -> None:
        _reclaim(
            job, NodeLost(f"worker {job.owner} has not renewed its lease: it died or lost its connection")
        )

    held = [job for job in _find(attempts.held_jobs) if job.expired]
    _each("expired_leases", held, lambda job: job.job_id, reclaim)


def _reclaim(job: Held, error: ScenefleetError) -> None:
    policy = get_runtime().policy
    if _change(lambda session: attempts.reclaim(session, job, error, policy)) is not None:
        log.warning("job taken back", job_id=job.job_id, attempt=job.attempt, reason=error)


def stuck(kind: str) -> None:
    """Advance what has an open run and no job at work: some transition was lost, or a switch has more to plan."""
    policy = get_runtime().policy

    def go_on(subject_id: str) -> None:
        def work(session: Session) -> None:
            row = subjects.lock(session, Subject(kind, subject_id), skip_locked=True)
            if row is not None:
                subjects.advance(session, row, policy)

        _change(work)

    _each(f"stuck {kind}", _find(subjects.KINDS[kind].find_stuck), str, go_on)


def stale_sidecars() -> None:
    """Queue a revision of every video with a sidecar that no longer says who is in its scene."""
    policy = get_runtime().policy

    def revise(video_id: str) -> None:
        def work(session: Session) -> None:
            video = subjects.lock_video(session, video_id, skip_locked=True)
            if video is not None and revisions.is_stale(session, video_id):
                revisions.queue(session, video, policy)

        _change(work)

    _each("stale_sidecars", _find(revisions.stale_videos), str, revise)


def queue_usage() -> None:
    """Once a minute, look after what claims choose users by."""
    global _usage_tended_s
    if time.monotonic() - _usage_tended_s > _TEND_USAGE_S:
        _change(usage.tend)
        _usage_tended_s = time.monotonic()


def missing_wake_ups() -> None:
    """Per queue, bring the queue's length up to the number of claimable jobs, never beyond: no storm of wake-up messages.

    Of messages taken but not acknowledged only the newest are counted: those of a dead worker are delivered again only after the visibility
    timeout, and the live ones are no more than there are workers.
    """
    if not _find(claims.claimable):
        return
    # A Redis that is away is tried again with the next tick, not here.
    options = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S, "max_retries": 0}
    try:
        with forks.held_off(), app.connection_for_write(transport_options=options) as connection:
            client = connection.default_channel.client
            # Two at once would each send all that is missing; a node that dies here holds up the others for seconds only.
            if not client.set(_TOPPING_UP, "1", nx=True, px=int(2000 * _REDIS_S)):
                return
            try:
                _top_up(client, connection)
            finally:
                client.delete(_TOPPING_UP)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("wake-up messages put off", error=error)


def _top_up(client: Any, connection: Any) -> None:
    # Work goes on meanwhile: a message that is taken, or sent, between both looks is counted by one of them.
    before = _lengths(client)
    with reading() as session:
        claimable = claims.claimable(session)
    after = _lengths(client)
    for queue, ids in claimable.items():
        if queue in before and queue in after:
            notify([WakeUp(queue, job_id) for job_id in ids[max(before[queue], after[queue]) :]], connection)


def _lengths(client: Any) -> Counter[str]:
    """Messages per queue that wait, or were taken a moment ago and have not claimed their job yet.

    A queue that has something of another kind in its place is left out.
    """
    seconds, microseconds = client.time()
    now = seconds + microseconds / 1e6
    pipeline = client.pipeline(transaction=False)
    for queue in JOB_QUEUES:
        pipeline.llen(queue)
    pipeline.zrangebyscore("unacked_index", now - _TAKEN_S, now + _TAKEN_S, start=0, num=_MOST_TAKEN)
    *lengths, taken = pipeline.execute(raise_on_error=False)
    waiting: Counter[str] = Counter()
    for queue, length in zip(JOB_QUEUES, lengths, strict=True):
        if isinstance(length, ResponseError):
            log.error("queue not looked at", queue=queue, error=length)
        elif isinstance(length, Exception):
            raise length
        else:
            waiting[queue] = length
    if isinstance(taken, list) and taken:
        waiting.update(queue for queue in _queues_of(client.hmget("unacked", taken)) if queue in waiting)
    return waiting


def _queues_of(messages: Iterable[Any]) -> Iterator[str]:
    """The queues that messages were taken from, as kombu notes it beside them; what is no such note is skipped."""
    for message in messages:
        try:
            _, _, queue = json.loads(message)
        except (ValueError, TypeError, RecursionError):
            continue
        if queue in JOB_QUEUES:
            yield queue
