"""A video of pictures or words that a test chooses, and its stages run one by one as the runner does, without a fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from sqlalchemy.orm import Session

from db.engine import reading, transact
from db.ledger.claims import Claim
from db.ledger.jobs import Subject
from db.scenes import scenes_between, write_scenes, write_transcript
from db.tables import Job, Model, Run, Scene, Video
from shared.errors import LeaseLost
from worker.models.base import Uint8
from worker.runtime import Runtime
from worker.stages.context import StageContext


def cut(*scenes: Sequence[Mapping[str, Any]], length_s: float | None = None) -> None:
    """Make video "v" of user "u" with these scenes, given by their keyframes, one a second unless ``length_s`` says."""

    def write(session: Session) -> None:
        session.add(Video(video_id="v", user_id="u", storage_key="k", run=0))
        session.add(Model(model_id=99, name="m", revision="1", family="asr"))
        session.flush()
        rows, start_s = [], 0.0
        for idx, keyframes in enumerate(scenes):
            end_s = start_s + (length_s or len(keyframes))
            times = [{**frame, "ordinal": n, "ts_s": start_s + n} for n, frame in enumerate(keyframes)]
            rows.append({"idx": idx, "start_s": start_s, "end_s": end_s, "kind": "cut", "keyframes": times})
            start_s = end_s
        write_scenes(session, "v", "u", 1, rows)

    transact(write)


def scenes(first_idx: int = 0, last_idx: int = 9) -> list[Scene]:
    with reading() as session:
        return scenes_between(session, "v", 1, first_idx, last_idx)


def word(start_s: float, text: str, end_s: float | None = None) -> dict[str, Any]:
    return {"start_s": start_s, "end_s": end_s or start_s + 0.2, "text": text, "probability": 1.0}


def segment(*words: Mapping[str, Any], text: str | None = None) -> dict[str, Any]:
    said = " ".join(word["text"] for word in words) if text is None else text
    return {"start_s": words[0]["start_s"], "end_s": words[-1]["end_s"], "text": said, "words": list(words)}


def say(run: int, part: int, start_s: float, end_s: float, *segments: Any, language: str = "en") -> None:
    """Store what a run heard in one window of the video."""
    transact(lambda session: write_transcript(
        session, video_id="v", user_id="u", run=run, part=part, start_s=start_s, end_s=end_s, language=language,
        segments=segments, model_id=99,
    ))  # fmt: skip


def begin(run: int, made: Mapping[str, int]) -> None:
    """Start a run; ``made``: stage -> the run whose results count."""

    def write(session: Session) -> None:
        session.add(Run(video_id="v", run=run, stages=sorted(made), stage_runs=dict(made)))
        session.get_one(Video, "v").run = run

    transact(write)


def _hold(stage: str, run: int) -> int:
    """A running job of video "v"."""

    def write(session: Session) -> int:
        held = {"state": "running", "attempt": 1, "lease_owner": "n:1:0:1"}
        job = Job(subject_id="v", video_id="v", user_id="u", queue=stage, run=run, stage=stage, **held)
        session.add(job)
        session.flush()
        return job.job_id

    return transact(write)


@dataclass
class Film:
    """Video "v" of user "u", and the runtime that processes it."""

    runtime: Runtime
    folder: Path
    reported: list[float] = field(default_factory=list)
    #: Whether the next report finds that the lease was lost.
    lost: bool = False

    def shoot(self, *scenes: Sequence[Uint8]) -> None:
        """Store the keyframes of each scene, uint8 [H, W, 3] RGB, one a second."""
        cut(
            *(
                [self.store(f"{idx}.{ordinal}", picture) for ordinal, picture in enumerate(pictures)]
                for idx, pictures in enumerate(scenes)
            )
        )

    def store(self, name: str, picture: Uint8 | bytes) -> dict[str, Any]:
        """Store a keyframe, or a damaged one."""
        key = f"keyframes/u/v/1.1/{name}.jpg"
        if isinstance(picture, bytes):
            self.runtime.storage.put_bytes("sidecars", key, picture, "image/jpeg")
            return {"key": key}
        _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.runtime.storage.put_bytes("sidecars", key, data.tobytes(), "image/jpeg")
        return {"key": key, "width": picture.shape[1], "height": picture.shape[0]}

    def work(self, module: Any, name: str, run: int, last_idx: int = 9) -> dict[str, Any]:
        """Run a stage and store what it found; returns what it says of itself."""
        # It writes under its attempt, before its last transaction.
        job_id = _hold(name, run) if name == "sidecar" else run
        claimed = Claim(
            job_id=job_id, attempt=1, owner="n:1:0:1", subject=Subject("video", "v"), user_id="u", queue=name, run=run,
            stage=name, part=0, failures=0, payload={"first_idx": 0, "last_idx": last_idx},
        )  # fmt: skip
        outcome = module.run(
            StageContext(claimed=claimed, runtime=self.runtime, folder=self.folder, report=self._report)
        )
        # A lost commit makes the runner write again.
        transact(outcome.write)
        transact(outcome.write)
        return dict(outcome.result)

    def _report(self, fraction: float) -> None:
        if self.lost:
            raise LeaseLost
        self.reported.append(fraction)
