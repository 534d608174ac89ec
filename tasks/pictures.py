"""Pictures of a request, stored or in it: fetched and decoded within limits, for the tasks that use them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shared.contracts import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS, DetectFaces, EmbedImages
from shared.errors import BadMedia, InvalidRequest, LimitExceeded, ScenefleetError
from shared.storage import Bucket, require_prefix
from worker.runtime import get_runtime

Picture = NDArray[np.uint8]
#: Before the place of a picture that the request itself has. No storage key begins so.
_INLINE = "inline/"


def names_of(request: EmbedImages | DetectFaces) -> Sequence[str]:
    """The keys of a request's pictures; ``inline/0`` is the first that it has in itself.

    Raises:
        InvalidRequest: it has keys and pictures.
    """
    if request.inline and request.storage_keys:
        raise InvalidRequest("storage_keys and inline exclude each other: send them in two requests")
    return request.storage_keys or [f"{_INLINE}{place}" for place in range(len(request.inline))]


def read_pictures(
    names: Iterable[str], request: EmbedImages | DetectFaces, *, also: str, shown_px: int | None = None
) -> Iterator[tuple[str, Picture | ScenefleetError]]:
    """Check all names, then read each picture once: (name, uint8 [H, W, 3] RGB, upright), one after another.

    Args:
        names: some of ``names_of``; keys under ``uploads/{user_id}/`` or ``{also}/{user_id}/``.
        shown_px: longest side that the caller needs: larger pictures may come smaller.

    Raises:
        InvalidKey: a key is elsewhere.
        The following, or returns them in the place of the picture if the request is ``partial``:
        ObjectMissing, StorageUnavailable.
        LimitExceeded: too large, by itself or together with those before it.
        BadMedia: no picture, or damaged.
    """
    data: dict[str, Callable[[], bytes]] = {}
    for name in names:
        if request.inline:
            data[name] = partial(_decode, request.inline[int(name.removeprefix(_INLINE))])
            continue
        folder = also if name.startswith(f"{also}/") else "uploads"
        require_prefix(name, f"{folder}/{request.user_id}/")
        data[name] = partial(_fetch, "sidecars" if folder == "keyframes" else "uploads", name)
    for name, picture in _read(data, shown_px):
        if isinstance(picture, Exception) and not request.partial:
            raise picture
        yield name, picture


def _fetch(bucket: Bucket, key: str) -> bytes:
    return get_runtime().storage.get_bytes(bucket, key, max_bytes=MAX_PICTURE_BYTES)


def _decode(inline: str) -> bytes:
    try:
        return base64.b64decode(inline, validate=True)
    except (binascii.Error, ValueError):
        raise BadMedia("The picture is not base64: encode its file") from None


def _read(
    data: Mapping[str, Callable[[], bytes]], shown_px: int | None
) -> Iterator[tuple[str, Picture | ScenefleetError]]:
    # Not at the top: an API that names a task would load the decoders.
    from worker.media.pictures import count_pixels, decode_picture

    settings = get_runtime().settings
    bounds = {"max_pixels": MAX_PICTURE_PIXELS, "max_scans": settings.max_jpeg_scans}
    pixels = 0
    for name, read in data.items():
        try:
            found = read()
            pixels += count_pixels(found, **bounds)
            if pixels > settings.max_request_pixels:
                raise LimitExceeded(
                    f"With it the pictures of this request have {pixels} pixels, over the limit of "
                    f"{settings.max_request_pixels} (MAX_REQUEST_PIXELS); name fewer in one request, or smaller ones"
                )
            yield name, decode_picture(found, **bounds, shown_px=shown_px)
        except BadMedia as error:
            # The class is what the caller acts on.
            yield name, type(error)(f"{name}: {error}")
        except ScenefleetError as error:
            yield name, error
