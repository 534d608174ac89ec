"""One job of one stage, done again and again by the code a worker runs: claim, lease, stage, the transaction at the end.

Over a real Postgres and a folder as storage, in this process. No wake-up messages: nothing follows, so Redis is not needed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.engine import transact
from db.expressions import NOW
from db.ledger import attempts, jobs
from db.ledger.claims import claim
from db.scenes import write_scenes, write_transcript
from db.tables import Job, Model, Run, Video
from shared import graph
from shared.storage import attempt_prefix
from worker import stages
from worker.lease import hold
from worker.models.base import SAMPLE_RATE_HZ, Float32, Uint8
from worker.runtime import Runtime
from worker.stages.context import StageContext

VIDEO, USER, RUN = "bench", "bench", 1
#: Length of a made-up scene with words, and of the windows of audio they come from, seconds.
SCENE_S, WINDOW_S = 15.0, 120.0

_RESET = text("UPDATE jobs SET state = 'queued', lease_owner = NULL, lease_until = NULL WHERE stage = :stage")


@dataclass(frozen=True)
class Took:
    """Seconds of one job: the stage's own function, and all from the claim to the commit."""

    stage_s: float
    job_s: float


class Work:
    """A video in the ledger whose only open job is one of this stage."""

    def __init__(self, runtime: Runtime, stage: str) -> None:
        self.runtime, self.stage = runtime, graph.STAGES[stage]
        self._files: list[Any] = []
        runtime.owner = "bench:0:0"
        runtime.storage.ensure_buckets()

    def put_audio(self, samples: Float32) -> None:
        """The job's window of speech: float32 [N], mono, 16 kHz."""
        key = f"{attempt_prefix('tmp', USER, VIDEO, '1', 1)}audio.wav"
        data = bytes(44) + (samples * 32767).astype("<i2").tobytes()
        self.runtime.storage.put_bytes("tmp", key, data, "audio/wav")
        length_s = len(samples) / SAMPLE_RATE_HZ
        self._open(
            {"audio_key": key, "windows": [[0.0, length_s]]}, {"start_s": 0.0, "end_s": length_s}, [], []
        )

    def put_texts(self, texts: Sequence[str]) -> None:
        """One scene for each text, in which it is said."""
        scenes = [self._scene(idx, []) for idx in range(len(texts))]
        self._open({}, {"first_idx": 0, "last_idx": len(texts) - 1}, scenes, texts)

    def put_pictures(self, pictures: Sequence[Uint8]) -> list[Uint8]:
        """One scene of one keyframe each. Returns the pictures as they are after JPEG."""
        prefix = attempt_prefix("keyframes", USER, VIDEO, "1", 1)
        scenes = []
        for idx, picture in enumerate(pictures):
            _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
            key = f"{prefix}{idx:06d}_0.jpg"
            self.runtime.storage.put_bytes("sidecars", key, data.tobytes(), "image/jpeg")
            self._files.append(data)
            height, width = picture.shape[:2]
            keyframe = {"ordinal": 0, "key": key, "ts_s": idx * SCENE_S, "width": width, "height": height}
            scenes.append(self._scene(idx, [keyframe]))
        self._open({}, {"first_idx": 0, "last_idx": len(pictures) - 1}, scenes, [])
        return self.decode()

    def decode(self) -> list[Uint8]:
        """The pictures as OpenCV reads them: what any script on the same files has to do first."""
        decoded = [cv2.imdecode(data, cv2.IMREAD_COLOR) for data in self._files]
        return [
            np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
            for picture in decoded
            if picture is not None
        ]

    def read(self) -> None:
        """Decode the pictures, for the clock."""
        self.decode()

    def do(self) -> Took:
        """Do the job once; raises what the stage raises."""
        settings = self.runtime.settings
        transact(lambda session: session.execute(_RESET, {"stage": self.stage.name}))
        began = time.perf_counter()
        claimed = transact(
            lambda session: claim(session, self.stage.queue, self.runtime.owner, settings.lease_s)
        )
        assert claimed is not None and claimed.stage == self.stage.name
        folder = self.runtime.attempt_dir(claimed.storage_part)
        with hold(
            claimed, lease_s=settings.lease_s, heartbeat_s=settings.heartbeat_s,
            time_limit_s=self.stage.time_limit_s, on_time_limit=lambda error: None,
        ) as report:  # fmt: skip
            context = StageContext(claimed=claimed, runtime=self.runtime, folder=folder, report=report)
            stage_began = time.perf_counter()
            outcome = stages.run(context)
            stage_s = time.perf_counter() - stage_began
            transact(
                lambda session: attempts.finish(
                    session, claimed, outcome.write, outcome.result, self.runtime.policy
                )
            )
        return Took(stage_s, time.perf_counter() - began)

    def _scene(self, idx: int, keyframes: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "idx": idx, "start_s": idx * SCENE_S, "end_s": (idx + 1) * SCENE_S, "kind": "cut", "keyframes": keyframes,
        }  # fmt: skip

    def _open(
        self,
        split_result: dict[str, Any],
        payload: dict[str, Any],
        scenes: Sequence[dict[str, Any]],
        texts: Sequence[str],
    ) -> None:
        made = dict.fromkeys(graph.FULL_RUN, RUN)
        common = {"subject_id": VIDEO, "video_id": VIDEO, "user_id": USER, "run": RUN}

        def write(session: Session) -> None:
            session.add(Video(video_id=VIDEO, user_id=USER, storage_key="none", state="processing", run=RUN))
            session.flush()
            # Ended: nothing follows the job.
            session.add(
                Run(video_id=VIDEO, run=RUN, stages=list(graph.FULL_RUN), stage_runs=made, ended_at=NOW)
            )
            session.add(Job(**common, queue="media", stage="split", state="done", result=split_result))
            jobs.insert(
                session,
                [
                    Job(
                        **common,
                        queue=self.stage.queue,
                        stage=self.stage.name,
                        state="queued",
                        payload=payload,
                    )
                ],
            )
            write_scenes(session, VIDEO, USER, RUN, scenes)
            if texts:
                self._say(session, texts)

        transact(write)

    def _say(self, session: Session, texts: Sequence[str]) -> None:
        hearer = Model(name="bench-asr", revision="1", family="asr")
        session.add(hearer)
        session.flush()
        a_window = int(WINDOW_S / SCENE_S)
        for part, first in enumerate(range(0, len(texts), a_window)):
            segments = [
                _segment(said, (first + place) * SCENE_S)
                for place, said in enumerate(texts[first : first + a_window])
            ]
            write_transcript(
                session, video_id=VIDEO, user_id=USER, run=RUN, part=part, start_s=part * WINDOW_S,
                end_s=(part + 1) * WINDOW_S, language="en", segments=segments, model_id=hearer.model_id,
            )  # fmt: skip


def _segment(said: str, start_s: float) -> dict[str, Any]:
    words = said.split()
    each_s = (SCENE_S - 1) / len(words)
    times = [start_s + 0.5 + place * each_s for place in range(len(words))]
    return {
        "start_s": times[0],
        "end_s": times[-1] + each_s,
        "text": said,
        "words": [
            {"text": word, "start_s": at_s, "end_s": at_s + each_s, "probability": 0.9}
            for word, at_s in zip(words, times, strict=True)
        ],
        "rejected": None,
    }
