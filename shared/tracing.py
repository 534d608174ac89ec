"""Spans for OpenTelemetry, if OTEL_EXPORTER_OTLP_ENDPOINT names a collector; otherwise only the trace's ids are passed on.

OpenTelemetry is imported when the first span is made, not before. A collector that is away costs spans, never requests: they are sent
by a thread of their own, from a queue of limited length.

Attributes are ids and numbers; no names, texts or errors' messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from . import trace_context
from .logs import get_logger
from .settings import get_settings
from .trace_context import TraceContext

log = get_logger(__name__)

Kind = Literal["internal", "server", "consumer"]
#: Longest wait for the last spans when a process ends, milliseconds.
_FLUSH_MS = 3000


class Span:
    """A span that is open. Without a collector it does nothing."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def name(self, name: str) -> None:
        """Rename it, when more is known than at its beginning."""
        if self._span is not None:
            self._span.update_name(name)

    def note(self, **attributes: str | int | float | bool | None) -> None:
        """Add attributes; those that are None are left out."""
        if self._span is not None:
            self._span.set_attributes({key: value for key, value in attributes.items() if value is not None})

    def fail(self, error_class: str) -> None:
        """Say that what it stands for has failed."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR))
            self._span.set_attribute("error.type", error_class)


@contextmanager
def span(
    name: str,
    *,
    parent: TraceContext | None,
    kind: Kind = "internal",
    links: Sequence[TraceContext | None] = (),
    attributes: Mapping[str, str | int | float | bool | None] | None = None,
) -> Iterator[Span]:
    """Run the block in a span; what it sends and queues continues the trace.

    Args:
        parent: None: a new trace begins, if there is a collector.
        links: spans that led to this one and are not its parent.
    """
    tracer = _tracer()
    if tracer is None:
        with trace_context.using(parent):
            yield Span()
        return
    from opentelemetry.trace import Link, SpanKind, set_span_in_context

    begun = tracer.start_span(
        name,
        context=set_span_in_context(_remote(parent)) if parent is not None else None,
        kind=SpanKind[kind.upper()],
        links=[
            Link(_remote(link).get_span_context()) for link in links if link is not None and link != parent
        ],
        attributes={key: value for key, value in (attributes or {}).items() if value is not None},
    )
    own = begun.get_span_context()
    here = TraceContext(
        trace_id=f"{own.trace_id:032x}", span_id=f"{own.span_id:016x}", sampled=own.trace_flags.sampled
    )
    found = Span(begun)
    try:
        with trace_context.using(here):
            yield found
    except BaseException as error:
        # Not recorded by OpenTelemetry: the message may contain data of callers.
        found.fail(type(error).__name__)
        raise
    finally:
        begun.end()


def _remote(context: TraceContext) -> Any:
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    ids = (int(context.trace_id, 16), int(context.span_id, 16))
    return NonRecordingSpan(SpanContext(*ids, is_remote=True, trace_flags=flags))


#: The process that it is for, its provider and its tracer: a forked child makes its own, with a thread of its own.
_made: tuple[int, Any, Any] | None = None


def _tracer() -> Any:
    global _made
    if _made is None or _made[0] != os.getpid():
        provider = _make_provider()
        tracer = provider.get_tracer("scenefleet") if provider is not None else None
        _made = (os.getpid(), provider, tracer)
    return _made[2]


def _make_provider() -> Any:
    settings = get_settings()
    endpoint = settings.otel_exporter_otlp_endpoint
    if not endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.error("no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, but the extra `tracing` is not installed")
        return None
    # With OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    resource = Resource.create({"process.pid": os.getpid()})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": f"scenefleet-{settings.family or 'api'}"}))
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def root() -> TraceContext | None:
    """The parent for a request that has none: None if its span will begin a trace, otherwise a new trace."""
    return trace_context.make() if _tracer() is None else None


def flush() -> None:
    """Send the last spans of this process."""
    if _made is not None and _made[0] == os.getpid() and _made[1] is not None:
        _made[1].force_flush(_FLUSH_MS)
