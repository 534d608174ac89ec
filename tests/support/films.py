"""A video of pictures that a test chooses, and its stages run one by one as the runner does, without a fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from sqlalchemy.orm import Session

from db.engine import transact
from db.ledger.claims import Claim
from db.ledger.jobs import Subject
from db.scenes import write_scenes
from db.tables import Run, Video
from worker.models.base import Uint8
from worker.runtime import Runtime
from worker.stages.context import StageContext


@dataclass
class Film:
    """Video "v" of user "u", and the runtime that processes it."""

    runtime: Runtime
    folder: Path
    reported: list[float] = field(default_factory=list)

    def shoot(self, *scenes: Sequence[Uint8]) -> None:
        """Store the keyframes of each scene, uint8 [H, W, 3] RGB, one a second."""

        def write(session: Session) -> None:
            session.add(Video(video_id="v", user_id="u", storage_key="k", run=0))
            session.flush()
            rows = []
            for idx, pictures in enumerate(scenes):
                start_s = float(sum(map(len, scenes[:idx])))
                keyframes = []
                for ordinal, picture in enumerate(pictures):
                    key = f"keyframes/u/v/1.1/{idx}.{ordinal}.jpg"
                    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
                    self.runtime.storage.put_bytes("sidecars", key, data.tobytes(), "image/jpeg")
                    height, width = picture.shape[:2]
                    frame = {"ordinal": ordinal, "ts_s": start_s + ordinal, "key": key}
                    keyframes.append({**frame, "width": width, "height": height})
                end_s = start_s + len(pictures)
                rows.append(
                    {"idx": idx, "start_s": start_s, "end_s": end_s, "kind": "cut", "keyframes": keyframes}
                )
            write_scenes(session, "v", "u", 1, rows)

        transact(write)

    def begin(self, run: int, made: Mapping[str, int]) -> None:
        """Start a run; ``made``: stage -> the run whose results count."""

        def write(session: Session) -> None:
            session.add(Run(video_id="v", run=run, stages=sorted(made), stage_runs=dict(made)))
            video = session.get(Video, "v")
            assert video is not None
            video.run = run

        transact(write)

    def work(self, module: Any, name: str, run: int, last_idx: int = 9) -> dict[str, Any]:
        """Run a stage and store what it found; returns what it says of itself."""
        claimed = Claim(
            job_id=run, attempt=1, owner="n:1:0:1", subject=Subject("video", "v"), user_id="u", queue=name, run=run,
            stage=name, part=0, failures=0, payload={"first_idx": 0, "last_idx": last_idx},
        )  # fmt: skip
        context = StageContext(
            claimed=claimed, runtime=self.runtime, folder=self.folder, report=self.reported.append
        )
        outcome = module.run(context)
        # A lost commit makes the runner write again.
        transact(outcome.write)
        transact(outcome.write)
        return dict(outcome.result)
