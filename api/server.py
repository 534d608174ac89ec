"""`scenefleet api`: runs the API with uvicorn on the configured address until a signal comes."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from api.app import create_app
from shared.errors import Conflict, InvalidRequest
from shared.settings import Settings

#: Seconds that open requests get to end when the server stops.
DRAIN_S = 10


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(settings: Settings) -> None:
    """Refuse to serve everyone as the local user.

    Raises:
        InvalidRequest: API_HOST can be reached from other machines, and nothing says who asks.
    """
    if not (is_loopback(settings.api_host) or settings.api_keys or settings.api_user_header):
        raise InvalidRequest(
            f"API_HOST={settings.api_host} can be reached from other machines, and everyone there would be user"
            f" {settings.user_id}: set API_KEYS=true or API_USER_HEADER, or listen on 127.0.0.1"
        )


def listen(settings: Settings) -> socket.socket:
    """A socket that listens on the configured address.

    Raises:
        Conflict: another program listens there.
        InvalidRequest: the address is not one of this machine.
    """
    host, port = settings.api_host, settings.api_port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == 98:
            raise Conflict(
                f"port {port} on {host} is taken by another program: stop it, or set API_PORT (0: a free one)"
            ) from None
        raise InvalidRequest(f"API_HOST={host} can't be listened on: {error.strerror or error}") from None
    found.setblocking(False)
    return found


def address_of(listening: socket.socket) -> str:
    """The URL at which a listening socket is reached."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(settings: Settings, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM, then let open ones end within ``DRAIN_S``."""
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        # Who asks is decided in api.callers, from the real peer.
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    uvicorn.Server(config).run(sockets=[listening])
