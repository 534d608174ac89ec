"""Progress for open pages: one reader of Redis per process, one read of Postgres per user, however many pages are open.

Workers publish notes without data on a Redis channel (worker/changes.py). The hub collects those of users with watchers for
``COALESCE_S``, asks ``tasks.video.changes`` what has changed since it last asked, and puts the events into the queue of each watcher
of that user. What was read is never older than what a watcher has, since the reads of a user follow one another. A lost note loses
nothing: the next read has the change, and after Redis was away every user with watchers is read again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from api.asking import Asking
from shared import routing
from shared.contracts import VideoChanges, VideoStatus, WatchVideos
from shared.errors import QuotaExceeded, ScenefleetError
from shared.logs import get_logger

log = get_logger(__name__)

#: How long notes are collected before a read, at least.
COALESCE_S = 0.2
#: A user is read this often without a note, too: while videos are in progress, and otherwise.
REFRESH_S, IDLE_S = 20.0, 120.0
#: A stream that has nothing to say sends a comment, so that neither end or a proxy takes it for dead.
HEARTBEAT_S = 15.0
#: When a browser connects again after its stream has ended.
RETRY_MS = 2000
#: Watchers of one process; one user has at most half of them.
MAX_WATCHERS = 2000
#: Events that wait for a watcher that does not read them; then it gets a snapshot instead.
MAX_QUEUED = 64
#: Reads at once, over all users.
_MAX_READS = 4
#: Videos that a read names, and different ``Last-Event-ID`` values served by reads of their own (others get a snapshot).
_MAX_KEYS, _MAX_RESUMED = 100, 20
_PAUSE_S, _PAUSE_MAX_S = 0.5, 5.0
#: Videos whose last sent state is remembered per user; more are sent again.
_MAX_SHOWN = 5000
_PIECE_BYTES = 32 * 1024
_IN_PROGRESS = ("uploaded", "processing")


class Watcher:
    """One open stream, and the events that wait for it."""

    def __init__(self, user_id: str, since: str | None) -> None:
        self.user_id, self.since = user_id, since
        self.behind = self.closed = False
        self._queue: deque[bytes] = deque()
        self._arrived = asyncio.Event()

    def put(self, events: bytes) -> None:
        """Queue encoded events, or forget all of them if the watcher does not read."""
        if len(self._queue) >= MAX_QUEUED:
            self._queue.clear()
            self.behind = True
        if not self.behind:
            self._queue.append(events)
        self._arrived.set()

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self._arrived.set()

    async def take(self) -> bytes:
        """The queued events; a comment if there is none for ``HEARTBEAT_S``. Ends early if the stream is closed."""
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._arrived.wait()
        except TimeoutError:
            return b":\n\n"
        self._arrived.clear()
        taken = b"".join(self._queue)
        self._queue.clear()
        return taken


class _Audience:
    """The watchers of one user, and what they have been told."""

    def __init__(self) -> None:
        self.watchers: set[Watcher] = set()
        #: Watchers that wait for a snapshot, or for what they have missed.
        self.joining: list[Watcher] = []
        self.wake = asyncio.Event()
        #: Of the last read; None: none yet.
        self.as_of: str | None = None
        self.last_event_id = 0
        #: Video id -> hash of the state that was sent last; None: watchers may have different ones.
        self.shown: dict[str, int | None] = {}
        self.in_progress: set[str] = set()
        #: Noted since the last read: videos, people, that notes may be missing.
        self.keys: set[str] = set()
        self.people = self.missed = self.noted = False


class Hub:
    """The watchers of this process."""

    def __init__(self, asking: Asking, redis_url: str, stopping: asyncio.Event) -> None:
        """``stopping``: is set when the server begins to stop; the streams end then, so that it can."""
        self._asking, self._redis_url, self._stopping = asking, redis_url, stopping
        self._audiences: dict[str, _Audience] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reads = asyncio.Semaphore(_MAX_READS)
        self._count = 0

    def join(self, user_id: str, since: str | None) -> Watcher:
        """Add a watcher, which first gets a snapshot, or what has changed ``since`` its last event.

        Raises:
            QuotaExceeded: there are too many.
        """
        audience = self._audiences.get(user_id)
        own = 0 if audience is None else len(audience.watchers)
        if self._count >= MAX_WATCHERS or own >= MAX_WATCHERS // 2:
            raise QuotaExceeded(
                f"this API process has {self._count} open event streams: close some, or try again later"
            )
        watcher = Watcher(user_id, since)
        if not self._tasks:
            self._start(self._listen())
            self._start(self._end_streams())
        if audience is None:
            audience = self._audiences[user_id] = _Audience()
            self._start(self._serve(user_id, audience))
        audience.watchers.add(watcher)
        self._count += 1
        self._greet(audience, watcher)
        if self._stopping.is_set():
            watcher.close()
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """Remove a watcher; the user's last one ends the user's reads."""
        audience = self._audiences.get(watcher.user_id)
        if audience is not None and watcher in audience.watchers:
            audience.watchers.remove(watcher)
            self._count -= 1
            audience.wake.set()

    async def events(self, watcher: Watcher) -> AsyncIterator[bytes]:
        """The stream of a watcher, until it is closed."""
        yield f"retry: {RETRY_MS}\n\n".encode()
        while not watcher.closed:
            taken = await watcher.take()
            # The server may copy what a client does not read: little at a time.
            for first in range(0, len(taken), _PIECE_BYTES):
                yield taken[first : first + _PIECE_BYTES]
            if watcher.behind:
                watcher.behind, watcher.since = False, None
                self._greet(self._audiences[watcher.user_id], watcher)

    async def stop(self) -> None:
        """End every task."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _end_streams(self) -> None:
        """Their clients connect again, perhaps to another process, and miss nothing."""
        await self._stopping.wait()
        for audience in self._audiences.values():
            for watcher in audience.watchers:
                watcher.close()

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @staticmethod
    def _greet(audience: _Audience, watcher: Watcher) -> None:
        audience.joining.append(watcher)
        audience.wake.set()

    # --- notes

    async def _listen(self) -> None:
        """Read notes for ever; after each new subscription what was missed meanwhile."""
        failed, pause_s = False, _PAUSE_S
        options: dict[str, Any] = {"socket_connect_timeout": 3, "health_check_interval": 10}
        while True:
            try:
                async with (
                    redis.asyncio.Redis.from_url(self._redis_url, **options) as client,
                    client.pubsub() as channel,
                ):
                    await channel.subscribe(routing.CHANGES)
                    while True:
                        message = await channel.get_message(timeout=5)
                        if message is not None and message["type"] == "subscribe":
                            # The client also subscribes again by itself, on a new connection.
                            failed, pause_s = False, _PAUSE_S
                            self._note_gap()
                        elif message is not None and message["type"] == "message":
                            self._note(message["data"])
            except (RedisError, OSError) as error:
                if not failed:
                    log.warning("no notes of changes from Redis, pages are late", error=error)
                failed = True
            except Exception:
                # Without this task every stream of the process would be late.
                log.exception("no notes of changes from Redis, pages are late")
            await asyncio.sleep(pause_s)
            pause_s = min(_PAUSE_MAX_S, 2 * pause_s)

    def _note(self, data: bytes) -> None:
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            note = json.loads(data)
            audience = self._audiences.get(note.get("user_id"))
            if audience is not None:
                if isinstance(key := note.get("video"), str):
                    audience.keys.add(key)
                audience.people |= note.get("people") is True
                audience.noted = True
                audience.wake.set()

    def _note_gap(self) -> None:
        for audience in self._audiences.values():
            # The first read of an audience has everything.
            if audience.as_of is not None:
                audience.missed = True
                audience.wake.set()

    # --- reads

    async def _serve(self, user_id: str, audience: _Audience) -> None:
        """Read what has changed for one user, as long as the user has watchers; one read after the other."""
        pause_s, failed, took_s = _PAUSE_S, False, 0.0
        while audience.watchers:
            try:
                async with asyncio.timeout(REFRESH_S if audience.in_progress else IDLE_S):
                    await audience.wake.wait()
            except TimeoutError:
                # A note may be lost; those in progress are read if they are few.
                audience.noted, audience.missed = True, len(audience.in_progress) <= _MAX_KEYS
            if not audience.joining:
                # A fleet that answers slowly has other work.
                await asyncio.sleep(min(max(COALESCE_S, 3 * took_s), _PAUSE_MAX_S))
            audience.wake.clear()
            began_s = time.monotonic()
            try:
                await self._welcome(user_id, audience)
                if audience.noted or audience.missed or audience.people:
                    await self._update(user_id, audience)
            except ScenefleetError as error:
                if not failed:
                    log.warning("changes not read, tried again", user_id=user_id, error=error)
            except Exception:
                # Without this task the user's streams would stand still.
                log.exception("changes not read, tried again", user_id=user_id)
            else:
                pause_s, failed, took_s = _PAUSE_S, False, time.monotonic() - began_s
                continue
            failed = True
            audience.wake.set()
            await asyncio.sleep(pause_s)
            pause_s = min(_PAUSE_MAX_S, 2 * pause_s)
        del self._audiences[user_id]

    async def _ask(self, user_id: str, since: str | None, keys: list[str] | None = None) -> VideoChanges:
        payload = {"user_id": user_id, "since": since, "keys": keys}
        async with self._reads:
            return await self._asking.ask(routing.VIDEO_CHANGES, WatchVideos, payload, VideoChanges)

    async def _welcome(self, user_id: str, audience: _Audience) -> None:
        """Send watchers that have come a snapshot, or what they have missed; those with the same last event share a read."""
        while audience.joining:
            groups: dict[str | None, list[Watcher]] = {}
            for watcher in audience.joining:
                since = watcher.since if watcher.since in groups or len(groups) < _MAX_RESUMED else None
                groups.setdefault(since, []).append(watcher)
            for since, watchers in groups.items():
                answer = await self._ask(user_id, since)
                if answer.snapshot:
                    events = _snapshot(answer)
                else:
                    changes = [*map(_video, answer.videos), *map(_gone, answer.deleted), _people(answer)]
                    events = _encode(changes, answer.as_of)
                for watcher in watchers:
                    audience.joining.remove(watcher)
                    watcher.put(events)
                self._remember_greeting(audience, answer)

    @staticmethod
    def _remember_greeting(audience: _Audience, answer: VideoChanges) -> None:
        states = {status.video_id: hash(_json(status)) for status in answer.videos}
        if audience.as_of is None:
            audience.as_of, audience.last_event_id, audience.shown = (
                answer.as_of,
                answer.last_event_id,
                dict(states),
            )
        else:
            # The others have not been told this state, and these not the earlier one.
            others = {name: None for name, state in states.items() if audience.shown.get(name) != state}
            audience.shown.update(others)
        audience.in_progress |= {status.video_id for status in answer.videos if status.state in _IN_PROGRESS}

    async def _update(self, user_id: str, audience: _Audience) -> None:
        """Send every watcher what has changed since the last read."""
        missed, people = audience.missed, audience.people
        keys = sorted(audience.keys)[:_MAX_KEYS]
        audience.keys -= set(keys)
        audience.missed = audience.people = audience.noted = False
        if audience.keys:
            audience.noted = True
            audience.wake.set()
        try:
            answer = await self._ask(user_id, audience.as_of, None if missed else keys)
        except BaseException:
            audience.missed, audience.people = True, audience.people or people
            raise
        audience.as_of = answer.as_of
        if answer.snapshot:
            audience.shown = {status.video_id: hash(_json(status)) for status in answer.videos}
            audience.in_progress = {
                status.video_id for status in answer.videos if status.state in _IN_PROGRESS
            }
            events = _snapshot(answer)
        else:
            changes = list(self._news(audience, answer))
            if people or answer.last_event_id != audience.last_event_id:
                changes.append(_people(answer))
            events = _encode(changes, answer.as_of) if changes else b""
        audience.last_event_id = answer.last_event_id
        # Those that wait for their greeting get this in it.
        for watcher in audience.watchers.difference(audience.joining) if events else ():
            watcher.put(events)

    @staticmethod
    def _news(audience: _Audience, answer: VideoChanges) -> Iterable[tuple[str, str]]:
        """Events of videos whose state is not the one that was sent last."""
        events = [(status.video_id, status.state, _video(status)) for status in answer.videos]
        events += [(name, "deleted", _gone(name)) for name in answer.deleted]
        if len(audience.shown) > _MAX_SHOWN:
            audience.shown.clear()
        for name, state, event in events:
            (audience.in_progress.add if state in _IN_PROGRESS else audience.in_progress.discard)(name)
            if audience.shown.get(name) != hash(event[1]):
                audience.shown[name] = hash(event[1])
                yield event


def _json(status: VideoStatus) -> str:
    return status.model_dump_json()


def _video(status: VideoStatus) -> tuple[str, str]:
    return "video", _json(status)


def _gone(video_id: str) -> tuple[str, str]:
    return "video", json.dumps({"video_id": video_id, "state": "deleted"})


def _people(answer: VideoChanges) -> tuple[str, str]:
    return "people", json.dumps({"last_event_id": answer.last_event_id})


def _snapshot(answer: VideoChanges) -> bytes:
    return _encode(
        [("snapshot", answer.model_dump_json(include={"as_of", "videos", "last_event_id"}))], answer.as_of
    )


def _encode(events: list[tuple[str, str]], as_of: str) -> bytes:
    """Events of one read. Only the last has the id: a client that got a part of them gets all of them again."""
    blocks = [f"event: {name}\ndata: {data}\n" for name, data in events]
    blocks[-1] = f"id: {as_of}\n{blocks[-1]}"
    return "\n".join([*blocks, ""]).encode()
