"""Metrics of an API process: requests by route and status, their durations, those in flight, and refusals by reason.

They are served on METRICS_PORT, beside the API: its own port is for callers. The exporter tells Prometheus where (``shared.api_processes``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import api_processes
from shared.http_pages import JSON, Answer, HttpServer, own_address
from shared.metrics import API_METRICS
from shared.settings import Settings

_NAMED = {metric.name: metric for metric in API_METRICS}
#: Of the addresses of this API (api/app.py).
_PREFIX = "/api/v1"
#: Statuses by which a request is refused for now.
REFUSALS = frozenset({408, 413, 429, 503})
#: Methods that are counted by their name; any text can be one.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """What one process has counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        requests = _NAMED["scenefleet_api_requests_total"]
        self._requests = Counter(requests.name, requests.help, requests.labels, registry=self.registry)
        seconds = _NAMED["scenefleet_api_request_seconds"]
        self._seconds = Histogram(
            seconds.name, seconds.help, seconds.labels, buckets=seconds.buckets, registry=self.registry
        )
        in_flight = _NAMED["scenefleet_api_in_flight"]
        self.in_flight = Gauge(in_flight.name, in_flight.help, registry=self.registry)
        rejected = _NAMED["scenefleet_api_rejected_total"]
        self._rejected = Counter(rejected.name, rejected.help, rejected.labels, registry=self.registry)

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request whose answer has begun."""
        route, method = _route(scope), scope["method"]
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_refusal(self, error: Exception, status: int) -> None:
        """Count an error that refuses a request for now; others are no refusals."""
        if status in REFUSALS:
            self._rejected.labels(type(error).__name__).inc()

    def page(self) -> Answer:
        """The metrics as Prometheus reads them."""
        return 200, CONTENT_TYPE_LATEST, generate_latest(self.registry)


def _route(scope: Scope) -> str:
    """The path of the route that has answered, with the names of its parameters."""
    path = getattr(scope.get("route"), "path", None)
    if path:
        # A route of an included router does not say where that was included.
        is_below = scope["path"].startswith(f"{_PREFIX}/") and not path.startswith(_PREFIX)
        return f"{_PREFIX}{path}" if is_below else str(path)
    return "none" if scope["path"].startswith(("/api/", "/v1/", "/v2/")) else "page"


class Counted:
    """Counts the requests of an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, is_begun = time.monotonic(), False

        async def send_and_count(message: Message) -> None:
            nonlocal is_begun
            if message["type"] == "http.response.start" and not is_begun:
                is_begun = True
                self._metrics.observe(scope, message["status"], time.monotonic() - began_s)
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            await self._app(scope, receive, send_and_count)


def serve(settings: Settings, metrics: Metrics) -> str | None:
    """Serve the metrics on METRICS_PORT; return the address for Prometheus, None: there is no such port.

    Raises:
        Outage: METRICS_HOST is not an address of this machine.
    """
    if settings.metrics_port is None:
        return None
    pages = {"/metrics": metrics.page, "/livez": lambda: (200, JSON, b'{"live": true}\n')}
    server = HttpServer(settings.metrics_host, settings.metrics_port, pages)
    server.start()
    host = own_address(settings.metrics_host, urlsplit(settings.redis_url).hostname or "")
    return f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"


async def publish_for_ever(redis: Redis, address: str) -> None:
    """Tell the exporter where the metrics are, again and again."""
    while True:
        with contextlib.suppress(RedisError, OSError):
            await redis.zadd(api_processes.KEY, {address: time.time()})
        await asyncio.sleep(api_processes.PUBLISH_S)
