"""Operators' requests about the whole fleet: its nodes, queues, failures and switches."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from .base import Contract, Part, Text
from .models import ModelsState


class FleetQuery(Contract):
    """Asks for the state of the fleet."""


class Resources(Part):
    """A machine, or a container with a limit, as its nodes see it."""

    #: Busy CPUs, percent of all.
    cpu_percent: float
    memory_total_bytes: int
    memory_available_bytes: int
    #: Of the disk with SCENEFLEET_HOME; None: it can't be read.
    disk_total_bytes: int | None = None
    disk_free_bytes: int | None = None


class NodeView(Part):
    """A node, as it last published itself (at most 30 s ago)."""

    name: str
    family: str
    #: loading, ready or failed
    state: str
    #: Why it is not ready.
    error: str
    models: tuple[str, ...]
    #: Time since its start, seconds; None: not known yet, like its resources.
    uptime_s: float | None = None
    resources: Resources | None = None


class QueueView(Part):
    """The jobs of a queue, of all users."""

    queue: str
    #: Jobs that may run now; at most ``COUNTED`` are counted.
    waiting: int
    running: int
    #: Jobs that wait for a later time: after a failure, or for something else.
    deferred: int
    #: How long the oldest of the waiting jobs has waited, seconds; None: none waits.
    oldest_s: float | None
    done_last_minute: int
    #: Failed for good, and not tried again since.
    failed: int
    #: Time to do all waiting jobs at the rate of the last 10 minutes, seconds; None: none was done.
    backlog_s: float | None


class FamilyView(Part):
    """How much a family is asked, and whether it needs more nodes. Requests: of the last five minutes, unless stated."""

    family: str
    nodes: int
    ready: int
    requests: int
    mean_ms: float
    p95_ms: float
    p99_ms: float
    #: Mean number of requests that waited or were answered at once, over one and over five minutes.
    concurrent_1m: float
    concurrent: float
    #: Mean number of requests in the queue.
    waiting: float
    #: Jobs that may run now, and the time until they are done, seconds; None: unknown.
    jobs_waiting: int
    backlog_s: float | None
    #: 0: enough nodes, 1: more are advised, 2: many more.
    level: int
    reason: str


#: Limit of the counts of ``QueueView`` and ``FailureKind``.
COUNTED = 100_000


class FailureKind(Part):
    """Failed jobs with the same class of error, and the latest of them."""

    error_class: str
    count: int
    videos: int
    user_id: str
    #: None: the job is about a person or a switch of models.
    video_id: str | None
    stage: str
    error: str | None
    failed_at: datetime | None


class FleetState(Contract):
    nodes: tuple[NodeView, ...]
    queues: tuple[QueueView, ...]
    families: tuple[FamilyView, ...]
    #: Most frequent first.
    failures: tuple[FailureKind, ...]
    #: The active model of each searched kind, and its open switch.
    models: tuple[ModelsState, ...]


class RetryFailures(Contract):
    """Run the failed jobs of the newest runs of videos again, of all users, as ``tasks.video.retry`` does."""

    #: Only jobs that failed with this class of error; the other failed jobs of the same videos run again, too.
    error_class: Text = Field(min_length=1, max_length=200)
    #: Maximum number of videos.
    limit: int = Field(100, ge=1, le=1000)


class Retried(Contract):
    """The answer to ``RetryFailures``."""

    #: Videos whose failed jobs run again.
    videos: int
    #: Videos that could not be tried again, and why the first could not.
    refused: int
    error: str | None
    #: More videos are left: send the request again.
    more: bool
