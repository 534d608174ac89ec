"""Online requests of the asr family, answered by the process that holds the model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from shared import routing
from shared.contracts import Sound, TranscribeAudio, TranscribedAudio, TranscribedSound
from shared.errors import BadMedia, InvalidRequest
from shared.storage import require_prefix
from tasks.requests import online_task
from worker.online.operations import Computed, Operation, Used, used_by
from worker.runtime import get_runtime

if TYPE_CHECKING:
    from worker.models.asr import Transcriber, Transcript

#: Longest stretch of sound one request may ask for, seconds.
MAX_SOUND_S = 60.0
#: An hour of film at 2 Mbit/s; where storage is a server, all of it is fetched.
_MAX_FILE_BYTES = 2**30
#: Longest time that getting at the sound may take, seconds.
_MAX_READING_S = 40.0


class _Heard(NamedTuple):
    sound: Sound
    transcript: Transcript
    duration_s: float


def _prepare(request: TranscribeAudio, first: int, end: int) -> list[Any]:
    """Check the sounds. They are read when they are transcribed: a minute takes 4 MB."""
    if request.sounds is not None:
        if request.storage_key is not None:
            raise InvalidRequest(
                "storage_key and sounds exclude each other: send one sound, or several in sounds"
            )
        sounds: Sequence[Sound] = request.sounds
    elif request.storage_key is None:
        raise InvalidRequest("storage_key is missing: send it")
    else:
        sounds = [Sound(storage_key=request.storage_key, start_s=request.start_s, end_s=request.end_s)]
    for sound in sounds:
        require_prefix(sound.storage_key, f"uploads/{request.user_id}/")
        if sound.end_s is not None:
            asked_s = sound.end_s - sound.start_s
            if not 0 < asked_s <= MAX_SOUND_S:
                raise InvalidRequest(
                    f"start_s={sound.start_s:g} to end_s={sound.end_s:g} is {asked_s:g} s of sound: ask for more than"
                    f" 0 s and at most {MAX_SOUND_S:g} s"
                )
    return list(sounds[first:end])


def _transcribe(_: None, sounds: list[Sound]) -> Computed:
    # Not at the top: an API that names a task would load it.
    from worker.models.base import SAMPLE_RATE_HZ

    model = cast("Transcriber", get_runtime().model("asr"))
    heard: list[Any] = []
    for sound in sounds:
        samples = _read(sound)
        said = model.transcribe(samples, offset_s=sound.start_s)
        heard.append(_Heard(sound, said, samples.size / SAMPLE_RATE_HZ))
    return Computed(used_by(model), heard)


def _write(request: TranscribeAudio, used: Used, heard: Sequence[_Heard | None]) -> dict[str, Any]:
    said = [
        found
        and TranscribedSound(
            language=found.transcript.language,
            text=found.transcript.text,
            segments=found.transcript.segments,
            duration_s=found.duration_s,
        )
        for found in heard
    ]
    only = said[0] if request.sounds is None else None
    answer = TranscribedAudio(
        model=used.model,
        revision=used.revision,
        language=only.language if only else None,
        text=only.text if only else "",
        segments=only.segments if only else (),
        duration_s=only.duration_s if only else None,
        sounds=None if request.sounds is None else tuple(said),
    )
    return answer.model_dump(mode="json")


def _read(sound: Sound) -> NDArray[np.float32]:
    """float32 [N] in -1..1 at 16 kHz.

    Raises:
        ObjectMissing, StorageUnavailable.
        BadMedia: no sound there, damaged or too much.
    """
    from worker.media.limits import media_limits
    from worker.media.sandbox import read_excerpt

    runtime = get_runtime()
    settings, key = runtime.settings, sound.storage_key
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
            start_s=sound.start_s,
            end_s=sound.end_s,
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


#: Transcribe at most a minute of a stored audio or video file of a user, or of several. With the longer limit: on a CPU a
#: large model is slower than the speaker.
transcribe = online_task(
    routing.ASR_TRANSCRIBE,
    Operation(
        contract=TranscribeAudio,
        fields=("sounds",),
        most=1,
        prepare=_prepare,
        options=lambda request: None,
        compute=_transcribe,
        answer=_write,
    ),
)
