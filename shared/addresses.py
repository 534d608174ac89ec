"""Where the API listens, and who may reach it there."""

from __future__ import annotations

import errno
import ipaddress
import socket

from .errors import Conflict, InvalidRequest
from .settings import Settings


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens on ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(settings: Settings) -> None:
    """Refuse to serve everyone as the local user.

    Raises:
        InvalidRequest: API_HOST can be reached from other machines, and nothing says who asks.
    """
    if not (is_loopback(settings.api_host) or settings.says_who_asks):
        raise InvalidRequest(
            f"API_HOST={settings.api_host} can be reached from other machines, and everyone there would be user"
            f" {settings.user_id}: set API_KEYS=true, OIDC_ISSUER or API_USER_HEADER, or listen on 127.0.0.1"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens for the API.

    Raises:
        Conflict: another program listens there.
        InvalidRequest: the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} on {host} is taken by another program: stop it, or set API_PORT (0: a free one)"
            ) from None
        raise InvalidRequest(
            f"API_HOST={host} and API_PORT={port} can't be listened on ({error.strerror or error}): correct them"
        ) from None
    # Connections inherit it; asyncio sets it only on sockets that it has made itself. Without it, a body waits 40 ms for
    # the acknowledgement of its headers.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def address_of(listening: socket.socket) -> str:
    """The URL at which a listening socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
