"""loudness: the RMS level of a batch of scenes, in dBFS, and the model that measures it."""

from __future__ import annotations

import json
import math
from typing import cast

import numpy as np
from sqlalchemy.orm import Session

from db.engine import reading
from scenefleet_loudness.rows import write_levels
from worker.models.base import SAMPLE_RATE_HZ, Float32, Model
from worker.stages.context import Outcome, StageContext


class RmsMeter(Model):
    """Measures sound; its only weight is the level of silence."""

    _floor_dbfs = math.nan

    def _load(self) -> None:
        self._floor_dbfs = json.loads(self._file("meter.json").read_text())["floor_dbfs"]

    def _unload(self) -> None:
        self._floor_dbfs = math.nan

    def _warm_up(self) -> None:
        self._measure(np.zeros(SAMPLE_RATE_HZ, np.float32))

    def measure(self, samples: Float32) -> float:
        """The level of ``samples``, float32 [N] in -1..1, in dBFS."""
        with self._ready(), self._engine():
            return self._measure(samples)

    def _measure(self, samples: Float32) -> float:
        power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
        return round(max(self._floor_dbfs, 10 * math.log10(power)), 2) if power else self._floor_dbfs


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    meter = cast(RmsMeter, context.runtime.model("loudness"))
    with reading() as session:
        scenes = context.scenes(session)
    levels = {}
    for done, scene in enumerate(scenes if context.audio_key() else ()):
        # A cancelled job stops here.
        context.report(done / len(scenes))
        levels[scene.scene_id] = meter.measure(context.read_audio(scene.start_s, scene.end_s))

    def write(session: Session) -> None:
        write_levels(session, claimed.run, claimed.user_id, [scene.scene_id for scene in scenes], levels)

    return Outcome(result={"scenes": len(levels)}, write=write)
