"""Celery events of our own, beside ``task-*`` and ``worker-*``: ``model-loaded`` and ``embedding-generated``.

A pool child notes them, and a thread sends them (worker/child.py): neither a load nor a request waits for Redis. They are
for watching (``app.events.Receiver``, docs/events.md); if Redis is away, or too many wait, some are lost.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import current_app
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.logs import get_logger
from worker.runtime import get_runtime

log = get_logger(__name__)

MODEL_LOADED, EMBEDDING_GENERATED = "model-loaded", "embedding-generated"
_MOST_WAITING = 1000
_waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST_WAITING)


def model_loaded(state: dict[str, Any]) -> None:
    """Note that a model was loaded or warmed up, with the fields of ``ModelState`` that say how."""
    fields = {
        "model": state["name"],
        "family": state.get("family"),
        "device": state.get("device"),
        "memory_bytes": state.get("memory_bytes"),
        "load_ms": _ms(state.get("load_s")),
        "warm_up_ms": _ms(state.get("warm_up_s")),
    }
    _waiting.append((MODEL_LOADED, fields))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def embedding_generated(model: str, dimension: int, latency_ms: float, **ids: str | int) -> None:
    """Note that vectors were made. ``ids``: of the request or the job."""
    fields = {"model": model, "dimension": dimension, "latency_ms": latency_ms, **ids}
    _waiting.append((EMBEDDING_GENERATED, fields))


@contextmanager
def embedding(model: str, dimension: int, items: int, *, job_id: int) -> Iterator[None]:
    """Note what the block makes, and log it with the ids of the job."""
    began_s = time.monotonic()
    yield
    latency_ms = round(1000 * (time.monotonic() - began_s), 1)
    log.info("embeddings made", model=model, dimension=dimension, items=items, latency_ms=latency_ms)
    if items:
        embedding_generated(model, dimension, latency_ms, job_id=job_id, items=items)


def flush() -> None:
    """Send what was noted; what can't be sent is dropped."""
    if not _waiting:
        return
    sending = [_waiting.popleft() for _ in range(len(_waiting))]
    try:
        with current_app.events.default_dispatcher(
            hostname=get_runtime().owner.partition(":")[0]
        ) as dispatcher:
            for kind, fields in sending:
                dispatcher.send(kind, **fields)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("events not sent", count=len(sending), error=error)
