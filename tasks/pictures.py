"""Pictures that callers name by their storage key: fetched and decoded within limits, for the tasks that use them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from shared.contracts import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS
from shared.errors import BadMedia, LimitExceeded, ScenefleetError
from shared.storage import Bucket, require_prefix
from worker.runtime import get_runtime


def read_pictures(
    keys: Iterable[str], user_id: str, *, also: str, shown_px: int | None = None, partial: bool = False
) -> Iterator[tuple[str, NDArray[np.uint8] | ScenefleetError]]:
    """Check all keys, then read each stored picture once: (key, uint8 [H, W, 3] RGB, upright), one after another.

    Args:
        keys: under ``uploads/{user_id}/`` or ``{also}/{user_id}/``.
        shown_px: longest side that the caller needs: larger pictures may come smaller.
        partial: return these errors, but InvalidKey, in the place of a picture.

    Raises:
        InvalidKey: a key is elsewhere.
        ObjectMissing, StorageUnavailable.
        LimitExceeded: too large, by itself or together with those before it.
        BadMedia: no picture, or damaged.
    """
    buckets: dict[str, Bucket] = {}
    for key in keys:
        folder = also if key.startswith(f"{also}/") else "uploads"
        require_prefix(key, f"{folder}/{user_id}/")
        buckets[key] = "sidecars" if folder == "keyframes" else "uploads"
    for key, picture in _read(buckets, shown_px):
        if isinstance(picture, Exception) and not partial:
            raise picture
        yield key, picture


def _read(
    buckets: Mapping[str, Bucket], shown_px: int | None
) -> Iterator[tuple[str, NDArray[np.uint8] | ScenefleetError]]:
    # Not at the top: an API that names a task would load the decoders.
    from worker.media.pictures import count_pixels, decode_picture

    runtime = get_runtime()
    settings = runtime.settings
    bounds = {"max_pixels": MAX_PICTURE_PIXELS, "max_scans": settings.max_jpeg_scans}
    pixels = 0
    for key, bucket in buckets.items():
        try:
            data = runtime.storage.get_bytes(bucket, key, max_bytes=MAX_PICTURE_BYTES)
            pixels += count_pixels(data, **bounds)
            if pixels > settings.max_request_pixels:
                raise LimitExceeded(
                    f"With it the pictures of this request have {pixels} pixels, over the limit of "
                    f"{settings.max_request_pixels} (MAX_REQUEST_PIXELS); name fewer in one request, or smaller ones"
                )
            yield key, decode_picture(data, **bounds, shown_px=shown_px)
        except BadMedia as error:
            # The class is what the caller acts on.
            yield key, type(error)(f"{key}: {error}")
        except ScenefleetError as error:
            yield key, error
