"""How much a node is asked: concurrency and latency of requests over the last minute and the last five.

A node publishes this with its state; `shared.scaling` sums it over nodes and gives advice. Requests in progress are counted by
Little's law: the time spent on them, divided by the time that has passed; and those that wait by samples of the queues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.metrics_core import Metric as Family

WINDOWS_S = {"1m": 60.0, "5m": 300.0}
_NAME = "scenefleet_request_seconds"


@dataclass(frozen=True)
class Counts:
    """Requests so far: number, seconds in sum, and per upper bound of a bucket how many took at most so long."""

    count: float = 0.0
    seconds: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)


def count_family(found: Iterable[Family], family: str) -> Counts:
    """The requests of a family, from the samples of ``scenefleet_request_seconds``."""
    count, seconds, buckets = 0.0, 0.0, dict[float, float]()
    for metric in found:
        for sample in metric.samples if metric.name == _NAME else ():
            if sample.labels.get("family") != family:
                continue
            if sample.name.endswith("_sum"):
                seconds += sample.value
            elif sample.name.endswith("_bucket"):
                buckets[float(sample.labels["le"])] = sample.value
                count = max(count, sample.value)
    return Counts(count, seconds, buckets)


class Load:
    """The samples of one node, of the last five minutes."""

    def __init__(self) -> None:
        #: (monotonic time, counts, length of the queues of requests)
        self._samples: deque[tuple[float, Counts, int]] = deque()

    def add(self, now_s: float, counts: Counts, waiting: int) -> None:
        """Add a sample; forgets those that no window needs."""
        self._samples.append((now_s, counts, waiting))
        longest_s = max(WINDOWS_S.values())
        while len(self._samples) > 2 and self._samples[1][0] <= now_s - longest_s:
            self._samples.popleft()

    def describe(self) -> dict[str, dict[str, Any]]:
        """Per window: requests, seconds on them, bucket -> requests, mean in progress, mean length of the queues."""
        return {name: self._window(window_s) for name, window_s in WINDOWS_S.items()}

    def _window(self, window_s: float) -> dict[str, Any]:
        if len(self._samples) < 2:
            return {"count": 0, "seconds": 0.0, "buckets": {}, "busy": 0.0, "waiting": 0.0}
        end_s, last, _ = self._samples[-1]
        inside = [sample for sample in self._samples if sample[0] >= end_s - window_s]
        older = [sample for sample in self._samples if sample[0] < end_s - window_s]
        begin_s, first, _ = (older or inside)[-1 if older else 0]
        passed_s = max(end_s - begin_s, 1e-9)
        seconds = last.seconds - first.seconds
        buckets = {bound: total - first.buckets.get(bound, 0.0) for bound, total in last.buckets.items()}
        return {
            "count": last.count - first.count,
            "seconds": round(seconds, 4),
            "buckets": {f"{bound:g}": total for bound, total in buckets.items()},
            "busy": round(seconds / passed_s, 4),
            "waiting": round(sum(waiting for _, _, waiting in inside) / len(inside), 4),
        }
