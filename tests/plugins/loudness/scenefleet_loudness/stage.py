"""loudness: the RMS level of a batch of scenes, in dBFS."""

from __future__ import annotations

import math
from uuid import UUID

import numpy as np
from sqlalchemy.orm import Session

from db.engine import reading
from scenefleet_loudness.rows import write_levels
from worker.stages.context import Outcome, StageContext

#: The level of digital silence.
FLOOR_DBFS = -120.0


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        scenes = context.scenes(session)
    levels: dict[UUID, float] = {}
    for done, scene in enumerate(scenes if context.audio_key() else ()):
        # A cancelled job stops here.
        context.report(done / len(scenes))
        samples = context.read_audio(scene.start_s, scene.end_s)
        power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
        levels[scene.scene_id] = round(max(FLOOR_DBFS, 10 * math.log10(power)), 2) if power else FLOOR_DBFS

    def write(session: Session) -> None:
        write_levels(session, claimed.run, claimed.user_id, [scene.scene_id for scene in scenes], levels)

    return Outcome(result={"scenes": len(levels)}, write=write)
