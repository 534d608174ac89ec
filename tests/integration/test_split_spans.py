"""A long video is split in spans: with the result of one pass, one part at a time or several, also when parts fail."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from db.ledger import video_runs
from db.ledger.claims import Claim
from db.ledger.policy import RunPolicy
from db.tables import Job, Run, Scene, Video
from shared.errors import BadMedia, StorageUnavailable
from shared.settings import Settings
from tests.integration.test_rendition_stage import MODELS, USER, Desk
from tests.support.clips import Encoding, Sound, make_clip
from tests.support.ledger import KEY, accept, claim, execute, fail, finish, must_claim, read
from tests.unit.media.test_spans import AT_SEAMS, ENCODING, joined_at
from worker import stages
from worker.media import sandbox
from worker.media.results import SpansDiffer
from worker.runtime import Runtime
from worker.stages import audio as audio_stage, split as split_stage

pytestmark = pytest.mark.usefixtures("database")

#: A clip of two seams: a plan, three spans and the sound, and a join.
ROUNDS = ["plan", "span", "span", "span", "sound", "join"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoding = Encoding(size=ENCODING.size, fps=ENCODING.fps, options=ENCODING.options)
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    return make_clip(path, joined_at(AT_SEAMS[8]), encoding, Sound()).path


@pytest.fixture
def desk(tmp_path: Path, clip: Path) -> Desk:
    runtime = Runtime(Settings(SCENEFLEET_HOME=tmp_path / "home", SPLIT_SPAN_S=9.0, FEATURE_RENDITION=False))
    runtime.storage.ensure_buckets()
    return Desk(runtime, tmp_path / "work", clip)


def one_pass(desk: Desk) -> None:
    desk.runtime.settings = desk.runtime.settings.model_copy(update={"split_span_s": 0.0})


def kind(claimed: Claim) -> str:
    return str(claimed.payload.get("does", "plan"))


def progress(desk: Desk) -> tuple[str, float]:
    (found,) = (stage for stage in desk.status().stages if stage.stage == "split")
    return found.state, found.progress


def parts(*columns: Any) -> list[Any]:
    return read(select(*columns or (Job.state,)).where(Job.stage == "split").order_by(Job.job_id))


def scenes(desk: Desk, run: int) -> list[Any]:
    """The scenes of a run's split, with the bytes of their pictures."""
    found = read(select(Scene).where(Scene.split_version == run).order_by(Scene.idx))
    get = desk.runtime.storage.get_bytes
    return [
        (
            (scene.start_s, scene.end_s, scene.kind, scene.cut_confidence),
            [{**keyframe, "key": get("sidecars", keyframe["key"])} for keyframe in scene.keyframes],
        )
        for scene in found
    ]


def made(desk: Desk, run: int) -> dict[str, Any]:
    """All that a split leaves."""
    (video,) = read(select(Video))
    result = read(select(Job.result).where(Job.stage == "split", Job.run == run).order_by(Job.part))[-1]
    sprites = video.media["sprites"]
    get = desk.runtime.storage.get_bytes
    return {
        "scenes": scenes(desk, run),
        "media": {**video.media, "sprites": None},
        "duration_s": video.duration_s,
        "result": {**result, "audio_key": None},
        "audio": get("tmp", result["audio_key"]),
        "sprites": [get("sidecars", sprites["prefix"] + name) for name in (sprites["index"], *sprites["sheets"])],
    }  # fmt: skip


def split_all(desk: Desk) -> list[str]:
    """Do the parts of a split, one after another; returns them."""
    done = []
    while (claimed := claim("media")) is not None and claimed.stage == "split":
        done.append(kind(claimed))
        desk.do(claimed)
    assert claimed is not None
    execute(update(Job).where(Job.job_id == claimed.job_id).values(state="queued", lease_owner=None))
    return done


def test_the_result_is_that_of_one_pass(desk: Desk) -> None:
    desk.accept()
    assert split_all(desk) == ROUNDS
    joined = made(desk, 1)
    assert len(joined["scenes"]) == 5 and joined["result"]["windows"]
    desk.work()
    assert desk.status().state == "indexed"
    sidecars = desk.keys("sidecars")
    # What nothing refers to is removed: candidates, and what the spans had found.
    used = {k["key"] for scene in read(select(Scene)) for k in scene.keyframes}
    used |= {key for key in desk.keys("keyframes") if "sprite" in key}
    assert desk.keys("keyframes") == used and not list(desk.runtime.storage.list("tmp", "tmp/"))
    one_pass(desk)
    desk.change(video_runs.rerun, ["split"])
    assert split_all(desk) == ["plan"]
    assert made(desk, 2) == joined
    desk.work()
    assert len(desk.keys("sidecars")) == len(sidecars) == 5


def test_progress_never_falls_and_nothing_follows_before_the_join(desk: Desk) -> None:
    desk.accept()
    seen = [progress(desk)[1]]

    def report(fraction: float) -> None:
        execute(update(Job).where(Job.state == "running").values(progress=fraction))
        seen.append(progress(desk)[1])

    while (claimed := must_claim()).stage == "split":
        outcome = stages.run(desk.context(claimed, report))
        assert read(select(Job.stage).distinct()) == ["split"]
        finish(claimed, outcome.write, policy=desk.policy, **outcome.result)
        seen.append(progress(desk)[1])
    assert seen == sorted(seen) and seen[0] == 0.0 and len(set(seen)) > 8
    shown, done = progress(desk)
    assert shown == "done" and done == pytest.approx(1.0)


def test_a_short_video_is_one_job(desk: Desk) -> None:
    desk.runtime.settings = desk.runtime.settings.model_copy(update={"split_span_s": 600.0})
    desk.accept()
    assert split_all(desk) == ["plan"] and len(scenes(desk, 1)) == 5


def test_parts_come_before_the_next_video_of_the_user_and_after_those_of_others(desk: Desk) -> None:
    desk.accept()
    accept("later", USER, policy=desk.policy)
    desk.do(must_claim())
    accept("other", "u2", policy=desk.policy)
    first = must_claim()
    # The account that has used less comes first.
    second = must_claim()
    assert {kind(first), second.user_id} == {"plan", USER} and first.user_id == "u2"
    assert kind(second) == "span"
    assert [kind(must_claim()) for _ in range(3)] == ["span", "span", "sound"]
    assert must_claim().video_id != KEY


def test_parts_done_side_by_side_in_any_order(desk: Desk) -> None:
    desk.accept()
    desk.do(must_claim())
    claimed = [must_claim(owner=f"n:{number}:0:2") for number in range(4)]
    assert claim() is None
    for one in reversed(claimed):
        desk.do(one)
    assert split_all(desk) == ["join"]
    assert len(scenes(desk, 1)) == 5


@pytest.mark.parametrize("where", ["span", "join"])
def test_spans_that_differ_are_split_in_one_pass(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    desk.accept()
    one_pass(desk)
    split_all(desk)
    expected = made(desk, 1)
    desk.work()

    def differ(*_: Any, **__: Any) -> Any:
        raise SpansDiffer("for a test")

    monkeypatch.setattr(sandbox, "split_span" if where == "span" else "join_spans", differ)
    desk.runtime.settings = desk.runtime.settings.model_copy(update={"split_span_s": 9.0})
    desk.change(video_runs.rerun, ["split"])
    assert split_all(desk) == ROUNDS
    assert made(desk, 2) == expected


def test_a_span_that_is_given_up_fails_the_split_until_it_is_tried_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.accept()
    desk.do(must_claim())
    with monkeypatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> Any:
            raise BadMedia("The file is damaged; export it again")

        patch.setattr(sandbox, "split_span", refuse)
        desk.do(must_claim())
    assert progress(desk)[0] == "queued"
    desk.work()
    assert parts() == ["done", "failed", "done", "done", "done"]
    status = desk.status()
    assert (status.state, status.error) == ("failed", "The file is damaged; export it again")
    assert progress(desk)[0] == "failed"
    # The leftovers are kept for a while.
    desk.policy = RunPolicy(skips=MODELS, max_failures=1, tmp_ttl_s=3600.0)
    desk.change(video_runs.rerun, [])
    desk.do(must_claim())
    fail(must_claim(), BadMedia("another"), desk.policy)
    desk.work()
    assert desk.status().state == "failed"
    desk.change(video_runs.retry)
    assert split_all(desk) == ["span", "join"]
    assert len(scenes(desk, 2)) == 5
    desk.work()
    assert desk.status().state == "indexed"


@pytest.mark.parametrize("error", [BadMedia("The file is cut off"), OSError(5, "Input/output error")])
@pytest.mark.parametrize(
    ("part", "reader"), [("plan", "split"), ("span", "split_span"), ("sound", "extract_audio")]
)
def test_a_storage_that_goes_away_is_to_blame_for_what_cannot_be_read(
    part: str, reader: str, error: Exception, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"plan": split_stage, "span": sandbox, "sound": audio_stage}[part]
    root = desk.runtime.settings.home / "storage"

    def lose(*_: Any, **__: Any) -> None:
        root.rename(root.with_name("away"))
        raise error

    desk.accept()
    while (claimed := must_claim()) is not None and kind(claimed) != part:
        desk.do(claimed)
    context = desk.context(claimed)
    with monkeypatch.context() as patch, pytest.raises(StorageUnavailable):
        patch.setattr(module, reader, lose)
        stages.run(context)
    root.with_name("away").rename(root)
    shutil.rmtree(context.folder)
    desk.do(claimed)
    desk.work()
    assert desk.status().state == "indexed"


def test_a_cancelled_split_leaves_nothing(desk: Desk) -> None:
    desk.accept()
    desk.do(must_claim())
    desk.do(must_claim())
    assert desk.keys("keyframes") and list(desk.runtime.storage.list("tmp", "tmp/"))
    desk.change(video_runs.cancel)
    desk.work()
    assert parts() == ["done", "done", "cancelled", "cancelled", "cancelled"]
    assert not desk.keys("keyframes") and not list(desk.runtime.storage.list("tmp", "tmp/"))


def test_a_kept_split_is_compared_with_the_join(desk: Desk) -> None:
    """A rerun while faces are off keeps the scenes, for what is known of their faces."""
    desk.accept()
    desk.work()
    execute(update(Job).where(Job.stage == "face").values(state="done"))
    desk.change(video_runs.rerun, ["split"])
    assert split_all(desk) == ROUNDS
    (run,) = read(select(Run).where(Run.run == 2))
    assert run.stage_runs["split"] == 1 and not scenes(desk, 2)
