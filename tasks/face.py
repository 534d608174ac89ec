"""Online requests of the face family, answered by the process that holds the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import DetectedFaces, DetectFaces, FoundFace, PictureFaces
from tasks.pictures import names_of, read_pictures
from tasks.requests import online_task
from worker.online.operations import Computed, Operation, Used, used_by
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.face import Face, FaceAnalyser

#: Pictures of one batch: a large one takes seconds.
_PICTURES = 4


class _Seen(NamedTuple):
    width_px: int
    height_px: int
    faces: Sequence[Face]


def _look(request: DetectFaces, first: int, end: int) -> list[Any]:
    keys, model = names_of(request)[first:end], _model()
    # One picture at a time: decoded, sixteen photographs take gigabytes.
    seen = {
        key: picture if isinstance(picture, Exception) else _look_at(model, picture)
        for key, picture in read_pictures(keys, request, also="faces")
    }
    return [seen[key] for key in keys]


def _look_at(model: FaceAnalyser, picture: NDArray[np.uint8]) -> _Seen | Exception:
    try:
        (faces,) = model.analyse([picture])
    except Exception as error:  # noqa: BLE001 - the error of this picture
        return error
    return _Seen(picture.shape[1], picture.shape[0], faces)


def _model() -> FaceAnalyser:
    return cast("FaceAnalyser", get_runtime().model("face"))


def _write(request: DetectFaces, used: Used, seen: Sequence[_Seen | None]) -> dict[str, Any]:
    model = _model()
    answer = DetectedFaces(
        model=used.model,
        revision=used.revision,
        dim=model.dim,
        metric=str(model.spec.metric),
        landmark_names=model.landmark_names,
        pictures=tuple(
            picture and _describe(key, picture, request.vectors)
            for key, picture in zip(names_of(request), seen, strict=True)
        ),
    )
    return answer.model_dump(mode="json")


def _describe(key: str, picture: _Seen, vectors: bool) -> PictureFaces:
    return PictureFaces(
        storage_key=key,
        width_px=picture.width_px,
        height_px=picture.height_px,
        faces=tuple(
            FoundFace(
                box=face.box,
                score=face.score,
                landmarks=face.landmarks,
                quality=face.quality,
                vec=tuple(face.vec.tolist()) if vectors else None,
            )
            for face in picture.faces
        ),
    )


#: Find faces in stored pictures of a user, picture by picture.
detect = online_task(
    routing.FACE_DETECT,
    Operation(
        contract=DetectFaces,
        fields=("storage_keys", "inline"),
        most=_PICTURES,
        prepare=_look,
        options=lambda request: None,
        compute=lambda options, seen: Computed(used_by(_model()), seen),
        answer=_write,
    ),
    time_limit=routing.ONLINE_LIMIT_S,
)
