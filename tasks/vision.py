"""Online requests of the vision family, answered by the process that holds the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import EmbedImages, EmbedTexts
from shared.storage import Bucket, require_prefix
from tasks.pictures import PictureReader, each_once
from tasks.requests import request_task
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.vision import VisionEmbedder


@request_task(routing.VISION_EMBED_TEXTS, EmbedTexts, time_limit=routing.ONLINE_LIMIT_S)
def embed_texts(request: EmbedTexts) -> dict[str, Any]:
    """Embed texts with the text tower, to search pictures by words."""
    model = _model(request.model)
    return _answer(model, model.embed_texts(request.texts))


@request_task(routing.VISION_EMBED_IMAGES, EmbedImages, time_limit=routing.ONLINE_LIMIT_S)
def embed_images(request: EmbedImages) -> dict[str, Any]:
    """Embed stored pictures of a user."""
    buckets = {key: _bucket(key, request.user_id) for key in request.storage_keys}
    model = _model(request.model)
    reader = PictureReader()
    vectors = each_once(
        request.storage_keys,
        lambda once: model.embed_images([_read(reader, buckets[key], key) for key in once]),
    )
    return _answer(model, vectors)


def _model(name: str | None) -> VisionEmbedder:
    return cast("VisionEmbedder", get_runtime().model("vision", name))


def _bucket(key: str, user_id: str) -> Bucket:
    """The bucket of a picture: the user's uploads, or keyframes of the user's videos.

    Raises:
        InvalidKey: it is neither.
    """
    if key.startswith("keyframes/"):
        require_prefix(key, f"keyframes/{user_id}/")
        return "sidecars"
    require_prefix(key, f"uploads/{user_id}/")
    return "uploads"


def _read(reader: PictureReader, bucket: Bucket, key: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB, of the size keyframes have at most: as large, and as much memory, as what it is compared with.

    Raises:
        ObjectMissing, StorageUnavailable.
        BadMedia: no picture, damaged or too large.
    """
    from worker.media.pictures import MAX_SIDE_PX, bound_picture

    return bound_picture(reader.read(bucket, key, shown_px=MAX_SIDE_PX))


def _answer(model: VisionEmbedder, vectors: Iterable[NDArray[np.float32]]) -> dict[str, Any]:
    return {
        "model": model.spec.name,
        "revision": model.spec.revision,
        "dim": model.dim,
        "vectors": [vector.tolist() for vector in vectors],
    }
