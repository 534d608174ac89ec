"""API processes' apps in threads of a test, over one storage and one Redis, with a fleet that the test plays itself."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request

import api.app
from shared.settings import Settings


class PlayedFleet:
    """Answers what an API asks. ``answer`` may be replaced; it returns the fields of the answer, or raises."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Callable[[str, dict[str, Any]], dict[str, Any]] = accept

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def for_request(self, request: Request) -> PlayedFleet:
        return self

    async def ask(self, task: str, contract: Any, kwargs: dict[str, Any], answer: Any) -> Any:
        contract.model_validate(kwargs, strict=False)
        self.asked.append((task, kwargs))
        return answer.model_validate(self.answer(task, kwargs), strict=False)


def accept(task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The receipt of a video."""
    video = {"video_id": kwargs["video_id"], "user_id": kwargs["user_id"]}
    return {**video, "state": "uploaded", "run": 1, "accepted": True}


class Replica:
    """One API."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app, self.url = app, url


@contextmanager
def replica(
    monkeypatch: Any, settings: Settings, fleet: PlayedFleet, *, by_proxy: bool = True
) -> Iterator[Replica]:
    """An API whose users are named by the header ``X-User``, as by a proxy, unless ``by_proxy`` is false."""
    monkeypatch.setattr(api.app, "Asking", lambda *_, **__: fleet)
    proxy = {"api_user_header": "X-User", "api_trusted_proxies": "127.0.0.1"} if by_proxy else {}
    app = api.app.create_app(settings.model_copy(update=proxy))

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline and thread.is_alive(), "the API does not start"
            time.sleep(0.02)
        yield Replica(app, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
