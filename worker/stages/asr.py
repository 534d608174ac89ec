"""asr: the words of one window of audio."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.scenes import write_transcript
from shared.errors import ObjectMissing
from worker.models.asr import Transcriber
from worker.models.base import SAMPLE_RATE_HZ
from worker.stages.context import Outcome, StageContext, model_row

#: The split's WAV: a fixed header, then mono s16le samples, so that a window is one ranged read.
_HEADER_BYTES = 44
_SAMPLE_BYTES = 2


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    start_s, end_s = float(claimed.payload["start_s"]), float(claimed.payload["end_s"])
    audio = _read_window(context, start_s, end_s)
    model = cast(Transcriber, context.runtime.model("asr"))
    transcript = model.transcribe(audio, offset_s=start_s, on_step=context.report)

    def write(session: Session) -> None:
        write_transcript(
            session,
            video_id=claimed.video_id,
            user_id=claimed.user_id,
            run=claimed.run,
            part=claimed.part,
            start_s=start_s,
            end_s=end_s,
            language=transcript.language,
            segments=transcript.to_dict()["segments"],
            model_id=model_row(session, model.spec).model_id,
        )

    return Outcome(result={"segments": len(transcript.segments)}, write=write)


def _read_window(context: StageContext, start_s: float, end_s: float) -> npt.NDArray[np.float32]:
    """float32 [N] in -1..1 at 16 kHz."""
    key = context.audio_key()
    if key is None:
        raise ObjectMissing(
            f"run {context.claimed.run} of video {context.claimed.video_id} has no audio: rerun asr"
        )
    first, last = round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
    data = context.storage.get_bytes(
        "tmp", key, offset=_HEADER_BYTES + first * _SAMPLE_BYTES, length=(last - first) * _SAMPLE_BYTES
    )
    samples = np.frombuffer(data[: len(data) // _SAMPLE_BYTES * _SAMPLE_BYTES], dtype="<i2")
    return samples.astype(np.float32) / 32768.0
