"""Pictures that callers name by their storage key: fetched and decoded within limits, for the tasks that look at them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.contracts import MAX_PICTURE_BYTES, MAX_PICTURE_PIXELS
from shared.errors import BadMedia
from shared.storage import Bucket
from worker.runtime import get_runtime


def read_picture(bucket: Bucket, key: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] RGB, upright, of a stored picture; whose it is, is for the caller to check.

    Raises:
        ObjectMissing, StorageUnavailable.
        BadMedia: no picture, damaged or too large.
    """
    # Not at the top: an API that names a task would load the decoders.
    from worker.media.pictures import decode_picture

    data = get_runtime().storage.get_bytes(bucket, key, max_bytes=MAX_PICTURE_BYTES)
    try:
        return decode_picture(data, max_pixels=MAX_PICTURE_PIXELS)
    except BadMedia as error:
        # The class is what the caller acts on.
        raise type(error)(f"{key}: {error}") from error
