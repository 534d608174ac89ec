"""A video of many scenes, from its split to its publication: the longest transaction, and how late its lease was renewed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, update
from sqlalchemy.orm import Session

from db import videos
from db.engine import get_engine, transact
from db.expressions import NOW
from db.ledger import attempts, video_runs
from db.ledger.claims import Claim, claim
from db.ledger.policy import RunPolicy
from db.tables import Job
from shared.contracts import ProcessVideo
from worker.runtime import Runtime
from worker.stages import sidecar, split
from worker.stages.context import StageContext

LEASE_S = 60.0
_POLICY = RunPolicy(skips={}, max_failures=3, tmp_ttl_s=0.0)
_HEARTBEAT_S = 0.2


@dataclass
class Figures:
    """Seconds."""

    longest_transaction_s: float = 0.0
    #: The longest time that a renewal of the lease took.
    longest_beat_s: float = 0.0
    total_s: float = 0.0


@contextmanager
def _timed(figures: Figures) -> Iterator[None]:
    """Note the longest transaction of this thread."""
    began: dict[Any, float] = {}
    thread = threading.get_ident()

    def begin(connection: Any) -> None:
        if threading.get_ident() == thread:
            began[connection] = time.monotonic()

    def end(connection: Any) -> None:
        if connection in began:
            took_s = time.monotonic() - began.pop(connection)
            figures.longest_transaction_s = max(figures.longest_transaction_s, took_s)

    engine = get_engine()
    listeners = (("begin", begin), ("commit", end), ("rollback", end))
    for name, act in listeners:
        event.listen(engine, name, act)
    try:
        yield
    finally:
        for name, act in listeners:
            event.remove(engine, name, act)


@contextmanager
def _lease(claimed: Claim, figures: Figures) -> Iterator[None]:
    """Renew the lease, as a worker's thread does."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_HEARTBEAT_S):
            began = time.monotonic()
            transact(lambda session: attempts.beat(session, claimed, 0.5, LEASE_S))
            figures.longest_beat_s = max(figures.longest_beat_s, time.monotonic() - began)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(runtime: Runtime, folder: Path, scenes: int) -> dict[str, Figures]:
    """Split, and publish, a video of so many scenes, in an empty database. Stage -> figures."""
    request = ProcessVideo(video_id="long", user_id="u", storage_key="uploads/u/long/a.mp4")
    transact(lambda session: videos.accept(session, request, _POLICY))
    keyframe = {"ordinal": 0, "key": "k", "ts_s": 0.0, "width": 640, "height": 360}
    rows = [
        {"idx": n, "start_s": float(n), "end_s": n + 1.0, "kind": "cut", "keyframes": [{**keyframe, "ts_s": float(n)}]}
        for n in range(scenes)
    ]  # fmt: skip
    found = {"split": Figures(), "sidecar": Figures()}

    claimed = _claim()
    with _timed(found["split"]), _lease(claimed, found["split"]):
        began = time.monotonic()
        split._write_scenes(_context(runtime, folder, claimed), rows)
        _finish(claimed, lambda session: None, {"audio_key": None, "windows": []})
        found["split"].total_s = time.monotonic() - began
    # The models find nothing.
    done = {"state": "done", "finished_at": NOW, "progress": 1.0}
    transact(lambda session: session.execute(update(Job).where(Job.state == "queued").values(**done)))
    transact(_advance)
    claimed = _claim()
    with _timed(found["sidecar"]), _lease(claimed, found["sidecar"]):
        began = time.monotonic()
        outcome = sidecar.run(_context(runtime, folder, claimed))
        _finish(claimed, outcome.write, dict(outcome.result))
        found["sidecar"].total_s = time.monotonic() - began
    return found


def _context(runtime: Runtime, folder: Path, claimed: Claim) -> StageContext:
    return StageContext(claimed=claimed, runtime=runtime, folder=folder, report=lambda _: None)


def _claim() -> Claim:
    found = transact(lambda session: claim(session, "media", "bench:1:0:2", LEASE_S))
    assert found is not None
    return found


def _finish(claimed: Claim, write: Any, result: dict[str, Any]) -> None:
    transact(lambda session: attempts.finish(session, claimed, write, result, _POLICY))


def _advance(session: Session) -> None:
    while video_runs.advance(session, videos.lock(session, "long", "u"), _POLICY):
        pass
