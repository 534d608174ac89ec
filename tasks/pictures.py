"""Pictures that callers name by their storage key: fetched and decoded within limits, for the tasks that look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.contracts import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS
from shared.errors import BadMedia, LimitExceeded
from shared.storage import Bucket
from worker.runtime import get_runtime

T = TypeVar("T")


class PictureReader:
    """Reads the pictures of one request, and counts what they cost together."""

    def __init__(self) -> None:
        self._pixels = 0

    def read(self, bucket: Bucket, key: str, *, shown_px: int | None = None) -> NDArray[np.uint8]:
        """uint8 [H, W, 3] RGB, upright, of a stored picture; whose it is, is for the caller to check.

        ``shown_px``: longest side that the caller has a use for: larger pictures may come smaller.

        Raises:
            ObjectMissing, StorageUnavailable.
            LimitExceeded: too large, by itself or together with those before it.
            BadMedia: no picture, or damaged.
        """
        # Not at the top: an API that names a task would load the decoders.
        from worker.media.pictures import count_pixels, decode_picture

        runtime = get_runtime()
        settings = runtime.settings
        data = runtime.storage.get_bytes(bucket, key, max_bytes=MAX_PICTURE_BYTES)
        bounds = {"max_pixels": MAX_PICTURE_PIXELS, "max_scans": settings.max_jpeg_scans}
        try:
            self._pixels += count_pixels(data, **bounds)
            if self._pixels > settings.max_request_pixels:
                raise LimitExceeded(
                    f"With it the pictures of this request have {self._pixels} pixels, over the limit of "
                    f"{settings.max_request_pixels} (MAX_REQUEST_PIXELS); name fewer in one request, or smaller ones"
                )
            return decode_picture(data, **bounds, shown_px=shown_px)
        except BadMedia as error:
            # The class is what the caller acts on.
            raise type(error)(f"{key}: {error}") from error


def each_once(keys: Sequence[str], look: Callable[[Iterable[str]], Iterable[T]]) -> list[T]:
    """What ``look`` finds for each key, in the keys' order; it is given every key once, however often it is named."""
    once = dict.fromkeys(keys)
    found = dict(zip(once, look(once), strict=True))
    return [found[key] for key in keys]
