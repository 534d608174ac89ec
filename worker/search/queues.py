"""Asks the queues of the models on behalf of a search, and waits for their answers until its deadline.

The search keeps its slot while it waits, on one Redis list (``shared.replies``). A queue that has missed a deadline is
late: searches do without it, and one of them asks it again every few seconds, so that a model that hangs takes one slot
and not all. A search that dies with its process leaves nothing behind but a list that expires; its caller sends it again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from uuid import uuid4

import redis
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared import routing
from shared.admission import HEADER, PART_OF_ANOTHER
from shared.errors import BrokerUnavailable
from shared.nodes import ready_families
from shared.paths import hide_paths
from shared.replies import Reply, new_reply_key, wait_replies
from shared.settings import get_settings
from worker.app import app
from worker.broker.clock import fleet_clock
from worker.search.plan import Call

#: Interval at which a late queue is asked again, seconds.
AGAIN_S = 5
#: A late queue that no search has asked again counts as healthy after this time, seconds.
_LATE_S = 60
#: How long later pages of a search use the same query vectors, seconds.
PAGES_S = 900
#: Maximum age of what is known about nodes and late queues, seconds.
_KNOWN_S = 1.0
#: Keys by queue: it is late; it has just been asked again.
_LATE, _ASKED = "scenefleet:late:", "scenefleet:asked:"
_QUEUES = ("text", "vision", "rerank")

#: What a queue has answered: {"ok": its answer}, or {"error": why there is none, "class": of the error}.
Said = dict[str, Any]


class ModelQueues:
    """The queues of one Redis, as a pool child sees them. Made after the fork: it must not use its parent's connections.

    Every method raises ``BrokerUnavailable`` if Redis does not answer.
    """

    def __init__(self, redis_url: str) -> None:
        options: dict[str, Any] = {"socket_timeout": 5, "socket_connect_timeout": 3, "decode_responses": True}
        self._redis: Any = redis.Redis.from_url(redis_url, **options)
        self._ready: frozenset[str] = frozenset()
        #: Queues that have not answered any search since they missed a deadline.
        self._late: set[str] = set()
        self._known_s = float("-inf")

    def ask(self, calls: Mapping[str, Call], deadline_s: float) -> dict[str, Said]:
        """Send a task to each queue, wait at most ``deadline_s``, and return what each has answered."""
        said: dict[str, Said] = {}
        late = {"error": f"no answer in {deadline_s:g} s"}
        key, search = new_reply_key(), uuid4().hex
        with _broker_errors():
            self._look()
            deadline = time.monotonic() + deadline_s
            for queue, call in calls.items():
                family = call.task.split(".")[1]
                if family not in self._ready:
                    said[queue] = {"error": f"no {family} node is ready"}
                elif not self._may_ask(queue):
                    said[queue] = {"error": f"skipped: no answer in {deadline_s:g} s a moment ago"}
                else:
                    said[queue] = late
                    self._send(call, queue_task_id(search, queue), key, deadline_s)
            asked = {queue_task_id(search, queue): queue for queue in calls if said[queue] is late}
            for reply in wait_replies(self._redis, key, asked, deadline):
                said[asked[reply.id]] = _said(reply)
            for queue in asked.values():
                self._note(queue, answered=said[queue] is not late)
        return said

    def _look(self) -> None:
        """Look which nodes are ready and which queues are late; once a second, not for each search."""
        if time.monotonic() - self._known_s > _KNOWN_S:
            self._ready = frozenset(ready_families(self._redis))
            late = self._redis.mget([_LATE + queue for queue in _QUEUES])
            self._late = {queue for queue, value in zip(_QUEUES, late, strict=True) if value is not None}
            self._known_s = time.monotonic()

    def _may_ask(self, queue: str) -> bool:
        """Whether to ask a queue: a late one only if no search has asked it in the last seconds."""
        return queue not in self._late or bool(self._redis.set(_ASKED + queue, 1, nx=True, ex=AGAIN_S))

    def _note(self, queue: str, *, answered: bool) -> None:
        if not answered:
            self._late.add(queue)
            self._redis.set(_LATE + queue, 1, ex=_LATE_S)
            self._redis.set(_ASKED + queue, 1, ex=AGAIN_S)
        elif queue in self._late:
            self._late.discard(queue)
            self._redis.delete(_LATE + queue, _ASKED + queue)

    def _send(self, call: Call, task_id: str, key: str, deadline_s: float) -> None:
        app.send_task(
            call.task,
            kwargs=call.payload,
            task_id=task_id,
            queue=routing.TASK_QUEUE[call.task],
            expires=fleet_clock.after(deadline_s + 5),
            reply_to=key,
            ignore_result=True,
            # Its search is admitted.
            headers={HEADER: PART_OF_ANOTHER},
            retry=False,
        )

    def keep_page(self, name: str, queues: Mapping[str, Said]) -> None:
        """Keep the answers of the queues, so that later pages have the same order."""
        with _broker_errors():
            self._redis.set(_page_key(name), json.dumps(queues), PAGES_S)

    def page(self, name: str) -> dict[str, Said] | None:
        """What ``keep_page`` has kept; None: nothing any more."""
        with _broker_errors():
            found = self._redis.get(_page_key(name))
        return None if found is None else json.loads(found)


def queue_task_id(search: str, queue: str) -> str:
    """The id of the task that a search sends to a queue."""
    return f"{search}-{queue}"


def _page_key(name: str) -> str:
    return f"scenefleet:page:{name}"


def _said(reply: Reply) -> Said:
    """A reply without paths of this machine, and without the many lines of an engine's error."""
    error = reply.error
    if error is None:
        return {"ok": reply.result}
    return {"error": hide_paths(" ".join(str(error).split()))[:500], "class": reply.error_class}


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OperationalError) as error:
        raise BrokerUnavailable(
            f"Redis does not answer ({error}): is it running, is REDIS_URL right?"
        ) from error


@lru_cache(maxsize=1)
def get_queues() -> ModelQueues:
    """This process's view of the queues; only for pool children."""
    return ModelQueues(get_settings().require("redis_url"))
