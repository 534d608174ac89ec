"""Online requests of the vision family, answered by the process that holds the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import EmbedImages, EmbedTexts, parse
from shared.storage import Bucket, require_prefix
from tasks.pictures import PictureReader, each_once
from tasks.requests import REQUEST
from worker.app import app
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.vision import VisionEmbedder


@app.task(name=routing.VISION_EMBED_TEXTS, **{**REQUEST, "time_limit": routing.ONLINE_LIMIT_S})
def embed_texts(**payload: Any) -> dict[str, Any]:
    """Embed texts with the text tower, to search pictures by words."""
    request = parse(EmbedTexts, payload)
    model = _model(request.model)
    return _answer(model, model.embed_texts(request.texts))


@app.task(name=routing.VISION_EMBED_IMAGES, **{**REQUEST, "time_limit": routing.ONLINE_LIMIT_S})
def embed_images(**payload: Any) -> dict[str, Any]:
    """Embed stored pictures of a user."""
    request = parse(EmbedImages, payload)
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
