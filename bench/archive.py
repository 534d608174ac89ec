"""A large archive made up by generate_series: published videos whose scenes show one person again and again."""

from __future__ import annotations

import json

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.engine import get_engine, transact

_STATEMENTS = (
    "INSERT INTO videos (video_id, external_id, user_id, storage_key, state, run, published_run)"
    " SELECT :prefix || n, :prefix || n, :user, 'k', 'indexed', 1, 1 FROM generate_series(0, (:count - 1) / :per) n",
    "INSERT INTO runs (video_id, run, stages, stage_runs, ended_at)"
    " SELECT :prefix || n, 1, '[]', CAST(:made AS jsonb), now() FROM generate_series(0, (:count - 1) / :per) n",
    "INSERT INTO scenes (scene_id, video_id, user_id, split_version, idx, start_s, end_s, kind, keyframes, live,"
    " face_run, people_changed, sidecar_key) SELECT md5(:prefix || n)::uuid, :prefix || (n / :per), :user, 1,"
    " n % :per, n % :per, n % :per + 1, 'cut', '[]', true, 1, false,"
    " 'sidecars/' || :user || '/' || :prefix || (n / :per) || '/' || md5(:prefix || n)::uuid || '.r0.json'"
    " FROM generate_series(0, :count - 1) n",
    "INSERT INTO face_tracks (track_id, scene_id, video_id, user_id, run, track, model_id, ordinal, ts_s, box, vec,"
    " faces, person_id, similarity, votes, decided_by) SELECT md5('t' || :prefix || n)::uuid,"
    " md5(:prefix || n)::uuid, :prefix || (n / :per), :user, 1, 0, :model, 0, n % :per, '[0, 0, 9, 9]',"
    " CAST(:vec AS halfvec), 1, :person, 0.9, 1, 'machine' FROM generate_series(0, :count - 1, :step) n",
    "INSERT INTO faces (face_id, scene_id, user_id, run, ordinal, ts_s, box, landmarks, det_score, model_id, vec,"
    " track) SELECT md5('f' || :prefix || n)::uuid, md5(:prefix || n)::uuid, :user, 1, 0, n % :per,"
    " '[0, 0, 9, 9]', '[]', 0.9, :model, CAST(:vec AS halfvec), 0 FROM generate_series(0, :count - 1, :step) n",
    "INSERT INTO scene_people (scene_id, person_id, user_id, confidence, frame_count)"
    " SELECT md5(:prefix || n)::uuid, :person, :user, 0.9, 1 FROM generate_series(0, :count - 1, :step) n",
)
STAGES = ("split", "asr", "text", "vision", "face", "ocr")


def write_archive(
    person: str,
    count: int,
    *,
    user: str,
    model: int,
    prefix: str,
    per_video: int,
    step: int = 1,
    dim: int = 4,
) -> None:
    """Publish so many scenes; the person has a track, and a face, in every ``step``-th of them."""
    values = {
        "person": person, "user": user, "count": count, "per": per_video, "model": model, "prefix": prefix,
        "step": step, "vec": "[" + ",".join(["0.5"] * dim) + "]", "made": json.dumps(dict.fromkeys(STAGES, 1)),
    }  # fmt: skip

    def write(session: Session) -> None:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        for statement in _STATEMENTS:
            session.execute(text(statement), values)

    transact(write)
    with get_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
