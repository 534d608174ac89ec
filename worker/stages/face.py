"""face: the faces in a batch of scenes' keyframes, with boxes, landmarks and vectors, linked into one track per person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.faces.tracks import as_array, track_id, weights, write_tracks
from db.faces.vote import Float64, centroid
from db.ledger import subjects
from db.people import unknowns
from db.scenes import face_id, write_faces
from db.tables import Scene
from worker.models.face import Face, FaceAnalyser
from worker.stages import tracks
from worker.stages.context import Outcome, StageContext, model_row

#: Pictures held at once; between two such groups a lost lease is noticed. A batch of faces is filled from several pictures.
_PICTURES_AT_ONCE = 32


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        scenes = context.scenes(session)
    model = cast(FaceAnalyser, context.runtime.model("face"))
    keyframes = [keyframe for scene in scenes for keyframe in scene.keyframes]
    found: list[list[Face]] = []
    while len(found) < len(keyframes):
        pictures: list[NDArray[np.uint8]] = []
        for keyframe in keyframes[len(found) : len(found) + _PICTURES_AT_ONCE]:
            context.report((len(found) + len(pictures) / 2) / len(keyframes))
            pictures.append(context.read_keyframe(keyframe["key"]))
        found += model.analyse(pictures)
    rows: list[dict[str, Any]] = []
    of_keyframe = iter(found)
    for scene in scenes:
        seen = [
            (keyframe, place, face)
            for keyframe in scene.keyframes
            for place, face in enumerate(next(of_keyframe))
        ]
        rows += _rows(scene, claimed.run, seen, model)

    model_id = transact(lambda session: model_row(session, model.spec)).model_id
    metric, rule = str(model.spec.metric), context.runtime.face_rule
    vectors = {track: (model_id, vector) for track, vector in _vectors(rows, claimed.run, metric).items()}
    with reading() as session:
        similar = unknowns.find_similar(session, claimed.user_id, vectors, rule)

    def write(session: Session) -> None:
        of_all = {"user_id": claimed.user_id, "model_id": model_id}
        ids = [scene.scene_id for scene in scenes]
        write_faces(session, claimed.run, ids, [row | of_all for row in rows])
        write_tracks(session, claimed.video_id, claimed.user_id, claimed.run, ids, metric)
        video = subjects.lock_video(session, claimed.video_id)
        if video is not None:
            unknowns.assign_people(session, video, rule, ids, similar)

    return Outcome(result={"faces": len(rows), "keyframes": len(keyframes)}, write=write)


def _vectors(rows: Sequence[Mapping[str, Any]], run: int, metric: str) -> dict[UUID, Float64]:
    """The vector of each track of these faces, as ``db.faces.tracks.write_tracks`` makes it."""
    of_track: dict[UUID, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_track.setdefault(track_id(row["scene_id"], run, row["track"]), []).append(row)
    return {
        track: centroid(
            as_array([row["vec"] for row in faces]), weights([row["quality"] for row in faces]), metric
        )
        for track, faces in of_track.items()
    }


def _rows(
    scene: Scene, run: int, seen: list[tuple[dict[str, Any], int, Face]], model: FaceAnalyser
) -> list[dict[str, Any]]:
    """One scene's faces, each with its keyframe and its place there, as the database stores them."""
    numbers = tracks.link(
        [tracks.Sighting(keyframe["ordinal"], face.box, face.vec) for keyframe, _, face in seen],
        cast(tracks.Metric, model.spec.metric),
        model.same_person,
    )
    return [
        {
            "face_id": face_id(scene.scene_id, run, keyframe["ordinal"], place),
            "scene_id": scene.scene_id,
            "run": run,
            "ordinal": keyframe["ordinal"],
            "ts_s": keyframe["ts_s"],
            "box": list(face.box),
            "landmarks": [list(point) for point in face.landmarks],
            "det_score": face.score,
            "vec": HalfVector(face.vec),
            "quality": face.quality,
            "track": number,
        }
        for (keyframe, place, face), number in zip(seen, numbers, strict=True)
    ]
