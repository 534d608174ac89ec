"""Online requests of the vision family, answered by the process that holds the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import EmbedImages, EmbedTexts
from tasks.pictures import read_pictures
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
    # Not at the top: an API that names a task would load the decoders.
    from worker.media.pictures import MAX_SIDE_PX, bound_picture

    pictures = read_pictures(request.storage_keys, request.user_id, also="keyframes", shown_px=MAX_SIDE_PX)
    model = _model(request.model)
    # Of the maximum size of keyframes, with which they are compared, and with as much memory.
    images = {key: bound_picture(picture) for key, picture in pictures}
    vectors = dict(zip(images, model.embed_images(list(images.values())), strict=True))
    return _answer(model, (vectors[key] for key in request.storage_keys))


def _model(name: str | None) -> VisionEmbedder:
    return cast("VisionEmbedder", get_runtime().model("vision", name))


def _answer(model: VisionEmbedder, vectors: Iterable[NDArray[np.float32]]) -> dict[str, Any]:
    return {
        "model": model.spec.name,
        "revision": model.spec.revision,
        "dim": model.dim,
        "vectors": [vector.tolist() for vector in vectors],
    }
