"""Erasing a person out of a large archive whose storage answers slowly: how long, how many calls, the longest transaction.

The archive is made up: published scenes of one user with a sidecar each, in a storage in memory that takes ``--call-ms``
for every call (a listing: every 1,000 keys; a delete: every 1,000 keys), as an S3 server does. The person is seen in
``--seen`` of them. What is measured are the jobs of the ledger, ``erase_person`` and ``rewrite_sidecars``, run one after the other by the
code a media node runs, from the request to the receipt; pauses between them, in which others work, are left out.
Real Postgres and Redis. Beside it: what reading every sidecar of the user would take, one call after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from bench import OUT
from bench.archive import write_archive
from bench.servers import DATABASE, servers
from db.engine import get_engine, make_engine, reading, set_engine, transact
from db.people import erasure, registry
from db.vectors import ensure_model
from shared.contracts import CreatePerson
from shared.errors import ObjectMissing
from shared.settings import get_settings
from shared.storage import Bucket, ObjectInfo, ObjectStat
from shared.storage.local import LocalStorage
from shared.storage.objects import StorageConfig

USER, PERSON = "bench", "17"
PER_VIDEO = 500
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class SlowStorage(LocalStorage):
    """Objects in memory behind calls that take a while."""

    def __init__(self, folder: Path, call_s: float) -> None:
        super().__init__(StorageConfig(backend="local", root=folder))
        self.call_s = call_s
        self.objects: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._sorted: list[str] | None = None

    def call(self, what: str) -> None:
        with self._lock:
            self.calls[what] += 1
        time.sleep(self.call_s)

    def put_bytes(self, bucket: Bucket, key: str, data: bytes, content_type: str) -> None:
        self.call("put")
        with self._lock:
            self.objects[key] = data
            self._sorted = None

    def get_bytes(self, bucket: Bucket, key: str, **options: Any) -> bytes:
        self.call("get")
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectMissing(f"no object {key}") from None

    def stat(self, bucket: Bucket, key: str) -> ObjectStat:
        self.call("stat")
        return ObjectStat(size_bytes=len(self.objects[key]), modified_at=EPOCH)

    def list(self, bucket: Bucket, prefix: str) -> Iterator[ObjectInfo]:
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self.objects)
            keys = self._sorted
        self.call("list")
        for number, place in enumerate(range(bisect_left(keys, prefix), len(keys)), 1):
            if not keys[place].startswith(prefix):
                return
            if number % 1000 == 0:
                self.call("list")
            yield ObjectInfo(key=keys[place], size_bytes=0, modified_at=EPOCH)

    def delete(self, bucket: Bucket, key: str) -> None:
        self.delete_many(bucket, [key])

    def delete_many(self, bucket: Bucket, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), 1000):
            self.call("delete")
            with self._lock:
                for key in keys[first : first + 1000]:
                    self.objects.pop(key, None)
                self._sorted = None


def fill(storage: SlowStorage, person: str, scenes: int, seen: int) -> None:
    """Publish the archive; the person is in every so many-th scene."""
    step = max(1, scenes // max(1, seen))
    model = transact(
        lambda s: ensure_model(s, name="face", revision="1", family="face", dim=4, metric="cosine")
    ).model_id
    write_archive(person, scenes, user=USER, model=model, prefix="v", per_video=PER_VIDEO, step=step)
    there = json.dumps({"people": [{"person_id": PERSON, "name": "Ann"}]}).encode()
    # Her id stands there, too, as something else.
    not_there = json.dumps(
        {"people": [{"person_id": "b", "name": "Bea"}], "start_s": 17, PERSON: PERSON}
    ).encode()
    with reading() as session:
        rows = session.execute(
            text("SELECT s.sidecar_key, p.scene_id FROM scenes s LEFT JOIN scene_people p USING (scene_id)")
        )
        storage.objects = {row.sidecar_key: not_there if row.scene_id is None else there for row in rows}


def skip_pauses(session: Session) -> None:
    """Let what waits run now."""
    session.execute(text("UPDATE jobs SET not_before = now() WHERE state = 'queued'"))
    session.execute(text("UPDATE queue_usage SET waiting = true, waiting_since = now(), due_at = NULL"))


def measure(storage: SlowStorage, redis_url: str) -> dict[str, Any]:
    """Erase the person. Returns figures."""
    # They read the settings when they are imported.
    from celery import Celery
    from celery.backends.redis import RedisBackend

    from worker import reconcile, runner
    from worker.app import app
    from worker.runtime import get_runtime

    Celery.backend = RedisBackend(app=app, url=redis_url)
    runner.notify = lambda wake_ups: 0
    runtime = get_runtime()
    runtime.owner = "bench:1:0:1"
    runtime.__dict__["storage"] = storage
    lasted, began_at = [0.0], {}
    engine = get_engine()
    event.listen(engine, "begin", lambda c: began_at.__setitem__(id(c), time.monotonic()))
    event.listen(engine, "commit", lambda c: lasted.append(time.monotonic() - began_at[id(c)]))
    began = time.monotonic()

    def begin(session: Session) -> None:
        erasure.begin(session, registry.lock(session, PERSON, USER), runtime.policy)

    transact(begin)
    request_s = time.monotonic() - began
    jobs_s: Counter[str] = Counter()
    longest_s = 0.0
    runs: Counter[str] = Counter()
    while True:
        reconcile.stale_sidecars()
        started = time.monotonic()
        done = runner.work("housekeeping", runtime)
        took_s = time.monotonic() - started
        if "idle" in done:
            with reading() as session:
                person = registry.view(session, registry.get(session, PERSON, USER))
            if person.state == "erased":
                break
            transact(skip_pauses)
            continue
        jobs_s[done["stage"]] += took_s
        runs[done["stage"]] += 1
        longest_s = max(longest_s, took_s)
    total_s = time.monotonic() - began
    left = sum(
        b'"person_id": "17"' in data or b'"person_id":"17"' in data for data in storage.objects.values()
    )
    return {
        "total_s": round(total_s, 1),
        "request_s": round(request_s, 3),
        "jobs_s": {stage: round(took, 1) for stage, took in jobs_s.items()},
        "jobs": dict(runs),
        "longest_job_s": round(longest_s, 1),
        "longest_transaction_s": round(max(lasted), 2),
        "calls": dict(storage.calls),
        "sidecars that name her": left,
        "receipt": person.receipt,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.erasure", description=__doc__)
    parser.add_argument("--sidecars", type=int, default=500_000)
    parser.add_argument("--seen", type=int, default=5_000)
    parser.add_argument("--call-ms", type=float, default=3.0)
    parser.add_argument("--quick", action="store_true", help="5,000 sidecars: only that it works")
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    sidecars, seen = (5_000, 200) if options.quick else (options.sidecars, options.seen)
    with servers() as (postgres, redis_server, folder):
        url = postgres.url(DATABASE)
        os.environ |= {"POSTGRES_URL": url, "REDIS_URL": redis_server.url, "SCENEFLEET_HOME": str(folder)}
        get_settings.cache_clear()
        set_engine(make_engine(url.replace("postgresql://", "postgresql+psycopg://")))
        try:
            storage = SlowStorage(folder, options.call_ms / 1000)
            request = CreatePerson(user_id=USER, name="Ann", person_id=PERSON)
            transact(lambda session: registry.create(session, request))
            with reading() as session:
                person = registry.get(session, PERSON, USER).person_id
            fill(storage, person, sidecars, seen)
            result: dict[str, Any] = {"sidecars": sidecars, "seen": seen, "call_ms": options.call_ms}
            result |= measure(storage, redis_server.url)
            result["reading all, one by one, s"] = sidecars * options.call_ms / 1000
            result["load_average"] = os.getloadavg()
        finally:
            get_engine().dispose()
            set_engine(None)
    print(json.dumps(result, indent=2))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "erasure.json").write_text(json.dumps(result, indent=2))
    good = result["sidecars that name her"] == 0 and result["receipt"]["state"] == "complete"
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
