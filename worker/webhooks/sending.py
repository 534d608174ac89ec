"""Sends one signed event to a URL, within a limit of time and of bytes, to a checked address only.

By ``http.client``, as it does nothing on its own: no redirects, no proxies, no second look-up of the name.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import cache
from urllib.parse import urlsplit

import certifi

from db.webhooks.deliveries import Answer, Due
from shared.errors import ScenefleetError
from shared.webhooks import sign
from worker.webhooks.addresses import resolve

#: Limit of connecting, sending and the answer together, seconds; and what is read of an answer, bytes.
LIMIT_S = 10.0
_MAX_ANSWER_BYTES = 4096
_PORTS = {"http": 80, "https": 443}


def send(due: Due, *, allow_http: bool, allow_private: bool, limit_s: float = LIMIT_S) -> Answer:
    """Post an event; never raises for what the receiver or the network does."""
    parts = urlsplit(due.url)
    if parts.scheme != "https" and not allow_http:
        return Answer(status=None, error="the URL is not https: create the webhook with an https URL")
    host, began_s = str(parts.hostname), time.monotonic()
    port = parts.port or _PORTS[parts.scheme]
    try:
        address = resolve(host, port, allow_private=allow_private)
        status = _post(due, address, port, began_s + limit_s)
    except ScenefleetError as error:
        return Answer(status=None, error=str(error))
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() - began_s >= limit_s:
            return Answer(status=None, error=f"{host!r} did not answer within {limit_s:g} s")
        return Answer(status=None, error=f"{host!r} did not answer ({type(error).__name__})")
    if 200 <= status < 300:
        return Answer(status=status)
    if 300 <= status < 400:
        return Answer(status=status, error=f"HTTP {status}: redirects are not followed, use the final URL")
    return Answer(status=status, error=f"HTTP {status}")


def _post(due: Due, address: str, port: int, until_s: float) -> int:
    """The HTTP status of the answer."""
    parts = urlsplit(due.url)
    body, now_s = due.body.encode(), int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": "scenefleet-webhooks",
        "webhook-id": due.message_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": sign(due.secret, due.message_id, now_s, body),
        "connection": "close",
    }
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    left_s = max(0.1, until_s - time.monotonic())
    # A default port that is not told to the constructor would appear in the header Host.
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    channel = socket.create_connection((address, port), left_s)
    if parts.scheme == "https":
        # The handshake later: it takes time, too.
        channel = _context().wrap_socket(
            channel, server_hostname=parts.hostname, do_handshake_on_connect=False
        )
    # A receiver that sends a byte now and then would hold a read for ever.
    timer = threading.Timer(max(0.0, until_s - time.monotonic()), _shut, (channel,))
    timer.daemon = True
    timer.start()
    try:
        if isinstance(channel, ssl.SSLSocket):
            channel.do_handshake()
        connection.sock = channel
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        if time.monotonic() >= until_s:
            # Headers that were cut off look like an answer.
            raise TimeoutError
        with suppress(OSError, http.client.HTTPException):
            # Its status counts; read so that the receiver sees no broken connection.
            answer.read(_MAX_ANSWER_BYTES)
        return answer.status
    finally:
        timer.cancel()
        connection.close()
        channel.close()


@cache
def _context() -> ssl.SSLContext:
    # The system's authorities, or those of SSL_CERT_FILE.
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _shut(channel: socket.socket) -> None:
    with suppress(OSError):
        # Not by the TLS layer, whose reader waits.
        socket.socket.shutdown(channel, socket.SHUT_RDWR)
