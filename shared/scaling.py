"""Advice to an operator: which families need more nodes, and why.

Thresholds: more nodes beyond 10 concurrent requests, a mean of 100 ms or 5 waiting requests; many more beyond 50, 200 ms or 20.
Jobs may wait longer than requests: their advice is by the time that the backlog takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from . import routing
from .contracts.fleet import FamilyView, QueueView
from .nodes import NodeRecord

#: Level -> the values beyond which it is advised.
CONCURRENT = (10.0, 50.0)
MEAN_MS = (100.0, 200.0)
WAITING = (5.0, 20.0)
BACKLOG_S = (3600.0, 6 * 3600.0)
VERDICTS = ("enough", "scale out", "scale out again")
#: Families whose requests are short: a mean says something. Speech takes as long as it lasts.
SHORT = ("text", "vision", "search")
#: Means of fewer requests in five minutes say nothing.
MIN_REQUESTS = 10


@dataclass(frozen=True, kw_only=True)
class FamilyLoad:
    """Requests of a family over a window, of all its nodes."""

    requests: int = 0
    mean_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    #: Requests that waited or were answered at once, on average.
    concurrent: float = 0.0
    waiting: float = 0.0


def sum_loads(loads: Iterable[Mapping[str, Any]]) -> FamilyLoad:
    """One window (`worker.telemetry.load`) of all nodes of a family. They read the same queues: the longest counts."""
    found = list(loads)
    count = sum(load["count"] for load in found)
    seconds = sum(load["seconds"] for load in found)
    buckets: dict[float, float] = {}
    for load in found:
        for bound, total in load["buckets"].items():
            buckets[float(bound)] = buckets.get(float(bound), 0.0) + total
    waiting = max((load["waiting"] for load in found), default=0.0)
    return FamilyLoad(
        requests=round(count),
        mean_ms=round(1000 * seconds / count, 2) if count else 0.0,
        p95_ms=round(1000 * _quantile(buckets, 0.95), 2),
        p99_ms=round(1000 * _quantile(buckets, 0.99), 2),
        concurrent=round(sum(load["busy"] for load in found) + waiting, 2),
        waiting=round(waiting, 2),
    )


def _quantile(buckets: Mapping[float, float], share: float) -> float:
    """The value below which this share is, by linear interpolation inside a bucket; beyond the last bound, that bound."""
    bounds = [(0.0, 0.0), *sorted(buckets.items())]
    wanted = share * bounds[-1][1]
    for (low, below), (high, total) in pairwise(bounds):
        if total >= wanted and total > below:
            return low if high == float("inf") else low + (high - low) * (wanted - below) / (total - below)
    return 0.0


def advise(
    family: str, load: FamilyLoad, *, ready: int, backlog_s: float | None, jobs_waiting: int
) -> tuple[int, str]:
    """The level (an index of ``VERDICTS``) and its reason.

    Args:
        load: of the last five minutes.
        ready: ready nodes.
        backlog_s: time until the waiting jobs are done; None: unknown, since none was done lately.
    """
    if not ready:
        return (
            2,
            "no node of this family is ready: start one, or read why it does not start (scenefleet models)",
        )
    reasons = [
        _beyond(load.concurrent, CONCURRENT, "{:g} concurrent requests over 5 minutes, limit {:g}"),
        _beyond(load.waiting, WAITING, "{:g} requests in the queue on average, limit {:g}"),
        _beyond(
            (backlog_s or 0.0) / 60, [s / 60 for s in BACKLOG_S], "jobs for {:.0f} minutes wait, limit {:.0f}"
        ),
    ]
    if family in SHORT and load.requests >= MIN_REQUESTS:
        reasons.append(_beyond(load.mean_ms, MEAN_MS, "a request takes {:.0f} ms on average, limit {:.0f}"))
    level, reason = max(reasons, key=lambda found: found[0])
    if level:
        return level, reason
    if jobs_waiting and backlog_s is None:
        return 0, f"{jobs_waiting} jobs wait, and none was done in 10 minutes: look again later"
    return 0, "below every limit"


def _beyond(value: float, limits: Iterable[float], reason: str) -> tuple[int, str]:
    passed = [limit for limit in limits if value > limit]
    return len(passed), reason.format(value, passed[-1]) if passed else ""


def views(records: Iterable[NodeRecord], queues: Sequence[QueueView]) -> tuple[FamilyView, ...]:
    """Every family that has a node or a waiting job, with its load and the advice."""
    found = list(records)
    return tuple(
        view
        for family in routing.FAMILIES
        if (view := _view(family, [record for record in found if record.family == family], queues))
        is not None
    )


def _view(family: str, nodes: Sequence[NodeRecord], queues: Sequence[QueueView]) -> FamilyView | None:
    own = [queue for queue in queues if queue.queue in routing.NODES[family].queues]
    jobs_waiting = sum(queue.waiting for queue in own)
    if not nodes and not jobs_waiting:
        return None
    known = [node.telemetry["load"] for node in nodes if "load" in node.telemetry]
    lately, load = (sum_loads(windows[name] for windows in known) for name in ("1m", "5m"))
    backlogs = [queue.backlog_s for queue in own if queue.backlog_s is not None]
    backlog_s = max(backlogs, default=None)
    ready = sum(node.state == "ready" for node in nodes)
    level, reason = advise(family, load, ready=ready, backlog_s=backlog_s, jobs_waiting=jobs_waiting)
    return FamilyView(
        family=family,
        nodes=len(nodes),
        ready=ready,
        requests=load.requests,
        mean_ms=load.mean_ms,
        p95_ms=load.p95_ms,
        p99_ms=load.p99_ms,
        concurrent_1m=lately.concurrent,
        concurrent=load.concurrent,
        waiting=load.waiting,
        jobs_waiting=jobs_waiting,
        backlog_s=backlog_s,
        level=level,
        reason=reason,
    )
