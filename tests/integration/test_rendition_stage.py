"""The rendition of a video: after its publication, behind all other work, kept and removed with what refers to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from db import videos
from db.engine import reading, transact
from db.expressions import seconds_from_now
from db.ledger import attempts, video_runs
from db.ledger.claims import Claim
from db.ledger.policy import RunPolicy
from db.tables import Job, Video
from shared.contracts import VideoStatus
from shared.errors import BadMedia, Conflict, ScenefleetError
from shared.settings import Settings
from shared.storage import upload_key
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.ledger import KEY, accept, claim, execute, fail, finish, must_claim, read
from worker import stages
from worker.media.limits import MediaLimits
from worker.media.probe import describe, open_media
from worker.runtime import Runtime
from worker.stages import rendition
from worker.stages.context import Deferred, StageContext

pytestmark = pytest.mark.usefixtures("database")

#: No models: only what a media node and housekeeping do.
MODELS = dict.fromkeys(("asr", "text", "vision", "face", "ocr"), "off")
ON = RunPolicy(skips=MODELS, max_failures=1, tmp_ttl_s=0.0)
VIDEO, USER = "v1", "u1"


@dataclass
class Desk:
    """One user's video, and a worker that does one job at a time."""

    runtime: Runtime
    folder: Path
    source: Path
    policy: RunPolicy = ON

    def accept(self, video_id: str = VIDEO) -> None:
        key = upload_key(USER, video_id, self.source.name)
        self.runtime.storage.put_file("uploads", key, self.source, "video/mp4")
        accept(video_id, USER, key=key, policy=self.policy)

    def context(
        self, claimed: Claim, report: Callable[[float], None] = lambda fraction: None
    ) -> StageContext:
        folder = self.folder / claimed.storage_part
        folder.mkdir(parents=True)
        self.runtime.__dict__["policy"] = self.policy
        return StageContext(claimed=claimed, runtime=self.runtime, folder=folder, report=report)

    def do(self, claimed: Claim) -> None:
        try:
            outcome = stages.run(self.context(claimed))
        except ScenefleetError as error:
            fail(claimed, error, self.policy)
            return
        finish(claimed, outcome.write, policy=self.policy, **outcome.result)

    def publish(self, queue: str = "media") -> None:
        """Do what there is before the rendition."""
        self.accept()
        for stage in ("split", "sidecar"):
            claimed = must_claim(queue)
            assert claimed.stage == stage
            self.do(claimed)

    def work(self, *queues: str) -> None:
        """Do everything that waits."""
        for queue in queues or ("media", "housekeeping"):
            while (claimed := claim(queue)) is not None:
                self.do(claimed)

    def change(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return transact(
            lambda s: act(s, videos.lock(s, VIDEO, USER, deleted_too=True), *arguments, self.policy)
        )

    def status(self) -> VideoStatus:
        with reading() as session:
            return videos.status(session, VIDEO, USER)

    def stage(self) -> tuple[str, str | None]:
        (found,) = (stage for stage in self.status().stages if stage.stage == "rendition")
        return found.state, found.error

    def keys(self, role: str) -> set[str]:
        return {found.key for found in self.runtime.storage.list("sidecars", f"{role}/")}


@pytest.fixture(scope="module")
def divx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What no browser plays: MPEG-4 in AVI."""
    path = tmp_path_factory.mktemp("clips") / "a.avi"
    encoding = Encoding(codec="mpeg4", options={})
    return make_clip(path, [Shot(seed=1, frames=30)], encoding, Sound(codec="libmp3lame")).path


@pytest.fixture
def desk(tmp_path: Path, divx: Path) -> Desk:
    runtime = Runtime(Settings(SCENEFLEET_HOME=tmp_path / "home"))
    runtime.storage.ensure_buckets()
    return Desk(runtime, tmp_path / "work", divx)


def video() -> Video:
    (found,) = read(select(Video).where(Video.video_id == KEY))
    assert isinstance(found, Video)
    return found


@contextmanager
def broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Iterator[None]:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rendition, "make_rendition", refuse)
        yield


def test_a_video_is_published_before_its_rendition_is_begun(desk: Desk) -> None:
    desk.publish()
    status = desk.status()
    assert (status.state, status.published_run, desk.stage()) == ("indexed", 1, ("queued", None))
    assert read(select(Job.stage).where(Job.state == "queued").order_by(Job.stage)) == ["rendition", "sweep"]
    desk.work()
    assert (desk.status().state, desk.stage()) == ("indexed", ("done", None))
    made = video().rendition
    assert made is not None and (made["how"], made["reason"]) == ("transcode", "browsers don't play mpeg4")
    assert desk.keys("renditions") == {made["key"]}
    local = desk.runtime.storage.local_path("sidecars", made["key"])
    assert local is not None
    with open_media(local, MediaLimits()) as container:
        info = describe(container, local, MediaLimits())
    assert (info.flavour, info.index, info.video.codec, info.video.pix_fmt) == (
        "mp4",
        "start",
        "h264",
        "yuv420p",
    )


def test_nothing_is_made_of_what_browsers_play(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is known at once: without a look at the file, also while other jobs wait."""
    encoding = Encoding(codec="libvpx", options={"cpu-used": "8"})
    sound = Sound(codec="libopus", rate_hz=48_000)
    desk.source = make_clip(tmp_path / "a.webm", [Shot(seed=1, frames=30)], encoding, sound).path
    desk.publish()
    for name in ("make_rendition", "_give_way"):
        monkeypatch.setattr(rendition, name, lambda *_, **__: pytest.fail("it is not needed"))
    desk.work()
    made = video().rendition
    assert desk.stage() == ("done", None) and made is not None
    assert (made["how"], made["key"]) == ("original", None) and not desk.keys("renditions")


def test_the_rendition_waits_behind_everything_else(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.publish()
    desk.accept("v2")
    # Of the same user: the other video's split goes first, although it is younger.
    split = must_claim()
    assert split.stage == "split"
    late = must_claim()
    assert late.stage == "rendition"
    # A split that has just been sent may get a free slot; one that has waited gets this one.
    desk.accept("v3")
    context = desk.context(late)
    # However slow this machine is.
    execute(
        update(Job).where(Job.state == "queued", Job.stage == "split").values(not_before=seconds_from_now(60))
    )
    assert rendition.run(context).result["how"] == "transcode"
    execute(
        update(Job).where(Job.state == "queued", Job.stage == "split").values(not_before=seconds_from_now(-5))
    )
    with pytest.raises(Deferred) as gave_way:
        rendition.run(context)
    assert gave_way.value.wait_s >= 10
    # Also in the middle of its work; jobs of other queues and other renditions are no reason.
    for column in ({"queue": "asr"}, {"stage": "rendition"}):
        execute(update(Job).where(Job.state == "queued", Job.stage != "sweep").values(**column))
        rendition._give_way(context)
    looked: list[float] = []

    def convert(*_: Any, on_progress: Callable[[float], None], **__: Any) -> None:
        execute(
            update(Job)
            .where(Job.state == "queued", Job.stage == "rendition")
            .values(queue="media", stage="split")
        )
        looked.append(0.5)
        on_progress(0.5)

    monkeypatch.setattr(rendition, "make_rendition", convert)
    monkeypatch.setattr(rendition, "_LOOK_S", 0.0)
    with pytest.raises(Deferred):
        rendition.run(context)
    assert looked == [0.5]


def test_a_failure_leaves_the_video_indexed_and_retry_makes_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.publish()
    with broken(monkeypatch, BadMedia("no picture")):
        desk.work("media")
    assert (desk.status().state, desk.stage()) == ("indexed", ("failed", "no picture"))
    assert desk.status().error is None and desk.status().published_run == 1
    # Before the sweep in the same run, after it in a new one, which makes nothing else again.
    assert desk.change(video_runs.retry)[0] is True
    assert (desk.status().state, desk.stage()[0]) == ("indexed", "queued")
    with broken(monkeypatch, BadMedia("no picture")):
        desk.work()
    assert desk.change(video_runs.retry)[0] is True
    states = {stage.stage: stage.state for stage in desk.status().stages}
    assert (states.pop("rendition"), desk.status().state) == ("queued", "indexed")
    assert set(states.values()) == {"reused", "skipped"}
    desk.work()
    assert (desk.stage(), desk.status().published_run) == (("done", None), 2)
    assert len(desk.keys("renditions")) == 1
    with pytest.raises(Conflict, match="nothing failed"):
        desk.change(video_runs.retry)


def test_what_is_there_is_not_made_again_and_what_is_replaced_is_swept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.publish()
    desk.work()
    (first,) = desk.keys("renditions")
    sprites = desk.keys("keyframes")
    desk.change(video_runs.rerun, [])
    with broken(monkeypatch, AssertionError("it was made again")):
        desk.work()
    assert desk.keys("renditions") == {first} and desk.stage() == ("done", None)
    # The new split's sprites and keyframes took the place of the old ones.
    assert len(desk.keys("keyframes")) == len(sprites) and not desk.keys("keyframes") & sprites
    # Lost from the storage, or of an earlier version: made again, and the old one removed.
    execute(update(Video).values(rendition={**(video().rendition or {}), "version": "rendition-0"}))
    desk.change(video_runs.rerun, ["rendition"])
    desk.work()
    (second,) = desk.keys("renditions")
    assert second != first
    desk.runtime.storage.delete("sidecars", second)
    desk.change(video_runs.rerun, ["rendition"])
    desk.work()
    assert desk.keys("renditions") == {(video().rendition or {})["key"]} != {second}


def test_a_sweep_takes_what_a_lost_attempt_left_and_nothing_of_a_running_one(desk: Desk) -> None:
    desk.publish()
    late = must_claim()
    lost, own = (f"renditions/u1/v1/{job}.1/video.mp4" for job in (late.job_id + 1000, late.job_id))
    for key in (lost, own):
        desk.runtime.storage.put_bytes("sidecars", key, b"x", "video/mp4")
    desk.do(must_claim("housekeeping"))  # does not wait for the rendition
    assert desk.keys("renditions") == {own}
    # As after the death of its worker: another attempt finishes, and what the first one left goes.
    transact(lambda session: attempts.release(session, "n:1:0:"))
    desk.work()
    assert desk.keys("renditions") == {f"renditions/u1/v1/{late.job_id}.2/video.mp4"}


def test_it_goes_with_its_video(desk: Desk) -> None:
    desk.publish()
    desk.work()
    assert desk.keys("renditions") and any(key.endswith("sprites.vtt") for key in desk.keys("keyframes"))
    desk.change(video_runs.begin_delete)
    desk.work()
    assert not [found.key for found in desk.runtime.storage.list("sidecars", "")]
    assert video().rendition is None and video().media is None


def test_a_delete_and_a_cancel_take_its_lease(desk: Desk) -> None:
    desk.publish()
    late = must_claim()
    assert desk.change(video_runs.missing_stages) == []
    assert desk.change(video_runs.cancel) == (True, [])
    assert (desk.status().state, desk.stage()[0]) == ("indexed", "cancelled")
    assert not transact(lambda session: attempts.beat(session, late, 0.5, 60))
    assert desk.change(video_runs.cancel) == (False, [])
    assert desk.change(video_runs.missing_stages) == ["rendition"]


def test_off_it_is_skipped_and_on_again_it_is_missing(desk: Desk) -> None:
    desk.policy = replace(ON, skips={**MODELS, "rendition": "FEATURE_RENDITION is off"})
    desk.publish()
    desk.work()
    assert (desk.status().state, desk.stage()) == ("indexed", ("skipped", "FEATURE_RENDITION is off"))
    assert video().rendition is None
    desk.policy = ON
    assert desk.change(video_runs.missing_stages) == ["rendition"]
    desk.change(video_runs.rerun, ["rendition"])
    desk.work()
    assert desk.stage() == ("done", None) and len(desk.keys("renditions")) == 1
    # Off again: a whole rerun keeps it.
    desk.policy = replace(ON, skips={**MODELS, "rendition": "FEATURE_RENDITION is off"})
    before = desk.keys("renditions")
    desk.change(video_runs.rerun, [])
    desk.work()
    assert (desk.stage()[0], desk.keys("renditions")) == ("reused", before)


def test_a_video_that_can_not_be_split_has_none(desk: Desk, tmp_path: Path) -> None:
    desk.source = tmp_path / "a.avi"
    desk.source.write_bytes(b"no video")
    desk.accept()
    desk.work()
    assert (desk.status().state, desk.stage()) == ("failed", ("skipped", "upstream sidecar skipped"))
