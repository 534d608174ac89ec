"""Online requests of the face family, answered by the process that holds the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from shared import routing
from shared.contracts import DetectedFaces, DetectFaces, FoundFace, PictureFaces
from shared.storage import require_prefix
from tasks.pictures import PictureReader, each_once
from tasks.requests import request_task
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.face import FaceAnalyser


@request_task(routing.FACE_DETECT, DetectFaces, time_limit=routing.ONLINE_LIMIT_S)
def detect(request: DetectFaces) -> DetectedFaces:
    """Find faces in stored pictures of a user, picture by picture."""
    keys = [_require_own(key, request.user_id) for key in request.storage_keys]
    model = cast("FaceAnalyser", get_runtime().model("face"))
    # One picture at a time: decoded, sixteen photographs take gigabytes.
    reader = PictureReader()
    pictures = each_once(keys, lambda once: [_look_at(model, reader, key, request.vectors) for key in once])
    return DetectedFaces(
        model=model.spec.name,
        revision=model.spec.revision,
        dim=model.dim,
        metric=str(model.spec.metric),
        landmark_names=model.landmark_names,
        pictures=tuple(pictures),
    )


def _require_own(key: str, user_id: str) -> str:
    """Check that a key is the user's own, and return it.

    Raises:
        InvalidKey: it is neither under ``uploads/{user_id}/`` nor under ``faces/{user_id}/``.
    """
    role = "faces" if key.startswith("faces/") else "uploads"
    return require_prefix(key, f"{role}/{user_id}/")


def _look_at(model: FaceAnalyser, reader: PictureReader, key: str, vectors: bool) -> PictureFaces:
    """Find the faces in one picture, in pixels of the upright picture.

    Raises:
        ObjectMissing, StorageUnavailable.
        BadMedia: not a picture, damaged or too large.
    """
    picture = reader.read("uploads", key)
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
