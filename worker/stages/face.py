"""face: the faces in a batch of keyframes, with boxes, landmarks and vectors."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from pgvector import HalfVector
from sqlalchemy.orm import Session

from db.engine import reading
from db.scenes import face_id, scenes_between, write_faces
from shared.errors import ModelFailure
from worker.models.base import FaceAnalyser
from worker.stages.context import Outcome, StageContext, model_row

_MAX_KEYFRAME_BYTES = 32 * 2**20


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    first, last = int(claimed.payload["first_idx"]), int(claimed.payload["last_idx"])
    with reading() as session:
        _, video_run = context.video_and_run(session)
        scenes = scenes_between(session, claimed.video_id, int(video_run.made["split"]), first, last)
    model = cast(FaceAnalyser, context.runtime.shelf.get("face"))
    keyframes = [(scene, keyframe) for scene in scenes for keyframe in scene.keyframes]
    pictures = []
    for done, (_, keyframe) in enumerate(keyframes):
        context.report(0.5 * done / len(keyframes))
        pictures.append(_read_picture(context, keyframe["key"]))
    rows: list[dict[str, Any]] = []
    for (scene, keyframe), faces in zip(keyframes, model.analyse(pictures), strict=True):
        for place, face in enumerate(faces):
            rows.append(
                {
                    "face_id": face_id(scene.scene_id, claimed.run, keyframe["ordinal"], place),
                    "scene_id": scene.scene_id,
                    "user_id": claimed.user_id,
                    "run": claimed.run,
                    "ordinal": keyframe["ordinal"],
                    "ts_s": keyframe["ts_s"],
                    "box": [float(value) for value in face.box],
                    "landmarks": [[float(x), float(y)] for x, y in face.landmarks],
                    "det_score": float(face.score),
                    "vec": HalfVector(face.vec),
                }
            )

    def write(session: Session) -> None:
        model_id = model_row(session, model.spec).model_id
        write_faces(
            session,
            claimed.run,
            [scene.scene_id for scene in scenes],
            [{**row, "model_id": model_id} for row in rows],
        )

    return Outcome(result={"faces": len(rows), "keyframes": len(keyframes)}, write=write)


def _read_picture(context: StageContext, key: str) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB."""
    data = context.storage.get_bytes("sidecars", key, max_bytes=_MAX_KEYFRAME_BYTES)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ModelFailure(f"keyframe {key} can't be decoded: rerun split")
    return cast("npt.NDArray[np.uint8]", cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
