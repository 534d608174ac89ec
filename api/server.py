"""Runs the API with uvicorn on the configured address until a signal comes."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.app import create_app
from shared.settings import Settings

#: Seconds that open requests get to end when the server stops.
DRAIN_S = 10


def serve(settings: Settings, listening: socket.socket) -> None:
    """Answer requests until SIGINT or SIGTERM, then let open ones end within ``DRAIN_S``."""
    _allow_connections(settings.api_max_connections)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=limited_protocol(settings),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Who asks is decided in api.callers, from the real peer.
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    # uvicorn raises the signal again at its end: a stop that was asked for is no failure.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Server(config, app).run(sockets=[listening])


class Server(uvicorn.Server):
    """Lets streams know that it stops."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._app.state.stopping.set()


def limited_protocol(settings: Settings) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for a client for ever, with limits of connections and of time."""

    class Limited(H11Protocol):
        waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > settings.api_max_connections:
                transport.abort()
            else:
                self._await_headers()

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                self._stop_waiting()
            elif self._idle():
                self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _await_headers(self) -> None:
            if self.waiting is None:
                self.waiting = self.loop.call_later(settings.api_slow_client_s, self._give_up)

        def _give_up(self) -> None:
            self.waiting = None
            if self._idle():
                self.transport.close()

        def _stop_waiting(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

    return Limited


def _allow_connections(number: int) -> None:
    """Let this process have so many files open, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
