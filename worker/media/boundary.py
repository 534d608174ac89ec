"""Converts errors of FFmpeg and other libraries: whatever they raise for a user's file is an error of the file.

PyAV, OpenCV and NumPy raise errors of many classes for damaged files. A list of classes has always missed some, so
the rule is general; errors of scenefleet's own code pass through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import av
import cv2

from shared.errors import BadMedia, LimitExceeded, ScenefleetError

from .limits import MediaLimits

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


class Stopped(Exception):
    """Carries an exception of a caller's callback through ``media_errors``."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def media_errors(limits: MediaLimits) -> Iterator[None]:
    """Raise the libraries' errors inside the block as BadMedia, and lack of memory as LimitExceeded.

    Scenefleet errors, disk errors and bugs pass through; ``Stopped`` becomes the error that it carries.
    """
    try:
        yield
    except Stopped as stopped:
        raise stopped.error from None
    except ScenefleetError:
        raise
    except MemoryError as error:
        raise no_memory(limits) from error
    except Exception as error:
        if isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem:
            raise no_memory(limits) from error
        disk = isinstance(error, OSError) and not isinstance(error, av.FFmpegError)
        if disk or not (isinstance(error, _OVER_VALUES) or _raised_by_a_library(error.__traceback__)):
            raise
        reason = " ".join(str(error).split())[:120]
        raise BadMedia(
            f"The file can't be decoded ({type(error).__name__}{': ' if reason else ''}{reason}): it is damaged or of a kind "
            "that is not supported; convert it to H.264 in MP4"
        ) from error


def no_memory(limits: MediaLimits) -> LimitExceeded:
    """Return the error for a file whose decoding needs more memory than is allowed."""
    return LimitExceeded(
        f"Decoding needs more memory than the limit of {limits.memory_mb} MB (MEDIA_MEMORY_MB); "
        "scale it down or encode it with fewer reference frames"
    )


def _raised_by_a_library(trace: TracebackType | None) -> bool:
    """Whether the innermost frame is not in this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and not trace.tb_frame.f_code.co_filename.startswith(_OURS)
