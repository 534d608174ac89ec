"""Security headers of every answer."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.page import INDEX
from shared.settings import Settings


class SecurityHeaders:
    """Adds the headers that an answer does not have itself."""

    def __init__(self, app: ASGIApp, settings: Settings, *, readable: bool = False) -> None:
        """``readable``: whether pages of other origins may use the answers."""
        self.app = app
        self.headers = {
            "Content-Security-Policy": content_policy(storage_origin(settings)),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "cross-origin" if readable else "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith(("/api/", "/v1/")):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


def storage_origin(settings: Settings) -> str | None:
    """The origin of presigned URLs; None: the storage has none."""
    if settings.storage_backend == "local":
        return None
    scheme = "https" if settings.storage_secure else "http"
    return f"{scheme}://{settings.storage_public_endpoint or settings.storage_endpoint}"


def content_policy(storage: str | None) -> str:
    """The policy of the page: its own files, what stands in its start by hash, pictures and films also from the storage."""
    index = INDEX.read_text() if INDEX.is_file() else ""
    also = [storage] if storage else []
    return "; ".join(
        [
            "default-src 'self'",
            " ".join(["script-src 'self'", *inline("script", index)]),
            " ".join(["style-src 'self'", *inline("style", index)]),
            " ".join(["img-src 'self' blob: data:", *also]),
            " ".join(["media-src 'self' blob:", *also]),
            " ".join(["connect-src 'self'", *also]),
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ]
    )


def inline(tag: str, html: str) -> list[str]:
    """The sources of a policy that allow the inline scripts (``script``) or styles (``style``) of a page."""
    found = re.findall(rf"<{tag}\b(?![^>]*\bsrc=)[^>]*>(.*?)</{tag}>", html, re.DOTALL | re.IGNORECASE)
    digests = [hashlib.sha256(text.encode()).digest() for text in found]
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
