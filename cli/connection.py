"""How a command asks the fleet: a client of the configured Redis, the user it acts for, and answers in pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from shared.client import Client
from shared.settings import get_settings

T = TypeVar("T")
A = TypeVar("A")


def acting_user(user: str | None) -> str:
    """The user of ``--user``, else the configured one."""
    return user or get_settings().user_id


def connect(user: str | None = None, *, timeout_s: float = 30.0) -> tuple[Client, str]:
    """A client of the configured fleet, and the user to act for.

    Raises:
        InvalidRequest: no Redis is configured and no `up` runs here.
    """
    return Client(get_settings().require("redis_url"), timeout_s=timeout_s), acting_user(user)


def read_pages(
    read: Callable[[A | None, int], tuple[Sequence[T], A | None]], *, page_size: int, limit: int | None = None
) -> list[T]:
    """Every row, or the first ``limit``, of an answer that comes in pages.

    Args:
        read: given where to go on (None: at the beginning) and the number of rows wanted, returns the rows of a page
            and where the next one begins; None at the end.
    """
    found: list[T] = []
    after: A | None = None
    while True:
        rows, after = read(after, page_size if limit is None else min(page_size, limit - len(found)))
        found += rows
        if after is None or len(found) == limit:
            return found
