"""How a command asks the fleet: a client of the configured Redis, the user it acts for, and answers in pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared.client import Client
from shared.settings import get_settings


def acting_user(user: str | None) -> str:
    """The user of ``--user``, else the configured one."""
    return user or get_settings().user_id


def connect(user: str | None = None, *, timeout_s: float = 30.0) -> tuple[Client, str]:
    """A client of the configured fleet, and the user to act for.

    Raises:
        InvalidRequest: no Redis is configured and no `up` runs here.
    """
    settings = get_settings()
    client = Client(settings.require("redis_url"), broker_url=settings.broker_url, timeout_s=timeout_s)
    return client, acting_user(user)


def read_pages(ask: Callable[..., Any], rows: str, *, page_size: int, limit: int | None = None) -> list[Any]:
    """Every row, or the first ``limit``, of an answer that comes in pages.

    Args:
        ask: given ``after`` (None: the beginning) and ``limit``, returns a page with ``next_after`` (None: the end).
        rows: the page's field that holds its rows.
    """
    found: list[Any] = []
    after = None
    while True:
        page = ask(after=after, limit=page_size if limit is None else min(page_size, limit - len(found)))
        found += getattr(page, rows)
        after = page.next_after
        if after is None or len(found) == limit:
            return found
