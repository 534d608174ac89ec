"""One more stranger's face among many of a user: the look-up, and the transaction that groups it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.engine import get_engine, reading, transact
from db.faces.vote import FaceRule
from db.ledger import subjects
from db.people import unknowns
from db.vectors import ensure_model

DIM = 512
USER = "strangers"
_FILL = (
    """INSERT INTO videos (video_id, external_id, user_id, storage_key, state, run, published_run)
    SELECT 's' || n, 's' || n, :user, 'x', 'indexed', 1, 1 FROM generate_series(0, :count / 100) n""",
    """INSERT INTO scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live, face_run)
    SELECT gen_random_uuid(), 's' || n / 100, :user, 1, n % 100, n % 100, n % 100 + 1, 'cut', '[]', true, 1
    FROM generate_series(0, :count) n""",
    """INSERT INTO face_tracks (track_id, scene_id, video_id, user_id, run, track, model_id, ordinal, ts_s, box, vec, faces)
    SELECT gen_random_uuid(), scene_id, video_id, user_id, 1, 0, :model, 0, start_s, '[0, 0, 9, 9]', vec::halfvec, 1
    FROM scenes CROSS JOIN LATERAL (
        SELECT array_agg(random() - 0.5) AS vec FROM generate_series(1, :dim) place WHERE place + start_s > 0
    ) made WHERE user_id = :user""",
)


@dataclass(frozen=True)
class Figures:
    """Medians of several times, milliseconds."""

    look_up_ms: float
    transaction_ms: float


def measure(strangers: int, repeats: int = 7) -> Figures:
    """Group the strangers of one scene, among so many of the user in an otherwise empty database."""
    model = {"name": "bench-face", "revision": "1", "family": "face", "dim": DIM, "metric": "cosine"}
    model_id = transact(lambda session: ensure_model(session, **model)).model_id
    values = {"user": USER, "count": strangers, "model": model_id, "dim": DIM}

    def fill(session: Session) -> None:
        for statement in _FILL:
            session.execute(text(statement), values)

    transact(fill)
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    looked: list[float] = []
    locked: list[float] = []
    for place in range(repeats):
        with reading() as session:
            scene = session.scalars(
                text("SELECT scene_id FROM scenes WHERE video_id = 's0' ORDER BY idx OFFSET :place LIMIT 1"),
                {"place": place},
            ).one()
        began = time.perf_counter()
        with reading() as session:
            own = unknowns.strangers_of(session, USER, "s0")
            similar = unknowns.find_similar(session, USER, dict(list(own.items())[:8]), FaceRule())
        looked.append(1000 * (time.perf_counter() - began))
        locked.append(_assign(similar, scene))
    return Figures(float(np.median(looked)), float(np.median(locked)))


def _assign(similar: unknowns.Similar, scene: UUID) -> float:
    known = unknowns.Similar(
        from_transaction=similar.from_transaction,
        track_ids=similar.track_ids,
        looked_up=similar.looked_up | similar.track_ids,
    )

    def work(session: Session) -> float:
        began = time.perf_counter()
        video = subjects.lock_video(session, "s0")
        assert video is not None
        unknowns._cluster_unknowns(session, video, FaceRule(), [scene], known)
        return 1000 * (time.perf_counter() - began)

    return transact(work)
