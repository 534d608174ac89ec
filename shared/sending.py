"""Sends requests to the fleet as Celery tasks, and reads the answers that Celery stores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from celery import Celery
from celery.states import EXCEPTION_STATES, READY_STATES
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool
from pydantic import BaseModel
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from . import admission, errors, routing
from .broker import HidingAMQP, broker_config
from .contracts.base import Contract, parse
from .fleet_clock import SENT_AT, FleetClock
from .replies import Reply

R = TypeVar("R", bound=BaseModel)

#: Connections on which one client sends at the same time.
SENDERS = 8
#: How long one attempt to send waits for a Redis that refuses connections, as during a restart, and its pauses, seconds.
_CONNECTING = {"connect_retries_timeout": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5}
#: Time limit of Redis to connect and to answer, seconds.
TIME_LIMITS: dict[str, Any] = {"socket_connect_timeout": 3, "socket_timeout": 10}


class Sent(NamedTuple):
    """A request on its way."""

    id: str
    #: The list to which its answer is appended, and the key under which it is stored.
    reply_to: str
    answer_key: str


class Sender:
    """Sends requests to one fleet; safe to share between threads, and with the children of a fork."""

    def __init__(self, redis_url: str, *, broker_url: str = "", timeout_s: float = 30.0) -> None:
        self.timeout_s = timeout_s
        self._redis_url, self._broker_url = redis_url, broker_url
        self._open()
        self._pid = os.getpid()

    def _open(self) -> None:
        """Make what belongs to one process: connections, and locks that another thread may hold during a fork."""
        self._app = Celery("scenefleet-client", amqp=HidingAMQP, set_as_current=False)
        config = broker_config(self._redis_url, broker_url=self._broker_url)
        config["broker_transport_options"] |= _CONNECTING | ({} if self._broker_url else TIME_LIMITS)
        # One store for all threads: otherwise each would make its own, which subscribes.
        self._app.conf.update(config, result_backend_thread_safe=True)
        self._app.backend.on_task_call = _not_subscribed
        self._clock = FleetClock(self._ask_time)
        # Its own: Celery shares its pools with every app of this process that has the same URL.
        self._producers = ProducerPool(self._app.connection_for_write().Pool(SENDERS), SENDERS)

    def _close(self) -> None:
        self._producers.force_close_all()
        self._producers.connections.force_close_all()
        self._app.close()

    def _ask_time(self) -> Any:
        # Asked too rarely for a connection that stays.
        with Redis.from_url(self._redis_url, retry=Retry(NoBackoff(), 0), **TIME_LIMITS) as client:
            return client.time()

    def _own(self) -> None:
        """Called before connections are used."""
        if self._pid != os.getpid():
            # Two threads may do so at once: the later one's are kept.
            self._open()
            self._pid = os.getpid()

    def send(
        self,
        task: str,
        contract: type[Contract],
        kwargs: dict[str, Any],
        *,
        task_id: str | None = None,
        reply_to: str | None = None,
        expires_s: float | None = None,
        lease: str | None = None,
    ) -> str:
        """Check a request and send it; return the id under which its answer is stored.

        Args:
            task_id: the id to use, so that a caller can look out for the answer before it sends.
            reply_to: a reply list to which the answer is appended, too (replies.py).
            expires_s: how long workers may still begin it; default: the client's ``timeout_s``.
            lease: that of its reservation (admission.py). Without one it shares the limit of all such requests.
        """
        parse(contract, kwargs)
        return self.publish(
            task, kwargs, task_id=task_id, reply_to=reply_to, expires_s=expires_s, lease=lease
        )

    def publish(
        self,
        task: str,
        kwargs: dict[str, Any],
        *,
        task_id: str | None = None,
        reply_to: str | None = None,
        expires_s: float | None = None,
        lease: str | None = None,
    ) -> str:
        """``send``, for a request that has been checked."""
        self._own()
        with broker_errors(), self._producers.acquire(block=True) as producer:
            result = self._app.send_task(
                task,
                kwargs=kwargs,
                queue=routing.TASK_QUEUE[task],
                expires=self._clock.after(self.timeout_s if expires_s is None else expires_s),
                headers={SENT_AT: self._clock.now(), **({admission.HEADER: lease} if lease else {})},
                retry=False,
                producer=producer,
                **({"task_id": task_id} if task_id else {}),
                **({"reply_to": reply_to} if reply_to else {}),
            )
        # Nothing to unsubscribe when the handle is collected, possibly after Redis has stopped.
        result.backend = None
        return str(result.id)

    def answer_key(self, task_id: str) -> str:
        """The Redis key that will hold the answer; also the channel on which it is published."""
        key: bytes = self._app.backend.get_key_for_task(task_id)
        return key.decode()

    def decode(self, stored: bytes | str, answer: type[R]) -> R | None:
        """Read what is stored under ``answer_key``; None: the task has not ended. Raises the error of the answer."""
        meta: dict[str, Any] = self._app.backend.decode_result(stored)
        return _read(meta, answer) if meta["status"] in READY_STATES else None

    def read(self, answer: type[R], reply: Reply | None, stored: bytes | str | None) -> R | None:
        """The same, from an item of a reply list or else from the store."""
        if reply is None:
            return None if stored is None else self.decode(stored, answer)
        if reply.error is not None:
            raise reply.error
        return answer.model_validate(reply.result, strict=False)

    def no_answer(self, task: str) -> errors.Outage:
        """The error for an answer that did not come in time."""
        node = routing.TASK_QUEUE[task].partition(".")[0]
        return errors.Outage(
            f"no answer to {task} in {self.timeout_s:g} s: is a `{node}` node running? Sending again is harmless"
        )


@contextmanager
def broker_errors() -> Iterator[None]:
    """Raise ``BrokerUnavailable`` for any error of a connection to Redis."""
    try:
        yield
    except (OperationalError, RedisError, OSError) as error:
        raise broker_unavailable(error) from error


def broker_unavailable(error: Exception) -> errors.BrokerUnavailable:
    """The error for one of a connection to Redis."""
    return errors.BrokerUnavailable(f"Redis does not answer ({error}): is it running, is REDIS_URL right?")


def _not_subscribed(producer: Any, task_id: str) -> None:
    """Answers come by reply lists; Celery's subscription can't be shared between threads."""


def _read(meta: Mapping[str, Any], answer: type[R]) -> R:
    """The answer of a task that has ended; raises the error it has ended with."""
    if meta["status"] in EXCEPTION_STATES:
        raise _known(meta["result"])
    return answer.model_validate(meta["result"], strict=False)


def _known(error: object) -> Exception:
    """Return the scenefleet error for an error rebuilt by the result backend."""
    return Reply(id="", error_class=type(error).__name__, message=str(error)).error or errors.Retryable("")
