"""Many times more requests than the node can answer: memory stays bounded, the newest are told when to come back."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import redis

from bench.models import make_texts
from bench.online.report import Figure
from shared.client import Client
from shared.contracts import EncodeTexts
from shared.errors import Overloaded, ScenefleetError
from shared.replies import decode_reply, new_reply_key
from shared.routing import TASK_QUEUE, TEXT_EMBED
from shared.sending import Sender
from tests.support.fleet import Fleet

TIMES = 50
#: How long its callers wait, seconds.
_PATIENCE_S = 5
_STEP_S = 0.1
_RECOVERY_S = 10.0
#: What the node and Redis may take more than before, MB: a full queue and a full buffer.
_MORE_MB = 500.0
_USER = "local"


def measure(fleet: Fleet, video: Path, capacity: float, seconds: float) -> dict[str, Any]:
    """Send ``TIMES`` the capacity (texts per second) as a bare ``send_task`` does, while a video is indexed."""
    fleet.process(video, "flooded", _USER)
    before_mb = _memory_mb(fleet)
    done = _jobs_done(fleet)
    counts, stopped, peak_mb = Counter[str](), threading.Event(), before_mb
    key = new_reply_key()
    reader = threading.Thread(target=_read, args=(fleet.redis_url, key, counts, stopped), daemon=True)
    reader.start()
    template, texts, sent = _template(fleet.redis_url), make_texts(64), 0
    began_s = time.monotonic()
    with redis.Redis.from_url(fleet.redis_url) as client:
        while (passed_s := time.monotonic() - began_s) < seconds:
            due = int(passed_s * TIMES * capacity) - sent
            with client.pipeline(transaction=False) as pipe:
                for number in range(sent, sent + min(due, 2000)):
                    pipe.lpush(
                        TASK_QUEUE[TEXT_EMBED], _message(template, key, f"{number} {texts[number % 64]}")
                    )
                sent += len(pipe)
                pipe.execute()
            peak_mb = max(peak_mb, _memory_mb(fleet))
            time.sleep(_STEP_S)
    ended_s = time.monotonic()
    jobs = _jobs_done(fleet) - done
    with Client(fleet.redis_url, timeout_s=120, retries=1000) as client:
        client.embed_texts([f"after the flood {key}"])
    recovered_s = time.monotonic() - ended_s
    time.sleep(1)
    stopped.set()
    reader.join()
    return {
        "sent": sent, "seconds": seconds, "times": sent / seconds / capacity, **counts, "jobs": jobs,
        "more_mb": peak_mb - before_mb, "recovered_s": recovered_s,
    }  # fmt: skip


def _template(url: str) -> dict[str, Any]:
    """A message as Celery writes it, from a database of the same Redis that no node reads."""
    aside = url.rpartition("/")[0] + "/9"
    Sender(aside, timeout_s=_PATIENCE_S).send(
        TEXT_EMBED, EncodeTexts, {"texts": ["x"]}, reply_to=new_reply_key()
    )
    with redis.Redis.from_url(aside) as client:
        raw: Any = client.lpop(TASK_QUEUE[TEXT_EMBED])
        client.flushdb()
    found: dict[str, Any] = json.loads(raw)
    return found


def _message(template: dict[str, Any], key: str, text: str) -> str:
    number = str(uuid4())
    expires = (datetime.now(UTC) + timedelta(seconds=_PATIENCE_S)).isoformat()
    body = json.dumps([[], {"texts": [text], "encoding": "base64"}, {}])
    headers = {**template["headers"], "id": number, "root_id": number, "expires": expires}
    properties = {**template["properties"], "correlation_id": number, "delivery_tag": number, "reply_to": key}
    packed = base64.b64encode(body.encode()).decode()
    return json.dumps({**template, "body": packed, "headers": headers, "properties": properties})


def _read(url: str, key: str, counts: Counter[str], stopped: threading.Event) -> None:
    with redis.Redis.from_url(url) as client:
        while not stopped.is_set():
            items: Any = client.lpop(key, 1000)
            for item in items or ():
                counts[_kind(item)] += 1
            if not items:
                time.sleep(0.01)


def _kind(item: bytes) -> str:
    reply = decode_reply(item)
    error = reply.error if reply is not None else ScenefleetError("no reply")
    if error is None:
        return "answered"
    return "refused" if isinstance(error, Overloaded) and error.retry_after_s > 0 else "failed"


def _memory_mb(fleet: Fleet) -> float:
    """Of the text node's processes, and of Redis."""
    node = fleet.nodes["text"]
    processes = [psutil.Process(node.process.pid), *node.children]
    held = 0
    for process in processes:
        try:
            held += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    with redis.Redis.from_url(fleet.redis_url) as client:
        used: Any = client.info("memory")
    return float(held + used["used_memory"]) / 1e6


def _jobs_done(fleet: Fleet) -> int:
    return int(fleet.rows("SELECT count(*) AS number FROM jobs WHERE state = 'done'")[0]["number"])


def judge(found: dict[str, Any]) -> list[Figure]:
    return [
        Figure(f"flood of {found['seconds']:g} s: times the capacity", found["times"], least=0.8 * TIMES),
        Figure("... memory of the node and Redis, MB more", found["more_mb"], most=_MORE_MB),
        Figure("... refused with retry_after", found.get("refused", 0), least=1),
        Figure("... failed otherwise", found.get("failed", 0), most=0),
        Figure("... jobs done meanwhile", found["jobs"], least=1),
        Figure("... s until a request is answered again", found["recovered_s"], most=_RECOVERY_S),
    ]
