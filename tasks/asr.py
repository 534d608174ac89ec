"""Online requests of the asr family, answered by the process that holds the model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import TranscribeAudio, TranscribedAudio
from shared.errors import BadMedia, InvalidRequest
from shared.storage import require_prefix
from tasks.requests import request_task
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.asr import Transcriber

#: Longest stretch of sound one request may ask for, seconds.
MAX_SOUND_S = 60.0
#: An hour of film at 2 Mbit/s; where storage is a server, all of it is fetched.
_MAX_FILE_BYTES = 2**30
#: Longest time that getting at the sound may take, seconds.
_MAX_READING_S = 40.0


# With the longer limit: on a CPU a large model is slower than the speaker.
@request_task(routing.ASR_TRANSCRIBE, TranscribeAudio)
def transcribe(request: TranscribeAudio) -> TranscribedAudio:
    """Transcribe at most a minute of a stored audio or video file of a user."""
    require_prefix(request.storage_key, f"uploads/{request.user_id}/")
    if request.end_s is not None:
        asked_s = request.end_s - request.start_s
        if not 0 < asked_s <= MAX_SOUND_S:
            raise InvalidRequest(
                f"start_s={request.start_s:g} to end_s={request.end_s:g} is {asked_s:g} s of sound: ask for more than 0 s"
                f" and at most {MAX_SOUND_S:g} s"
            )
    # Not at the top: an API that names a task would load it.
    from worker.models.base import SAMPLE_RATE_HZ

    sound = _read(request)
    model = cast("Transcriber", get_runtime().model("asr"))
    heard = model.transcribe(sound, offset_s=request.start_s)
    return TranscribedAudio(
        model=model.spec.name,
        revision=model.spec.revision,
        language=heard.language,
        text=heard.text,
        segments=heard.segments,
        duration_s=sound.size / SAMPLE_RATE_HZ,
    )


def _read(request: TranscribeAudio) -> NDArray[np.float32]:
    """float32 [N] in -1..1 at 16 kHz.

    Raises:
        ObjectMissing, StorageUnavailable.
        BadMedia: no sound there, damaged or too much.
    """
    from worker.media.limits import media_limits
    from worker.media.sandbox import read_excerpt

    runtime = get_runtime()
    settings, key = runtime.settings, request.storage_key
    limits = media_limits(settings)
    # The request's own limit would end the process that holds the model.
    limits = replace(
        limits,
        max_video_bytes=min(_MAX_FILE_BYTES, limits.max_video_bytes),
        media_cpu_base_s=min(_MAX_READING_S, limits.media_cpu_base_s),
    )
    folder = runtime.attempt_dir("transcribe")
    try:
        path = runtime.storage.local_path("uploads", key)
        if path is None:
            path = folder / "source"
            runtime.storage.get_file("uploads", key, path, max_bytes=limits.max_video_bytes)
        samples = read_excerpt(
            path,
            folder,
            start_s=request.start_s,
            end_s=request.end_s,
            max_s=MAX_SOUND_S,
            limits=limits,
            wall_s=_MAX_READING_S,
        )
    except BadMedia as error:
        # The class is what the caller acts on.
        raise type(error)(f"{key}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return samples.astype(np.float32) / 32768.0
