"""Online requests of the vision family, answered by the process that holds the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from shared import routing
from shared.contracts import EmbedImages, EmbedTexts
from tasks.pictures import names_of, read_pictures
from tasks.requests import online_task
from worker.online.operations import Computed, Operation, Used, checked_texts, used_by
from worker.online.vectors import Vector, embed_once, write_vectors
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.vision import VisionEmbedder

#: Pictures of one batch: each takes up to 5 MB of memory and a tenth of a second to decode.
_PICTURES = 16


def _embed_texts(name: str | None, texts: list[str]) -> Computed:
    model = _model(name)
    found = embed_once(
        model, "vision", texts, lambda texts: [Vector(row) for row in model.embed_texts(texts)]
    )
    return Computed(used_by(model, model.dim), found)


def _read(request: EmbedImages, first: int, end: int) -> list[Any]:
    # Not at the top: an API that names a task would load the decoders.
    from worker.media.pictures import MAX_SIDE_PX, bound_picture

    keys = names_of(request)[first:end]
    # Of the maximum size of keyframes, with which they are compared, and with as much memory.
    images = {
        key: picture if isinstance(picture, Exception) else bound_picture(picture)
        for key, picture in read_pictures(keys, request, also="keyframes", shown_px=MAX_SIDE_PX)
    }
    return [images[key] for key in keys]


def _embed_images(name: str | None, images: list[Any]) -> Computed:
    model = _model(name)
    # One picture that a request names several times is one object.
    unique = {id(image): image for image in images}
    vectors = dict(zip(unique, model.embed_images(list(unique.values())), strict=True))
    return Computed(used_by(model, model.dim), [Vector(vectors[id(image)]) for image in images])


def _model(name: str | None) -> VisionEmbedder:
    return cast("VisionEmbedder", get_runtime().model("vision", name))


def _write(request: EmbedTexts | EmbedImages, used: Used, vectors: Sequence[Vector | None]) -> dict[str, Any]:
    return write_vectors(used, request.encoding, vectors)


#: Embed texts with the text tower, to search pictures by words.
embed_texts = online_task(
    routing.VISION_EMBED_TEXTS,
    Operation(
        contract=EmbedTexts,
        fields=("texts",),
        prepare=lambda request, first, end: checked_texts("texts", request.texts, first, end),
        options=lambda request: request.model,
        compute=_embed_texts,
        answer=_write,
    ),
    time_limit=routing.ONLINE_LIMIT_S,
)

#: Embed stored pictures of a user.
embed_images = online_task(
    routing.VISION_EMBED_IMAGES,
    Operation(
        contract=EmbedImages,
        fields=("storage_keys", "inline"),
        most=_PICTURES,
        prepare=_read,
        options=lambda request: request.model,
        compute=_embed_images,
        answer=_write,
    ),
    time_limit=routing.ONLINE_LIMIT_S,
)
