"""enroll: the one face in each photo of a person, or why a photo is of no use. No photo fails the others."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector
from sqlalchemy.orm import Session

from db.engine import reading
from db.people.photos import PhotoResult, photos_to_look_at, write_photos
from db.tables import PersonPhoto
from shared.contracts import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, Box
from shared.errors import BadMedia, BadPhoto, BlurredFace, NoFace, ObjectMissing, SeveralFaces, SmallFace
from shared.settings import Settings
from shared.storage import require_prefix
from worker.models.face import Face, FaceAnalyser
from worker.stages.context import Outcome, StageContext, model_row

#: Faces are brought to about this side before their sharpness is measured: a large picture is not blurred for being large.
_MEASURED_PX = 112


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        photos = photos_to_look_at(session, claimed.subject.id, claimed.user_id, claimed.payload["photo_ids"])
    model = cast(FaceAnalyser, context.runtime.model("face"))
    found = {}
    for done, photo in enumerate(photos):
        context.report(done / len(photos))
        found[photo.photo_id] = _look(context, model, photo)

    def write(session: Session) -> None:
        model_id = model_row(session, model.spec).model_id
        results = {
            photo_id: replace(one, model_id=model_id) if one.state == "good" else one
            for photo_id, one in found.items()
        }
        write_photos(session, claimed.subject.id, results)

    good = sum(one.state == "good" for one in found.values())
    return Outcome(result={"photos": len(found), "good": good}, write=write)


def _look(context: StageContext, model: FaceAnalyser, photo: PersonPhoto) -> PhotoResult:
    """Find the one face of a photo, or say why it is of no use. Raises StorageUnavailable."""
    from worker.media.pictures import decode_picture

    settings = context.runtime.settings
    key = require_prefix(photo.storage_key, f"faces/{context.claimed.user_id}/")
    try:
        data = context.storage.get_bytes("uploads", key, max_bytes=MAX_PICTURE_BYTES)
        picture = decode_picture(data, max_pixels=MAX_PICTURE_PIXELS, max_scans=settings.max_jpeg_scans)
        (faces,) = model.analyse([picture])
        face = choose(picture, faces, settings)
    except (BadMedia, ObjectMissing) as error:
        # What is not there may still come; what it shows stays.
        state = "waiting" if isinstance(error, ObjectMissing) else "refused"
        return PhotoResult(state=state, error_class=error.code, error=str(error))
    vec, box = HalfVector(face.vec), list(face.box)
    return PhotoResult(state="good", vec=vec, quality=face.quality, box=box)


def choose(picture: npt.NDArray[np.uint8], faces: list[Face], settings: Settings) -> Face:
    """The face of a photo that is good enough to know a person by.

    Args:
        picture: uint8 [H, W, 3] RGB.

    Raises:
        BadPhoto: says what is wrong with it, by its class.
    """
    if not faces:
        raise NoFace("No face was found: send a photo that shows the face from the front.")
    if len(faces) > 1:
        raise SeveralFaces(f"{len(faces)} faces were found: cut the photo so that it shows this person only.")
    face = faces[0]
    side_px = min(face.box[2:])
    if side_px < settings.face_min_side_px:
        raise SmallFace(
            f"The face is {side_px:.0f} px wide, less than {settings.face_min_side_px}: send a larger photo"
        )
    sharp = sharpness(picture, face.box)
    if sharp < settings.face_min_sharpness:
        raise BlurredFace(
            f"The face's sharpness is {sharp:.0f}, less than {settings.face_min_sharpness:g}: send a sharper photo"
        )
    if face.quality is not None and face.quality < settings.face_min_quality:
        raise BlurredFace(
            f"The face's quality is {face.quality:.1f}, less than {settings.face_min_quality:g}: send a better photo"
        )
    if not np.isfinite(face.vec).all():
        raise BadPhoto("The model made nothing of the face: send another photo.")
    return face


def sharpness(picture: npt.NDArray[np.uint8], box: Box) -> float:
    """Variance of the Laplacian of a face at about 112 px, in grey levels squared.

    Source: Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (2000).
    """
    left, top = int(box[0]), int(box[1])
    face = picture[top : top + max(3, int(box[3])), left : left + max(3, int(box[2]))].astype(np.float64)
    grey = face @ np.array([0.299, 0.587, 0.114])
    step = max(1, min(grey.shape) // _MEASURED_PX)
    high, wide = grey.shape[0] // step, grey.shape[1] // step
    grey = grey[: high * step, : wide * step].reshape(high, step, wide, step).mean(axis=(1, 3))
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(edges.var())
