"""audio: the 16 kHz audio alone, for a run that repeats asr without split, and for a split in spans."""

from __future__ import annotations

from shared import graph
from worker.media.limits import media_limits
from worker.media.sandbox import extract_audio
from worker.stages.context import Outcome, StageContext

#: Share of the stage's time limit after which a file is refused: past the limit itself it would be tried again.
SHARE_OF_LIMIT = 0.9
#: Length of an asr part, seconds of audio.
PART_S = 120.0


def run(context: StageContext) -> Outcome:
    with context.source() as source:
        audio, windows = extract_audio(
            source,
            context.folder,
            limits=media_limits(context.runtime.settings),
            part_s=PART_S,
            on_progress=lambda fraction: context.report(fraction * 0.9),
            wall_s=SHARE_OF_LIMIT * graph.AUDIO.time_limit_s,
        )
    return Outcome(
        result={"audio_key": context.store_audio(audio), "windows": [list(window) for window in windows]}
    )
