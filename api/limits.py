"""Limits of what a client may send: the size of a body and the time it takes."""

from __future__ import annotations

import asyncio

from fastapi import Request

from api.problems import BodyTooLarge, SlowClient
from shared.settings import Settings

#: Above the largest payload of a contract.
MAX_JSON_BYTES = 256 * 1024


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body of a request, of at most ``max_bytes``.

    Raises:
        BodyTooLarge: it has more.
        SlowClient: it does not arrive within API_SLOW_CLIENT_S.
    """
    settings: Settings = request.app.state.settings
    found = bytearray()
    try:
        async with asyncio.timeout(settings.api_slow_client_s):
            async for chunk in request.stream():
                found += chunk
                if len(found) > max_bytes:
                    raise BodyTooLarge(f"the body has more than {max_bytes} bytes: send less")
    except TimeoutError:
        raise SlowClient(
            f"the body did not arrive within {settings.api_slow_client_s:g} s: send it faster"
        ) from None
    return bytes(found)
