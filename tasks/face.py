"""Online requests of the face family, answered by the process that holds the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import DetectedFaces, DetectFaces, FoundFace, PictureFaces
from tasks.pictures import read_pictures
from tasks.requests import request_task
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.face import FaceAnalyser


@request_task(routing.FACE_DETECT, DetectFaces, time_limit=routing.ONLINE_LIMIT_S)
def detect(request: DetectFaces) -> DetectedFaces:
    """Find faces in stored pictures of a user, picture by picture."""
    pictures = read_pictures(request.storage_keys, request.user_id, also="faces")
    model = cast("FaceAnalyser", get_runtime().model("face"))
    # One picture at a time: decoded, sixteen photographs take gigabytes.
    found = {key: _look_at(model, key, picture, request.vectors) for key, picture in pictures}
    return DetectedFaces(
        model=model.spec.name,
        revision=model.spec.revision,
        dim=model.dim,
        metric=str(model.spec.metric),
        landmark_names=model.landmark_names,
        pictures=tuple(found[key] for key in request.storage_keys),
    )


def _look_at(model: FaceAnalyser, key: str, picture: NDArray[np.uint8], vectors: bool) -> PictureFaces:
    (faces,) = model.analyse([picture])
    return PictureFaces(
        storage_key=key,
        width_px=picture.shape[1],
        height_px=picture.shape[0],
        faces=tuple(
            FoundFace(
                box=face.box,
                score=face.score,
                landmarks=face.landmarks,
                quality=face.quality,
                vec=tuple(face.vec.tolist()) if vectors else None,
            )
            for face in faces
        ),
    )
