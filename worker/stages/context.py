"""What a stage is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from db.engine import reading, transact
from db.ids import name_video
from db.ledger import attempts, bisection, video_runs
from db.ledger.claims import Claim
from db.scenes import scenes_between
from db.tables import Job, Run, Scene, Video
from db.vectors import ModelRow, ensure_model
from shared import graph
from shared.errors import BadMedia, LeaseLost, ObjectMissing
from shared.storage import Bucket, Storage, attempt_prefix, require_prefix
from worker.models.base import SAMPLE_RATE_HZ
from worker.models.spec import ModelSpec
from worker.runtime import Runtime

T = TypeVar("T")

#: Split writes pictures of 1280 px a side at most.
_MAX_KEYFRAME_PIXELS = 1280 * 1280
_MAX_KEYFRAME_BYTES = 32 * 2**20
#: The split's WAV: a fixed header, then mono s16le samples, so that a stretch is one ranged read.
_HEADER_BYTES, _SAMPLE_BYTES = 44, 2


class Deferred(Exception):
    """The job is not done; put it back, uncounted.

    Args:
        wait_s: it can't run yet: the first pause, seconds, which doubles when it is put back again and again.
        progressed: it got on, and gives way to other jobs before it goes on: it comes back after ``wait_s`` (at once),
            and later pauses begin again.
    """

    def __init__(self, wait_s: float = 0.0, *, progressed: bool = False) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s
        self.progressed = progressed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage found: ``write`` stores rows inside the finishing transaction and may run more than once."""

    result: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[Session], None] = field(default=lambda session: None)


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """One attempt at one job."""

    claimed: Claim
    runtime: Runtime
    #: An empty folder, removed when the attempt ends.
    folder: Path
    #: Takes the fraction done (0..1); raises LeaseLost when the work should stop.
    report: Callable[[float], None]
    #: What this attempt stores outside its own prefixes, noted before it is stored: removed if the attempt is lost.
    stored: list[tuple[Bucket, str]] = field(default_factory=list)

    @property
    def storage(self) -> Storage:
        return self.runtime.storage

    @cached_property
    def video_name(self) -> str:
        """The id by which its user knows the video: storage keys hold it, not the primary key."""
        with reading() as session:
            return name_video(session, self.claimed.video_id)

    def write(self, work: Callable[[Session, Job], T]) -> T:
        """Run ``work`` in a transaction that holds the job's subject and the job, and proves that both are ours still.

        For long work in batches: what ``work`` notes in the job's row (progress, payload) is kept with its batch.

        Raises:
            LeaseLost: another attempt, a cancel or a delete took the job; nothing is written.
        """

        return transact(lambda session: work(session, attempts.fence(session, self.claimed)[1]))

    def video_and_run(self, session: Session) -> tuple[Video, Run]:
        """The job's video and run.

        Raises:
            LeaseLost: the video is on to another run, or deleted.
        """
        video = session.get(Video, self.claimed.video_id)
        run = session.get(Run, (self.claimed.video_id, self.claimed.run))
        if video is None or run is None or video.run != self.claimed.run or video.deleted_at is not None:
            raise LeaseLost(f"run {self.claimed.run} of video {self.claimed.video_id} is over")
        return video, run

    def scenes(self, session: Session) -> list[Scene]:
        """The scenes of the job's part, in order, for a stage that is cut into scenes or keyframes.

        After deaths they may be without some of their keyframes (db/ledger/bisection.py).

        Raises:
            LeaseLost: as ``video_and_run``.
        """
        _, run = self.video_and_run(session)
        first, last = (int(self.claimed.payload[name]) for name in ("first_idx", "last_idx"))
        split = int(run.stage_runs[graph.SPLIT.name])
        scenes = scenes_between(session, self.claimed.video_id, split, first, last)
        for scene in scenes if "without" in self.claimed.payload else ():
            session.expunge(scene)
            shown = bisection.shown_keyframes(self.claimed.payload, scene.keyframes)
            set_committed_value(scene, "keyframes", shown)
        return scenes

    def prefix(self, role: str) -> str:
        """The folder in storage that only this attempt writes to; ``role`` is ``tmp``, ``keyframes`` or ``renditions``."""
        claimed = self.claimed
        return attempt_prefix(role, claimed.user_id, self.video_name, str(claimed.job_id), claimed.attempt)

    @contextmanager
    def source(self) -> Iterator[Path]:
        """The source video as a local file, while it is read. If that fails and the storage is away, this is to blame, not the video.

        Raises:
            InvalidKey, ObjectMissing, LimitExceeded, StorageUnavailable.
        """
        key = self._source_key()
        path = self._fetch(key)
        try:
            yield path
        except (BadMedia, OSError):
            self.storage.stat("uploads", key)
            raise

    def _fetch(self, key: str) -> Path:
        """The stored file itself where storage is a folder, else a copy."""
        local = self.storage.local_path("uploads", key)
        if local is not None:
            return local
        path = self.folder / "source"
        max_bytes = self.runtime.settings.max_video_bytes
        self.storage.get_file(
            "uploads", key, path, max_bytes=max_bytes, on_progress=lambda *_: self.report(0.0)
        )
        return path

    def _source_key(self) -> str:
        with reading() as session:
            video, _ = self.video_and_run(session)
            key = video.storage_key
        return require_prefix(key, f"uploads/{self.claimed.user_id}/{self.video_name}/")

    def read_keyframe(self, key: str) -> NDArray[np.uint8]:
        """A keyframe of this video: uint8 [H, W, 3] RGB.

        Raises:
            ObjectMissing, StorageUnavailable.
            BadMedia: the stored picture can't be decoded, which a new split mends.
        """
        # Not at the top: whoever names a stage would load the decoders.
        from worker.media.pictures import decode_picture

        data = self.storage.get_bytes("sidecars", key, max_bytes=_MAX_KEYFRAME_BYTES)
        try:
            return decode_picture(data, max_pixels=_MAX_KEYFRAME_PIXELS)
        except BadMedia as error:
            raise BadMedia(f"Keyframe {key} is damaged, rerun split: {error}") from error

    def store_audio(self, audio: Path | None) -> str | None:
        """Store this run's 16 kHz audio, a WAV file (None: no sound); return its key."""
        if audio is None:
            return None
        key = f"{self.prefix('tmp')}audio.wav"
        self.storage.put_file("tmp", key, audio, "audio/wav")
        return key

    def audio_key(self) -> str | None:
        """Where this run's 16 kHz audio lies; None when the video has no sound."""
        with reading() as session:
            video, run = self.video_and_run(session)
            result = video_runs.split_result(session, video, run)
            if graph.AUDIO.name in run.stages:
                result = video_runs.stage_result(session, video, run, graph.AUDIO.name)
        return result.get("audio_key")

    def read_audio(self, start_s: float, end_s: float) -> NDArray[np.float32]:
        """A stretch of this run's audio: float32 [N] in -1..1 at 16 kHz; shorter where the audio ends before.

        Raises:
            ObjectMissing: the video has no sound, or the audio is gone. StorageUnavailable.
        """
        key = self.audio_key()
        if key is None:
            claimed = self.claimed
            raise ObjectMissing(
                f"run {claimed.run} of video {claimed.video_id} has no audio: rerun {claimed.stage}"
            )
        first, last = round(start_s * SAMPLE_RATE_HZ), round(end_s * SAMPLE_RATE_HZ)
        data = self.storage.get_bytes(
            "tmp", key, offset=_HEADER_BYTES + first * _SAMPLE_BYTES, length=(last - first) * _SAMPLE_BYTES
        )
        samples = np.frombuffer(data, "<i2", len(data) // _SAMPLE_BYTES)
        return samples.astype(np.float32) / 32768.0


def model_row(session: Session, spec: ModelSpec) -> ModelRow:
    """The database's row of a catalogue entry."""
    return ensure_model(
        session, name=spec.name, revision=spec.revision, family=spec.family, dim=spec.dim, metric=spec.metric
    )
