"""The trace of a request: the caller's, or a new one, which goes with every message that the request sends."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import trace_context, tracing


class Traces:
    """Runs each request of a program in a span; files of the page have none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(("/api/", "/v1/")):
            await self.app(scope, receive, send)
            return
        given = trace_context.parse(Headers(scope=scope).get(trace_context.HEADER))
        method, parent = scope["method"], given or tracing.root()
        with tracing.span(method, parent=parent, kind="server") as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.note(**{"http.request.method": method, "http.response.status_code": status})
                    if status >= 500:
                        span.fail(str(status))
                await send(message)

            try:
                await self.app(scope, receive, send_and_note)
            finally:
                # The path in the route's module, not the request's: ids are no part of a name.
                route = getattr(scope.get("route"), "path", None)
                if route is not None:
                    span.name(f"{method} {route}")
                    span.note(**{"http.route": route})
