"""Refuses what foreign pages make a browser send, wherever the browser itself is what says who asks.

As the local user, or behind a proxy that signs people in, any page a person visits could send requests in their name
(cross-site request forgery) or, under a name of its own that it lets point here, even read the answers (DNS rebinding).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import Forbidden, problem
from shared.addresses import is_loopback
from shared.settings import Settings

SAFE = ("GET", "HEAD", "OPTIONS")


class Origins:
    """Lets a request through if its Host and Origin are this API's own, or it shows a key or token."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.keys = bool(settings.api_keys or settings.oidc_issuer)
        self.local = not settings.says_who_asks
        self.allowed = {origin.strip() for origin in settings.api_cors_origins.split(",") if origin.strip()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            fault = self.find_fault(scope["method"], Headers(scope=scope))
            if fault is not None:
                await problem(Forbidden(fault), path=scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def find_fault(self, method: str, headers: Headers) -> str | None:
        """Why a request is refused; None: it is not."""
        host = headers.get("host", "")
        if self.local and not is_loopback(host_name(host)):
            return f"Host {host[:100]!r} is not this machine: open the address that `scenefleet api` shows"
        # A browser adds a password by itself (`Basic`), but no key or token.
        shown = headers.get("authorization", "").lower().startswith("bearer ")
        if method in SAFE or (self.keys and shown):
            return None
        origin = headers.get("origin")
        if origin is not None:
            if origin in self.allowed or urlsplit_host(origin) == host.lower():
                return None
            return (
                f"Origin {origin[:100]!r} is another site: add it to API_CORS_ORIGINS to let it call the API"
            )
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "another site made the browser send this request"
        return None


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def urlsplit_host(origin: str) -> str | None:
    """Host and port of an origin, as a Host header has them; None: it has none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
