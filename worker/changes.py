"""Tells API processes that something of a user has changed: a note on a Redis channel, after the commit.

A note has ids only; whoever gets it reads the state from Postgres (``tasks.video.changes``). So a lost note delays what a
watcher sees and loses nothing. Sending one never fails a job, and delays it by ``2 * _REDIS_S`` at most once per ``_PAUSE_S``.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from db.ledger.claims import Claim
from db.ledger.jobs import Subject
from shared import graph
from shared.contracts import CreatePerson, PersonRef, UndoEvent
from shared.contracts.base import Contract
from shared.logs import get_logger
from shared.routing import CHANGES
from shared.settings import get_settings
from worker.forks import forks

log = get_logger(__name__)

#: Time limit of Redis to connect and to answer, and how long none is tried after a failure, seconds.
_REDIS_S, _PAUSE_S = 1.0, 10.0
#: Stages that may change who is in a video.
_ABOUT_PEOPLE = (graph.FACE.name, graph.ERASE_VIDEO.name)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What has changed, by ids."""

    user_id: str
    #: Primary key of a video whose row has perhaps not changed, but the state of its stages.
    video: str | None = None
    #: People may have changed.
    people: bool = False


def of_claim(claimed: Claim) -> Note | None:
    """The note for a job."""
    note = of_subject(claimed.subject, claimed.user_id)
    if note is not None and claimed.stage in _ABOUT_PEOPLE:
        return Note(user_id=note.user_id, video=note.video, people=True)
    return note


def of_subject(subject: Subject, user_id: str) -> Note | None:
    """The note for a video or a person; None for a switch of models, which no page watches."""
    if subject.kind == "video":
        return Note(user_id=user_id, video=subject.id)
    return Note(user_id=user_id, people=True) if subject.kind == "person" else None


def of_request(request: Contract) -> Note | None:
    """The note for a request that changed rows; one about a video has changed the video's row."""
    user_id = getattr(request, "user_id", None)
    if user_id is None:
        return None
    return Note(user_id=user_id, people=isinstance(request, (CreatePerson, PersonRef, UndoEvent)))


class _Channel:
    """Sends notes from one process."""

    def __init__(self) -> None:
        #: The process and the server that the connection is for.
        self._connected: tuple[int, str] | None = None
        self._client: Any = None
        self._paused_until_s = float("-inf")
        self._failed = False

    def send(self, note: Note, *, connect_once: bool = False) -> None:
        if time.monotonic() < self._paused_until_s:
            return
        try:
            if connect_once:
                with forks.held_off(), _connect() as client:
                    client.publish(CHANGES, _text(note))
            else:
                # A child must not use its parent's connection.
                wanted = (os.getpid(), get_settings().redis_url)
                if self._connected != wanted:
                    self._client, self._connected = _connect(), wanted
                self._client.publish(CHANGES, _text(note))
            self._failed = False
        except (RedisError, OSError, ValueError) as error:
            self._paused_until_s = time.monotonic() + _PAUSE_S
            if not self._failed:
                log.warning("no notes of changes are sent, pages are late", error=error)
            self._failed = True


_channel = _Channel()


def _connect() -> Any:
    # Once more, on a new connection: the last one may be from before a restart of Redis.
    limits = {"socket_timeout": _REDIS_S, "socket_connect_timeout": _REDIS_S, "retry": Retry(NoBackoff(), 1)}
    return redis.Redis.from_url(get_settings().redis_url, **limits)


def _text(note: Note) -> str:
    return json.dumps(asdict(note))


def publish(note: Note | None) -> None:
    """Send a note, from a process that runs jobs or answers requests; after the commit."""
    if note is not None:
        _channel.send(note)


def publish_once(note: Note | None) -> None:
    """As ``publish``, from a node's main process, which keeps no connection that a child could inherit."""
    if note is not None:
        _channel.send(note, connect_once=True)
