"""Requests while the process that computes them is killed: each is answered once, or fails with an error that says to try again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import redis

from bench.models import make_texts
from bench.online.report import Figure
from shared.contracts import EncodeTexts
from shared.errors import Outage, Retryable
from shared.replies import decode_reply, new_reply_key
from shared.routing import TEXT_EMBED
from shared.sending import Sender
from tests.support.fleet import Fleet, eventually

CALLERS = 64
#: Of each request. A process that was killed is back after some seconds, with its model.
_DEADLINE_S = 120.0
#: After the last answer: a second one would have come by then.
_QUIET_S = 3.0


def measure(fleet: Fleet, requests: int, kills: int) -> dict[str, Any]:
    """Send all of them from ``CALLERS`` threads, and kill the text node's child at even distances."""
    sender, counts, lock = Sender(fleet.redis_url, timeout_s=_DEADLINE_S), Counter[str](), threading.Lock()
    texts = make_texts(512)
    numbers = iter(range(requests))
    failed: list[Exception] = []

    def call() -> None:
        key, asked = new_reply_key(), set()
        with redis.Redis.from_url(fleet.redis_url, socket_timeout=_DEADLINE_S + 10) as client:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                payload = {"texts": [f"{number} {texts[number % len(texts)]}"], "encoding": "base64"}
                sent = sender.send(TEXT_EMBED, EncodeTexts, payload, reply_to=key)
                asked.add(sent)
                said = _next(client, key, asked, counts, lock)
                with lock:
                    counts[said] += 1
            ends_s = time.monotonic() + _QUIET_S
            while time.monotonic() < ends_s:
                if client.lpop(key) is not None:
                    with lock:
                        counts["twice"] += 1
                time.sleep(0.1)

    def caught() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - it is raised below
            failed.append(error)

    threads = [threading.Thread(target=caught, daemon=True) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    killed = 0
    while killed < kills and any(thread.is_alive() for thread in threads) and not failed:
        ended = counts["answered"] + counts["retryable"]
        if ended >= (killed + 1) * requests // (kills + 1) and fleet.kill_child("text"):
            killed += 1
            eventually(lambda: fleet.nodes["text"].children, within_s=60, what="there is a new child")
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return {**counts, "requests": requests, "killed": killed, "equal_calls": _equal(fleet)}


def _next(client: Any, key: str, asked: set[str], counts: Counter[str], lock: Any) -> str:
    """What became of the request that was sent last; ``asked`` has only that one."""
    deadline_s = time.monotonic() + _DEADLINE_S
    while (left_s := deadline_s - time.monotonic()) > 0:
        found = client.blpop([key], timeout=left_s)
        reply = None if found is None else decode_reply(found[1])
        if reply is None:
            continue
        if reply.id not in asked:
            with lock:
                counts["twice"] += 1
            continue
        asked.clear()
        if reply.error is None:
            return "answered"
        return "retryable" if isinstance(reply.error, (Retryable, Outage)) else "failed"
    asked.clear()
    return "no answer"


def _equal(fleet: Fleet) -> int:
    """Of a thousand equal texts, each in a request of its own: those for which the model was called."""
    sender, key = Sender(fleet.redis_url, timeout_s=_DEADLINE_S), new_reply_key()
    left = {
        sender.send(TEXT_EMBED, EncodeTexts, {"texts": [f"the same {key}"]}, reply_to=key)
        for _ in range(1000)
    }
    called = 0
    with redis.Redis.from_url(fleet.redis_url, socket_timeout=_DEADLINE_S + 10) as client:
        while left:
            found = client.blpop([key], timeout=_DEADLINE_S)
            reply = None if found is None else decode_reply(found[1])
            if reply is None or reply.error is not None:
                raise RuntimeError(f"an equal text was not answered: {reply}")
            left.discard(reply.id)
            called += 1 - reply.result["cached"]
    return called


def judge(found: dict[str, Any]) -> list[Figure]:
    requests = found["requests"]
    ended = found.get("answered", 0) + found.get("retryable", 0)
    return [
        Figure(f"{requests} requests, child killed {found['killed']} times: answered or retryable", ended, least=requests),
        Figure("... of them answered", found.get("answered", 0)),
        Figure("... failed otherwise, or not answered before the deadline", requests - ended, most=0),
        Figure("... answered twice", found.get("twice", 0), most=0),
        Figure("1000 equal texts: calls of the model", found["equal_calls"], most=1),
    ]  # fmt: skip
