"""Runs the API in the foreground."""

from __future__ import annotations

import sys

from shared import addresses
from shared.errors import InvalidRequest
from shared.logs import configure_logs
from shared.settings import Settings, get_settings


def run() -> None:
    """Serve until a signal comes; says where it listens and who may ask.

    Raises:
        InvalidRequest: a setting is not acceptable, or the extra `api` is not installed.
        Conflict: the port is taken.
    """
    try:
        from api import server
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f'{error.name} is not installed: run `make install` in the checkout, or `pip install ".[api]"`'
        ) from None
    settings = get_settings()
    addresses.check_address(settings)
    listening = addresses.listen(settings.api_host, settings.api_port)
    configure_logs(settings)
    sys.stdout.write(f"{addresses.address_of(listening)} ({who_may_ask(settings)})\n")
    sys.stdout.flush()
    server.serve(settings, listening)


def who_may_ask(settings: Settings) -> str:
    """Who is let in, for people."""
    ways = []
    if settings.api_keys:
        ways.append("callers with an API key")
    if settings.api_user_header:
        ways.append(f"users whom a proxy names in {settings.api_user_header}")
    if not ways:
        ways.append(f"anyone on this machine, as user {settings.user_id}")
    return " and ".join(ways)
