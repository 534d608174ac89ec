"""Reconciles the ledger every few seconds, on any node: frees jobs of dead workers, advances stuck subjects, replaces lost
wake-up messages.

Each step is a conditional change. It is harmless if it is repeated or if several nodes do it at once, so no lock is needed.
Each subject is handled in a small transaction of its own with short limits. Locked rows are skipped until the next tick,
errors are logged by the subject's id, and the other subjects continue. So neither the open transaction of a dead peer nor
a row that can't be advanced stops the fleet. Losing all of Redis loses nothing: wake-up messages are made from the ledger.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from amqp import AMQPError
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.orm import Session

from db.engine import one_connection, outages, reading, transact
from db.ledger import attempts, claims, retention, subjects, usage
from db.ledger.attempts import Held
from db.ledger.jobs import Subject, WakeUp
from db.people import revisions
from db.tables import Video
from db.webhooks import deliveries
from shared import queue_lengths
from shared.errors import DatabaseBusy, DatabaseUnavailable, Outage, ScenefleetError, WorkerLost
from shared.logs import get_logger
from shared.routing import JOB_QUEUES
from worker import changes
from worker.app import app
from worker.forks import forks
from worker.runtime import get_runtime
from worker.telemetry import metrics
from worker.wakeup import notify

log = get_logger(__name__)
T = TypeVar("T")

#: Time limit of Redis to connect and to answer, seconds: a fork may be waiting.
_REDIS_S = 3.0
#: Interval of ``once_a_minute``, seconds; and when it was last, monotonic.
_TEND_S = 60.0
_tended_s = -_TEND_S
#: A worker claims a job at most this long after it took a message, seconds; and the number of such messages that are read.
_TAKEN_S, _MOST_TAKEN = 2.0, 200
#: The key in Redis that exists while a node tops up the queues.
_TOPPING_UP = "scenefleet:topping-up"
#: A subject that raised is skipped for this time, which doubles, seconds: it must not fill the log or every tick.
_PAUSE_S, _PAUSE_MAX_S = 1.0, 60.0
#: (step, subject) -> (monotonic time from which it is tried again, the pause before that).
_paused: dict[tuple[str, str], tuple[float, float]] = {}
_MAX_PAUSED = 10_000


class NodeLost(Outage):
    """The node that ran the job has died."""

    loggable = True


@contextmanager
def guarded(step: str, subject: str = "") -> Iterator[None]:
    """Log what this block raises, with its step and subject.

    Raises:
        DatabaseUnavailable: Postgres is unavailable, for the other subjects too.
    """
    try:
        yield
    except ScenefleetError as error:
        if isinstance(error, DatabaseUnavailable) and not isinstance(error, DatabaseBusy):
            raise
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


def _each(step: str, found: Iterable[T], act: Callable[[T], None]) -> None:
    """Do ``act`` for each job or id of a subject, also after an error of another one."""
    for one in found:
        called = str(one.job_id if isinstance(one, Held) else one)
        if _paused.get((step, called), (0.0, 0.0))[0] <= time.monotonic():
            with guarded(step, called):
                act(one)


def _each_row(step: str, kind: str, ids: Iterable[str], act: Callable[[Session, Any], object]) -> None:
    """Do ``act`` with each subject's row that is not locked, in a transaction of its own; then tell watchers."""

    def work(session: Session, subject: Subject) -> str | None:
        row = subjects.lock(session, subject, skip_locked=True)
        if row is not None:
            act(session, row)
        # A switch has no user.
        return getattr(row, "user_id", None)

    def change(subject_id: str) -> None:
        subject = Subject(kind, subject_id)
        user_id = _change(lambda session: work(session, subject))
        if user_id is not None:
            changes.publish_once(changes.of_subject(subject, user_id))

    _each(step, ids, change)


def _find(look: Callable[[Session], T]) -> T:
    with forks.held_off(), reading() as session:
        return look(session)


def _change(work: Callable[[Session], T]) -> T:
    with forks.held_off():
        return transact(work)


def own_children(node: str, life: str, children: Callable[[], set[int] | None]) -> None:
    """Free jobs held by dead children of this node, or by an earlier life of this node.

    A dead child counts as a failure of its job (the job may have killed it); a dead node does not. ``children`` returns
    None while the node ends its children itself: their jobs are released when they have ended.
    """
    held = [job for job in _find(attempts.held_jobs) if job.owner.startswith(f"{node}:")]
    # After the ledger, so that it includes a child that was started in between.
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

    _each("own_children", held, look)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Another user's process.
        pass
    return True


def fleet() -> None:
    """Do the steps that concern all nodes; several nodes may do them at the same time.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    found = _look({
        "expired_leases": attempts.held_jobs,
        **{f"stuck {kind}": subjects.KINDS[kind].find_stuck for kind in subjects.KINDS},
        "stale_sidecars": revisions.stale_videos,
        "unmarked_accounts": usage.find_unmarked,
        "missing_wake_ups": claims.any_due,
    })  # fmt: skip
    # Most looks find nothing.
    steps: dict[str, Callable[[], None]] = {
        "expired_leases": lambda: expired_leases(found["expired_leases"]),
        **{f"stuck {kind}": partial(_stuck_in, found, kind) for kind in subjects.KINDS},
        "stale_sidecars": lambda: stale_sidecars(found["stale_sidecars"]),
        "unmarked_accounts": lambda: _change(lambda session: usage.mark(session, found["unmarked_accounts"])),
        "missing_wake_ups": missing_wake_ups,
    }
    for step, act in steps.items():
        if found.get(step):
            with guarded(step):
                act()
    with guarded("once_a_minute"):
        once_a_minute()


def _look(looks: Mapping[str, Callable[[Session], Any]]) -> dict[str, Any]:
    """What each step finds to do, over one connection: opening it costs more than the looks. Without a step that failed.

    Raises:
        DatabaseUnavailable: Postgres is unavailable.
    """
    found: dict[str, Any] = {}
    with forks.held_off(), one_connection() as session:
        for step, look in looks.items():
            with guarded(step), outages():
                try:
                    found[step] = look(session)
                finally:
                    session.rollback()
    return found


def _stuck_in(found: Mapping[str, Any], kind: str) -> None:
    stuck(kind, found[f"stuck {kind}"])


def expired_leases(held: Sequence[Held] | None = None) -> None:
    """Requeue or fail every job whose lease has expired; ``held``: the running jobs, if they are known."""
    lost = "worker {} has not renewed its lease: it died or lost its connection"
    expired = [job for job in (_find(attempts.held_jobs) if held is None else held) if job.expired]
    _each("expired_leases", expired, lambda job: _reclaim(job, NodeLost(lost.format(job.owner))))


def _reclaim(job: Held, error: ScenefleetError) -> None:
    policy = get_runtime().policy
    if _change(lambda session: attempts.reclaim(session, job, error, policy)) is not None:
        with forks.held_off():
            metrics.count_lost_lease("child" if isinstance(error, WorkerLost) else "node")
        log.warning("job taken back", job_id=job.job_id, attempt=job.attempt, reason=error)
        changes.publish_once(changes.of_subject(job.subject, job.user_id))


def stuck(kind: str, ids: Iterable[str] | None = None) -> None:
    """Advance subjects with an open run and no open job: a transition was lost, or a switch has more to plan."""
    policy = get_runtime().policy
    ids = _find(subjects.KINDS[kind].find_stuck) if ids is None else ids
    _each_row(f"stuck {kind}", kind, ids, lambda session, row: subjects.advance(session, row, policy))


def stale_sidecars(ids: Iterable[str] | None = None) -> None:
    """Queue a revision of every video with a sidecar whose people have changed."""
    policy = get_runtime().policy

    def revise(session: Session, video: Video) -> None:
        if revisions.is_stale(session, video.video_id):
            revisions.queue(session, video, policy)

    _each_row("stale_sidecars", "video", _find(revisions.stale_videos) if ids is None else ids, revise)


def once_a_minute() -> None:
    """Maintain the device times of users, by which claims choose, and delete old deliveries, jobs and runs."""
    global _tended_s
    if time.monotonic() - _tended_s > _TEND_S:
        for tend in (usage.tend, deliveries.purge, retention.remove_ended):
            _change(tend)
        for subject_id, run in _find(retention.replaced_runs):
            _change(lambda session: retention.remove_run(session, subject_id, run))  # noqa: B023
        _tended_s = time.monotonic()


def missing_wake_ups() -> None:
    """Send wake-up messages until each queue has as many as claimable jobs, never more.

    Of messages that were taken but not acknowledged only the newest count: those of a dead worker are delivered again after the
    visibility timeout, and live workers hold no more than one each.
    """
    settings = get_runtime().settings
    # A server that does not answer is tried again at the next tick.
    limits = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S}
    options: dict[str, Any] = (
        {"connect_timeout": _REDIS_S}
        if settings.broker_url
        else {"transport_options": {**limits, "max_retries": 0}}
    )
    try:
        with (
            forks.held_off(),
            app.connection_for_write(**options) as connection,
            # The broker's own connection where it is Redis.
            Redis.from_url(settings.redis_url, **limits)
            if settings.broker_url
            else nullcontext(connection.default_channel.client) as client,
        ):
            # Two nodes at once would each send all missing messages; one that dies here blocks the others for seconds only.
            if client.set(_TOPPING_UP, "1", nx=True, px=int(2000 * _REDIS_S)):
                try:
                    look = (
                        partial(queue_lengths.waiting, connection, JOB_QUEUES)
                        if settings.broker_url
                        else partial(_lengths, client)
                    )
                    _top_up(look, connection)
                finally:
                    client.delete(_TOPPING_UP)
    except (OperationalError, RedisError, AMQPError, OSError) as error:
        log.warning("wake-up messages put off", error=error)


def _top_up(look: Callable[[], Mapping[str, int]], connection: Any) -> None:
    # Work continues meanwhile: a message that is taken or sent between both counts is in one of them.
    before = look()
    with reading() as session:
        claimable = claims.claimable(session)
    after = look()
    for queue, ids in claimable.items():
        if queue in before and queue in after:
            notify([WakeUp(queue, job_id) for job_id in ids[max(before[queue], after[queue]) :]], connection)


def _lengths(client: Any) -> Counter[str]:
    """Messages per queue that wait, or were just taken and have not claimed a job yet.

    A queue whose key in Redis is no list is left out.
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
    """The queues that messages were taken from, as kombu stores it; invalid entries are skipped."""
    for message in messages:
        try:
            _, _, queue = json.loads(message)
        except (ValueError, TypeError, RecursionError):
            continue
        if queue in JOB_QUEUES:
            yield queue
