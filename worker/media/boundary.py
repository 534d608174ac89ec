"""Converts errors of FFmpeg and other libraries: whatever they raise for a user's file is an error of the file.

PyAV, OpenCV and NumPy raise errors of many classes for damaged files. A list of classes has always missed some, so
the rule is general; errors of scenefleet's own code pass through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

import av
import cv2

from shared.errors import BadMedia, ScenefleetError

from .limits import MediaLimits, no_memory

#: Classes that the libraries raise over values they were given, wherever the call stands.
_OVER_VALUES = (
    av.FFmpegError,
    cv2.error,
    ValueError,
    ArithmeticError,
    NotImplementedError,
    EOFError,
    BufferError,
)
_OURS = str(Path(__file__).parent)


@contextmanager
def media_errors(limits: MediaLimits) -> Iterator[None]:
    """Raise the libraries' errors inside the block as BadMedia, and lack of memory as LimitExceeded.

    Scenefleet errors, disk errors and bugs pass through.
    """
    try:
        yield
    except MemoryError as error:
        raise no_memory(limits) from error
    except Exception as error:
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            raise no_memory(limits) from error
        passes = isinstance(error, ScenefleetError | OSError) and not isinstance(error, av.FFmpegError)
        *_, (innermost, _) = walk_tb(error.__traceback__)
        raised_here = innermost.f_code.co_filename.startswith(_OURS)
        if passes or (raised_here and not isinstance(error, _OVER_VALUES)):
            raise
        reason = " ".join(str(error).split())[:120]
        raise BadMedia(
            f"The file can't be decoded ({type(error).__name__}{': ' if reason else ''}{reason}): it is damaged or of a kind "
            "that is not supported; convert it to H.264 in MP4"
        ) from error
