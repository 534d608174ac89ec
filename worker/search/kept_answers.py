"""Whole answers of searches, given again while nothing of their user has changed.

An answer is kept with the version of the user's rows that its snapshot saw (``db.search.read_version``), and given again only if a
new snapshot shows the same version: it is what the search would find again. All of a user's answers are in one hash,
which an erasure removes (``worker/search/stored_answers.py``), and which expires.
"""

from __future__ import annotations

import hashlib
import json
import time
from functools import lru_cache
from typing import Any

import redis
from redis.exceptions import RedisError

from db import search
from shared.contracts import SearchAnswer, SearchScenes
from shared.logs import get_logger
from worker.runtime import Runtime, get_runtime
from worker.search.plan import RETRIEVERS, models_of

log = get_logger(__name__)

#: A hash of a user's answers: hash of the search -> the version, until when it is kept, and the answer.
_KEPT = "scenefleet:kept:"
#: Maximum number and size of a user's kept answers; a task's result is stored for longer than they are.
_MAX_ANSWERS, _MAX_BYTES = 64, 128 * 1024


class KeptAnswers:
    """The kept answers in one Redis; what it does not give is a miss. Only for pool children."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._ttl_s = min(runtime.settings.search_kept_s, runtime.settings.search_link_s // 4)
        url = runtime.settings.require("redis_url")
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)

    def find(self, request: SearchScenes) -> dict[str, Any] | None:
        """The kept answer of a search, as JSON, if its user's rows are as they were.

        Raises:
            DatabaseUnavailable.
        """
        if not self._may_keep(request):
            return None
        try:
            value = self._redis.hget(kept_key(request.user_id), self._name(request))
        except RedisError as error:
            log.warning("kept answers not looked up", error=error)
            return None
        if value is None:
            return None
        version, until_s, stored = value.split(b" ", 2)
        if time.time() > float(until_s):
            return None
        if search.version_now(request.user_id) != version.decode():
            return None
        found: dict[str, Any] = json.loads(stored)
        return found

    def keep(self, request: SearchScenes, found: SearchAnswer, version: str) -> None:
        """Keep a complete answer; ``version``: of the snapshot that it was read from."""
        if not self._may_keep(request) or found.degraded:
            return
        stored = found.model_dump_json().encode()
        if len(stored) > _MAX_BYTES:
            return
        key = kept_key(request.user_id)
        try:
            with self._redis.pipeline() as pipe:
                pipe.hset(
                    key, self._name(request), f"{version} {time.time() + self._ttl_s} ".encode() + stored
                )
                pipe.expire(key, self._ttl_s)
                pipe.hlen(key)
                count = pipe.execute()[-1]
            if count > _MAX_ANSWERS:
                self._redis.delete(key)
        except RedisError as error:
            log.warning("answer of a search not kept", error=error)

    def _may_keep(self, request: SearchScenes) -> bool:
        """First pages. Not what depends on a picture, on a plug-in's tables, or on the reranker."""
        other = request.cursor or request.image_key or request.filters or request.rerank
        return self._ttl_s > 0 and not other

    def _name(self, request: SearchScenes) -> str:
        """A hash of all that an answer depends on besides the user's rows: the request, the models, the settings."""
        settings = self._runtime.settings
        depends = [
            request.model_dump_json(),
            sorted(
                (kind, spec.name, spec.revision, str(spec.cutoff))
                for kind, spec in models_of(request, self._runtime).items()
            ),
            sorted(self._runtime.policy.skips.items()),
            [getattr(settings, f"search_{name}_weight") for name in RETRIEVERS],
            [settings.search_default_results, settings.search_candidates, settings.search_ef],
            [settings.search_exact_rows, settings.search_max_results, settings.storage_backend],
            [settings.search_max_depth, settings.search_cutoff],
        ]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


@lru_cache(maxsize=1)
def get_kept_answers() -> KeptAnswers:
    """This process's view of the kept answers; only for pool children."""
    return KeptAnswers(get_runtime())


def kept_key(user_id: str) -> str:
    """The key of a user's kept answers."""
    return _KEPT + user_id
