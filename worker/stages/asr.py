"""asr: the words of one window of audio."""

from __future__ import annotations

from typing import cast

from sqlalchemy.orm import Session

from db.scenes import write_transcript
from worker.models.asr import Transcriber
from worker.stages.context import Outcome, StageContext, model_row


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    start_s, end_s = float(claimed.payload["start_s"]), float(claimed.payload["end_s"])
    audio = context.read_audio(start_s, end_s)
    model = cast(Transcriber, context.runtime.model("asr"))
    transcript = model.transcribe(audio, offset_s=start_s, on_step=context.report)

    def write(session: Session) -> None:
        write_transcript(
            session, video_id=claimed.video_id, user_id=claimed.user_id, run=claimed.run, part=claimed.part,
            start_s=start_s, end_s=end_s, language=transcript.language,
            segments=[segment.model_dump() for segment in transcript.segments],
            model_id=model_row(session, model.spec).model_id,
        )  # fmt: skip

    return Outcome(result={"segments": len(transcript.segments)}, write=write)
