"""face: the faces in a batch of scenes' keyframes, with boxes, landmarks and vectors, linked into one track per person."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from sqlalchemy.orm import Session

from db.engine import reading
from db.faces.tracks import write_tracks
from db.ledger import subjects
from db.people.unknowns import assign_people
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

    def write(session: Session) -> None:
        of_all = {"user_id": claimed.user_id, "model_id": model_row(session, model.spec).model_id}
        ids = [scene.scene_id for scene in scenes]
        write_faces(session, claimed.run, ids, [row | of_all for row in rows])
        write_tracks(session, claimed.video_id, claimed.user_id, claimed.run, ids, str(model.spec.metric))
        video = subjects.lock_video(session, claimed.video_id)
        if video is not None:
            assign_people(session, video, context.runtime.face_rule, ids)

    return Outcome(result={"faces": len(rows), "keyframes": len(keyframes)}, write=write)


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
