"""What a metric is as it is declared, and the metrics of API processes, which import nothing of worker/ (worker/telemetry/metrics.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A metric as it is declared."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    #: Where it can be read: at every node, at the exporter, or at every API process.
    source: Literal["node", "exporter", "api"] = "node"
    buckets: tuple[float, ...] = ()


API_METRICS = (
    Metric(
        "scenefleet_api_requests_total",
        "counter",
        "HTTP requests answered, by route (files of the page: `page`; unknown addresses: `none`), method and status",
        ("route", "method", "status"),
        "api",
    ),
    Metric(
        "scenefleet_api_request_seconds",
        "histogram",
        "Time until an HTTP answer begins",
        ("route",),
        "api",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    ),
    Metric("scenefleet_api_in_flight", "gauge", "HTTP requests whose answer has not ended", (), "api"),
    Metric(
        "scenefleet_api_rejected_total",
        "counter",
        "HTTP requests refused for now (408, 413, 429, 503), by class of error",
        ("reason",),
        "api",
    ),
)
