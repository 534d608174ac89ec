"""A video of many scenes, from its split to its publication and again: the longest transactions, and how late the lease was renewed.

Each scene has words, and every third one a face; half of the faces are of a known person.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import event, text, update
from sqlalchemy.orm import Session

from db import videos
from db.engine import get_engine, transact
from db.expressions import NOW
from db.ledger import attempts, video_runs
from db.ledger.claims import Claim, claim
from db.ledger.policy import RunPolicy
from db.tables import Job
from shared import graph
from shared.contracts import ProcessVideo
from worker.runtime import Runtime
from worker.stages import sidecar, split, sweep
from worker.stages.context import StageContext

LEASE_S = 60.0
_POLICY = RunPolicy(skips={}, max_failures=3, tmp_ttl_s=0.0)
_HEARTBEAT_S = 0.2
#: As the stages ``split`` and ``audio`` end.
_SPLIT: dict[str, Any] = {"audio_key": None, "windows": [[0.0, 1.0]]}
#: Words of one scene.
_WORDS = 12
_FILL = (
    f"""INSERT INTO transcript_parts (video_id, run, part, user_id, start_s, end_s, language, segments)
    SELECT video_id, :run, n, user_id, n * 300, n * 300 + 300, 'en', (
        SELECT jsonb_agg(jsonb_build_object('start_s', s, 'end_s', s + 1, 'text', said.said, 'rejected', NULL, 'words', said.words))
        FROM generate_series(n * 300, n * 300 + 299) s, LATERAL (
            SELECT string_agg('word' || (s * 7 + w * w * 31) % 20000, ' ') AS said, jsonb_agg(jsonb_build_object(
                'start_s', s + w / {_WORDS + 1}.0, 'end_s', s + (w + 1) / {_WORDS + 1}.0, 'text', 'word' || (s * 7 + w * w * 31) % 20000,
                'probability', 0.9)) AS words
            FROM generate_series(0, {_WORDS - 1}) w) said)
    FROM videos, generate_series(0, :parts - 1) n WHERE external_id = 'long'""",
    """INSERT INTO people (person_id, external_id, user_id, name, kind, run, ended_run)
    SELECT 'p' || n, 'p' || n, 'u', 'Person ' || n, 'named', 1, 1 FROM generate_series(1, 100) n ON CONFLICT DO NOTHING""",
    "INSERT INTO models (name, revision, family, dim, metric) VALUES ('bench-face', '1', 'face', 4, 'cosine') ON CONFLICT DO NOTHING",
    """INSERT INTO face_tracks (track_id, scene_id, video_id, user_id, run, track, model_id, ordinal, ts_s, box, vec, faces, person_id,
        similarity, votes, decided_by)
    SELECT gen_random_uuid(), scene_id, video_id, user_id, :run, 0, (SELECT model_id FROM models WHERE name = 'bench-face'), 0, start_s,
        '[0, 0, 8, 8]', '[1,0,0,0]', 1, CASE WHEN idx % 2 = 0 THEN 'p' || 1 + idx % 100 END, CASE WHEN idx % 2 = 0 THEN 0.9 END,
        CASE WHEN idx % 2 = 0 THEN 1 END, CASE WHEN idx % 2 = 0 THEN 'machine' END FROM scenes WHERE idx % 3 = 0""",
)  # fmt: skip


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
    """Split, publish, and transcribe and publish again a video of so many scenes, in an empty database. Step -> figures."""
    # As a node does before its processes are forked: a collection would go through all that was imported.
    gc.collect()
    gc.freeze()
    request = ProcessVideo(video_id="long", user_id="u", storage_key="uploads/u/long/a.mp4")
    transact(lambda session: videos.accept(session, request, _POLICY))
    keyframe = {"ordinal": 0, "key": "k", "ts_s": 0.0, "width": 640, "height": 360}
    rows = [
        {"idx": n, "start_s": float(n), "end_s": n + 1.0, "kind": "cut", "keyframes": [{**keyframe, "ts_s": float(n)}]}
        for n in range(scenes)
    ]  # fmt: skip
    found: dict[str, Figures] = {}

    claimed = _claim()
    with _measured(found, "split", claimed):
        split._write_scenes(_context(runtime, folder, claimed), rows)
        _finish(claimed, lambda session: None, _SPLIT)
    _publish(runtime, folder, 1, scenes, found, "")
    transact(
        lambda session: video_runs.rerun(session, videos.lock(session, "long", "u"), ["asr", "face"], _POLICY)
    )
    _publish(runtime, folder, 2, scenes, found, " again")
    return found


def _publish(
    runtime: Runtime, folder: Path, run: int, scenes: int, found: dict[str, Figures], again: str
) -> None:
    """The rest of a run: the models' outputs are made in SQL."""
    while True:
        transact(_advance)
        claimed = transact(lambda session: claim(session, "media", "bench:1:0:2", LEASE_S))
        if claimed is None:
            transact(_skip_queued)
        elif claimed.stage == graph.SIDECAR.name:
            break
        else:
            _finish(claimed, lambda session: None, _SPLIT)
    values = {"run": run, "parts": -(-scenes // 300)}
    for statement in _FILL:
        transact(lambda session: session.execute(text(statement), values))  # noqa: B023
    with _measured(found, f"sidecar{again}", claimed):
        outcome = sidecar.run(_context(runtime, folder, claimed))
        _finish(claimed, outcome.write, dict(outcome.result))
    claimed = _claim("housekeeping")
    with _measured(found, f"sweep{again}", claimed):
        outcome = sweep.run(_context(runtime, folder, claimed))
        _finish(claimed, outcome.write, dict(outcome.result))
    transact(_skip_queued)


def _skip_queued(session: Session) -> None:
    done = {"state": "done", "finished_at": NOW, "progress": 1.0}
    session.execute(update(Job).where(Job.state == "queued").values(**done))


@contextmanager
def _measured(found: dict[str, Figures], name: str, claimed: Claim) -> Iterator[None]:
    figures = found[name] = Figures()
    began = time.monotonic()
    with _timed(figures), _lease(claimed, figures):
        yield
    figures.total_s = time.monotonic() - began


def _context(runtime: Runtime, folder: Path, claimed: Claim) -> StageContext:
    return StageContext(claimed=claimed, runtime=runtime, folder=folder, report=lambda _: None)


def _claim(queue: str = "media") -> Claim:
    found = transact(lambda session: claim(session, queue, "bench:1:0:2", LEASE_S))
    assert found is not None
    return found


def _finish(claimed: Claim, write: Any, result: dict[str, Any]) -> None:
    transact(lambda session: attempts.finish(session, claimed, write, result, _POLICY))


def _advance(session: Session) -> None:
    while video_runs.advance(session, videos.lock(session, "long", "u"), _POLICY):
        pass
