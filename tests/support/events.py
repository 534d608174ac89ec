"""A client of the API's event stream, as a browser's EventSource reads it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Event:
    name: str
    data: Any


class Stream:
    """One open stream; a thread reads it until either end closes it."""

    def __init__(
        self, url: str, *, last_id: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        more = {} if last_id is None else {"Last-Event-ID": last_id}
        self._connection.request("GET", "/api/v1/events", headers={**(headers or {}), **more})
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200, self._answer.read()
        assert self._answer.headers["Content-Type"].startswith("text/event-stream")
        self.events: list[Event] = []
        self.last_id = last_id
        self.retry_ms = 0
        self.ended = False
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        name, data = "message", list[str]()
        last_id = self.last_id
        try:
            while line := self._answer.readline():
                field, _, value = line.decode().rstrip("\n").partition(": ")
                with self._arrived:
                    if field == "event":
                        name = value
                    elif field == "data":
                        data.append(value)
                    elif field == "id":
                        last_id = value
                    elif field == "retry":
                        self.retry_ms = int(value)
                    elif line == b"\n":
                        # A browser takes an event, and its id, at the empty line.
                        self.last_id = last_id
                        if data:
                            self.events.append(Event(name, json.loads("\n".join(data))))
                        name, data = "message", []
                        self._arrived.notify_all()
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            pass
        with self._arrived:
            self.ended = True
            self._arrived.notify_all()

    def wait(self, found: Callable[[list[Event]], Any], what: str, within_s: float = 60) -> Any:
        """What ``found`` says of the events so far, once that is true."""
        deadline = time.monotonic() + within_s
        with self._arrived:
            while not (said := found(self.events)):
                left_s = deadline - time.monotonic()
                assert left_s > 0, f"not within {within_s:g} s: {what}; events: {self.events[-5:]}"
                self._arrived.wait(left_s)
        return said

    def wait_state(self, video_id: str, *states: str, within_s: float = 60) -> dict[str, Any]:
        """The video's event, once it is in one of these states."""

        def found(events: list[Event]) -> dict[str, Any] | None:
            last = [
                event.data for event in events if event.name == "video" and event.data["video_id"] == video_id
            ]
            return last[-1] if last and last[-1]["state"] in states else None

        result: dict[str, Any] = self.wait(found, f"{video_id} is {' or '.join(states)}", within_s)
        return result

    def wait_end(self, within_s: float = 30) -> None:
        """Wait until the server has ended the stream."""
        self.wait(lambda _: self.ended, "the stream has ended", within_s)

    def close(self) -> None:
        """Go, as a closed page does."""
        if self._connection.sock is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()
