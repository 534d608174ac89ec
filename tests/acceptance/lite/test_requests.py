"""Requests that change a video, on a running fleet: rerun, cancel, retry, delete, and the same id twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from shared.contracts import SearchAnswer, VideoStatus
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.fleet_clock import SENT_AT
from shared.routing import TASK_QUEUE, VIDEO_RERUN, wake_up_task
from tests.acceptance.lite.conftest import answer_of
from tests.support.fleet import Fleet, eventually
from tests.support.injection import Injection
from tests.support.threads import at_once

USER = "u1"
#: Tables whose rows belong to one video.
OWNED = ("scenes", "jobs", "runs", "transcript_parts", "embeddings", "faces", "screen_texts")
#: The message of an injected failure.
ON_PURPOSE = "on purpose: lift the rule"


def settle(fleet: Fleet, video_id: str) -> None:
    """Wait until the ledger has nothing to do now for this video, its sweep included."""
    due = (
        "state = 'running' OR lease_until > clock_timestamp()"
        " OR state = 'queued' AND not_before < clock_timestamp() + interval '1 minute'"
    )
    eventually(lambda: not fleet.of_video("jobs", video_id, due), within_s=60, what=f"{video_id} has settled")


def wait_complete(fleet: Fleet, video_id: str) -> VideoStatus:
    """Wait until a video is indexed and swept; nothing but its published run may be left."""
    fleet.wait_for(video_id)
    fleet.wait_rendition(video_id)
    settle(fleet, video_id)
    assert_only_run_left(fleet, video_id)
    return fleet.client.status(video_id, USER)


def index(fleet: Fleet, path: Path, video_id: str) -> VideoStatus:
    fleet.process(path, video_id)
    return wait_complete(fleet, video_id)


def is_found(fleet: Fleet, video_id: str) -> bool:
    return bool(fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits)


def states(status: VideoStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in status.stages}


def keys(fleet: Fleet, video_id: str) -> dict[str, set[str]]:
    """Every object of a video, by bucket."""
    return {
        bucket: {key for key in fleet.objects(bucket) if f"/{video_id}/" in key}
        for bucket in ("uploads", "sidecars", "tmp")
    }


def assert_only_run_left(fleet: Fleet, video_id: str) -> None:
    """What is stored is what is published: one row per thing, one object per key, nothing of older runs."""
    scenes = sorted(fleet.of_video("scenes", video_id), key=lambda scene: scene["idx"])
    assert [scene["idx"] for scene in scenes] == list(range(len(scenes)))
    assert all(scene["live"] for scene in scenes)
    (video,) = fleet.of_video("videos", video_id)
    (run,) = fleet.of_video("runs", video_id, f"run = {video['published_run']}")
    made = run["stage_runs"]
    assert {scene["split_version"] for scene in scenes} == {made["split"]}
    for table, stage in {
        "embeddings": "text", "faces": "face", "screen_texts": "ocr", "transcript_parts": "asr"
    }.items():  # fmt: skip
        assert {row["run"] for row in fleet.of_video(table, video_id)} <= {made[stage]}, table
    vectors = fleet.of_video("embeddings", video_id)
    assert len(vectors) == sum(bool(scene["transcript"]) for scene in scenes)
    expected = {scene["sidecar_key"] for scene in scenes}
    expected |= {keyframe["key"] for scene in scenes for keyframe in scene["keyframes"]}
    played = fleet.client.media(video_id, USER)
    assert played.sprites_prefix is not None
    sheets = (f"sprite-{number}.jpg" for number in range(played.sprite_sheets))
    expected |= {played.sprites_prefix + name for name in ("sprites.vtt", *sheets)}
    if played.media.bucket == "sidecars":
        expected.add(str(played.media.key))
    found = keys(fleet, video_id)
    assert found["sidecars"] == expected
    assert found["tmp"] == set()


@contextmanager
def searching(fleet: Fleet, video_id: str) -> Iterator[list[SearchAnswer]]:
    """Search one video again and again while the block runs; gives the list of all answers."""
    answers: list[SearchAnswer] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.02):
            answers.append(fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id))

    def wait_for_another() -> None:
        have = len(answers)
        eventually(lambda: len(answers) > have or searches.done(), within_s=60, what="a search is answered")

    with ThreadPoolExecutor(1) as pool:
        searches = pool.submit(ask)
        try:
            wait_for_another()
            yield answers
            # One of these two was asked after all that happened in the block.
            wait_for_another()
            wait_for_another()
        finally:
            done.set()
        searches.result()


def assert_no_gap(answers: list[SearchAnswer]) -> list[str]:
    """Every answer had the one scene, once. Returns the scene ids in order, without repeats."""
    assert len(answers) >= 3
    assert all(len(answer.hits) == 1 for answer in answers)
    assert all((answer.coverage.scenes, answer.coverage.with_words) == (2, 2) for answer in answers)
    return [scene_id for scene_id, _ in groupby(answer.hits[0].scene_id for answer in answers)]


# --- rerun


@pytest.fixture(scope="module")
def published(fleet: Fleet, spoken: Path) -> str:
    """A video that the rerun tests process again and again."""
    index(fleet, spoken, "again")
    return "again"


@pytest.mark.parametrize(
    ("stages", "made"),
    [
        ((), {"split", "asr", "text", "face", "ocr", "sidecar", "rendition"}),
        (("asr",), {"audio", "asr", "text", "sidecar"}),
        (("sidecar",), {"sidecar"}),
        (("face", "text"), {"face", "text", "sidecar"}),
    ],
)
def test_a_rerun_is_searchable_all_the_time(
    fleet: Fleet, published: str, stages: Sequence[str], made: set[str]
) -> None:
    before = fleet.client.scenes(published, USER).scenes
    first = fleet.client.status(published, USER)
    with searching(fleet, published) as answers:
        receipt = fleet.client.rerun(published, USER, stages)
        assert receipt.accepted and receipt.run == first.run + 1
        status = wait_complete(fleet, published)
    assert status.published_run == receipt.run, status
    shown = states(status)
    assert {name for name, state in shown.items() if state == "done"} == made
    assert {name for name, state in shown.items() if state not in ("done", "skipped")} == {
        name for name in shown if name not in made and name != "vision"
    }
    assert shown["vision"] == "skipped"
    after = fleet.client.scenes(published, USER).scenes
    seen = assert_no_gap(answers)
    split_again = "split" in made
    assert seen == [before[0].scene_id] + [after[0].scene_id] * split_again
    assert [scene.scene_id == old.scene_id for scene, old in zip(after, before, strict=True)] == [
        not split_again
    ] * 2
    for scene, old in zip(after, before, strict=True):
        assert (scene.start_s, scene.end_s, scene.transcript, scene.faces) == (
            old.start_s, old.end_s, old.transcript, old.faces)  # fmt: skip
        assert scene.sidecar_key != old.sidecar_key, "a sidecar's revision is never used twice"


def test_a_rerun_of_what_is_no_stage_and_a_retry_of_no_failure_are_refused(
    fleet: Fleet, published: str
) -> None:
    for stages in (["tex"], ["audio"], ["sweep"], ["text", ""]):
        with pytest.raises(InvalidRequest, match=r"stages=.* is not a stage: name some of split, asr"):
            fleet.client.rerun(published, USER, stages)
    with pytest.raises(Conflict, match=r"video again is indexed: nothing failed; use rerun"):
        fleet.client.retry(published, USER)
    assert fleet.client.status(published, USER).state == "indexed"


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("stage", ["split", "sidecar"])
def test_a_rerun_overtakes_a_running_run(
    fleet: Fleet, injection: Injection, silent: Path, stage: str, deaf: bool
) -> None:
    video_id = f"overtaken-{stage}-{deaf}"
    held = injection.hold(stage, video_id, when="after", deaf=deaf)
    fleet.process(silent, video_id)
    old = held.wait_met()
    assert fleet.client.rerun(video_id, USER).run == 2
    # The new run's attempt is held too: by the time it goes on, the old one has been told or is still deaf.
    again = held.wait_met(2)
    assert (again["run"], again["pid"] != old["pid"] or not deaf) == (2, True)
    held.lift()
    status = wait_complete(fleet, video_id)
    assert (status.run, status.published_run) == (2, 2), status


def test_a_rerun_of_named_stages_makes_what_the_running_run_had_not_finished(
    fleet: Fleet, injection: Injection, spoken: Path
) -> None:
    video_id = "unfinished"
    held = injection.hold("asr", video_id)
    fleet.process(spoken, video_id)
    held.wait_met()
    fleet.client.rerun(video_id, USER, ["text"])
    held.lift()
    shown = states(wait_complete(fleet, video_id))
    assert (shown["split"], shown["audio"], shown["asr"]) == ("reused", "done", "done")
    assert is_found(fleet, video_id)


@pytest.mark.parametrize("stage", ["asr", "face", "sidecar"])
def test_a_rerun_that_fails_keeps_the_published_run(
    fleet: Fleet, injection: Injection, published: str, stage: str
) -> None:
    """A first run is published without what failed; a rerun must not take away what callers have."""
    run = fleet.client.status(published, USER).run
    before = fleet.client.scenes(published, USER)
    assert any(scene.faces for scene in before.scenes)
    broken = injection.fail(stage, published, error="BadMedia", message=ON_PURPOSE)
    with searching(fleet, published) as answers:
        fleet.client.rerun(published, USER, [] if stage == "sidecar" else [stage])
        status = fleet.wait_for(published, "failed")
    assert (status.published_run, status.run) == (run, run + 1)
    assert (status.error_class, status.error) == ("BadMedia", ON_PURPOSE)
    if stage != "sidecar":
        (last,) = [found for found in status.stages if found.stage == "sidecar"]
        assert last.state == "skipped"
        assert last.error is not None and last.error.endswith("the published run has it and is kept")
    assert assert_no_gap(answers) == [before.scenes[0].scene_id]
    assert fleet.client.scenes(published, USER) == before
    for scene in before.scenes:
        assert scene.sidecar_key is not None
        fleet.storage.stat("sidecars", scene.sidecar_key)
    broken.lift()
    with searching(fleet, published) as answers:
        assert fleet.client.retry(published, USER).accepted
        status = wait_complete(fleet, published)
    assert (status.published_run, status.error) == (run + 1, None)
    assert len(assert_no_gap(answers)) == 1 + (stage == "sidecar")


def test_a_rerun_without_its_source_keeps_the_words(fleet: Fleet, published: str, spoken: Path) -> None:
    first = fleet.client.status(published, USER)
    before = fleet.client.scenes(published, USER)
    fleet.storage.delete("uploads", first.storage_key)
    for stages in (["asr"], []):
        fleet.client.rerun(published, USER, stages)
        status = fleet.wait_for(published, "failed")
        assert (status.error_class, status.published_run) == ("ObjectMissing", first.run)
        assert fleet.client.scenes(published, USER) == before
    assert is_found(fleet, published)
    fleet.client.rerun(published, USER, ["text"])
    wait_complete(fleet, published)  # what needs no source can be made without it
    assert fleet.upload(spoken, published) == first.storage_key


def test_a_silent_video_can_be_rerun_from_any_stage(fleet: Fleet, silent: Path) -> None:
    video_id = "silent"
    index(fleet, silent, video_id)
    with pytest.raises(Conflict, match="vision can't be made again: unavailable: profile lite has no vision"):
        fleet.client.rerun(video_id, USER, ["vision"])
    for stages in (["asr"], ["text"], ["face"], ["sidecar"], []):
        fleet.client.rerun(video_id, USER, stages)
        status = wait_complete(fleet, video_id)
        assert status.published_run == status.run, status


@pytest.mark.parametrize("repair", ["rerun", "retry"])
def test_a_partial_video_is_completed_by_a_rerun_or_a_retry(
    fleet: Fleet, injection: Injection, spoken: Path, repair: str
) -> None:
    video_id = f"partial-{repair}"
    broken = injection.fail("face", video_id, message=ON_PURPOSE)
    fleet.process(spoken, video_id)
    status = fleet.wait_for(video_id, "partial")
    assert (status.published_run, states(status)["face"]) == (1, "failed")
    assert (status.error_class, status.error) == ("ModelFailure", ON_PURPOSE)
    face = next(stage for stage in status.stages if stage.stage == "face")
    assert face.attempts == 3, "a retryable failure has max_failures attempts"
    assert is_found(fleet, video_id), "a partial video is searched"
    assert not any(scene.faces for scene in fleet.client.scenes(video_id, USER).scenes)
    broken.lift()
    with searching(fleet, video_id) as answers:
        if repair == "rerun":
            assert fleet.client.rerun(video_id, USER, ["face"]).accepted
        else:
            assert fleet.client.retry(video_id, USER).accepted
        status = wait_complete(fleet, video_id)
    assert (status.error_class, status.error) == (None, None)
    assert len(assert_no_gap(answers)) == 1
    assert any(scene.faces for scene in fleet.client.scenes(video_id, USER).scenes)


# --- cancel


@pytest.mark.parametrize("stage", ["split", "asr", "sidecar"])
def test_cancel_stops_any_stage_and_retry_starts_reembed(
    fleet: Fleet, injection: Injection, spoken: Path, stage: str
) -> None:
    video_id = f"cancel-{stage}"
    held = injection.hold(stage, video_id, when="after")
    fleet.process(spoken, video_id)
    attempt = held.wait_met()
    receipt = fleet.client.cancel(video_id, USER)
    assert (receipt.accepted, receipt.state, receipt.run) == (True, "cancelled", 1)
    # The attempt notices though its rule still holds it: it reports, and the lease is gone.
    settle(fleet, video_id)
    status = fleet.client.status(video_id, USER)
    assert (status.state, status.published_run, states(status)[stage]) == ("cancelled", None, "cancelled")
    assert keys(fleet, video_id)["tmp"] == set()
    assert not Path(attempt["folder"]).exists()
    assert not is_found(fleet, video_id)
    assert fleet.client.cancel(video_id, USER).accepted is False
    held.lift()
    assert fleet.client.retry(video_id, USER).run == 2
    assert wait_complete(fleet, video_id).published_run == 2


# --- delete


def assert_erased(fleet: Fleet, video_id: str) -> None:
    """Nothing is left of a video but its tombstone and the erase jobs."""
    left = {table: fleet.of_video(table, video_id) for table in OWNED}
    assert {job["stage"] for job in left.pop("jobs")} <= {"erase_video"}
    assert not any(left.values()), left
    orphans = fleet.rows(
        "SELECT scene_id FROM embeddings WHERE scene_id NOT IN (SELECT scene_id FROM scenes)"
    )
    assert not orphans
    (tombstone,) = fleet.of_video("videos", video_id)
    assert tombstone["state"] == "deleted" and tombstone["deleted_at"] is not None
    assert tombstone["storage_key"] == "" and tombstone["media"] is None
    assert keys(fleet, video_id) == {"uploads": set(), "sidecars": set(), "tmp": set()}
    folders = [path for path in fleet.home.rglob("*") if path.name == video_id]
    assert folders == [], "empty folders are traces too"


def test_a_deleted_video_leaves_a_tombstone_and_its_id_never_comes_back(
    fleet: Fleet, outside: Celery, spoken: Path, silent: Path
) -> None:
    video_id = "tombstone"
    index(fleet, spoken, video_id)
    (job,) = fleet.of_video("jobs", video_id, "stage = 'split'")
    receipt = fleet.client.delete(video_id, USER)
    assert (receipt.accepted, receipt.state) == (True, "deleted")
    assert not is_found(fleet, video_id), "gone from the receipt on"
    settle(fleet, video_id)
    assert_erased(fleet, video_id)
    again = fleet.client.delete(video_id, USER)
    assert (again.accepted, again.state) == (False, "deleted")
    key = fleet.upload(silent, video_id)
    with pytest.raises(Conflict, match="video tombstone was deleted: send the file under a new video id"):
        fleet.client.process(video_id, USER, key)
    client = fleet.client
    for ask in (client.status, client.scenes, client.cancel, client.retry, client.rerun):
        with pytest.raises(NotFound, match="no video 'tombstone': check the id"):
            ask(video_id, USER)
    # Stale wake-up messages of its jobs find nothing to claim.
    for _ in range(3):
        outside.send_task(
            wake_up_task("media"), kwargs={"job_id": job["job_id"]}, queue="media", ignore_result=True
        )
    index(fleet, silent, "after-tombstone")
    (row,) = fleet.of_video("videos", video_id)
    assert row["state"] == "deleted"
    assert not fleet.of_video("scenes", video_id)


@pytest.mark.parametrize(
    ("stage", "deaf"),
    [("split", False), ("split", True), ("asr", False), ("ocr", True), ("sidecar", True), ("sweep", True)],
)
def test_delete_while_running_leaves_nothing(
    fleet: Fleet, injection: Injection, spoken: Path, stage: str, deaf: bool
) -> None:
    video_id = f"delete-{stage}-{deaf}"
    held = injection.hold(stage, video_id, when="before" if stage == "sweep" else "after", deaf=deaf)
    fleet.process(spoken, video_id)
    attempt = held.wait_met()
    assert fleet.client.delete(video_id, USER).accepted
    with pytest.raises(NotFound):
        fleet.client.status(video_id, USER)
    if deaf:
        held.lift()
    settle(fleet, video_id)
    held.lift()
    assert_erased(fleet, video_id)
    assert not Path(attempt["folder"]).exists()


# --- the same id twice


def test_the_same_video_sent_at_once_is_one_video_and_one_run(fleet: Fleet, silent: Path) -> None:
    video_id = "twice"
    key = fleet.upload(silent, video_id)
    receipts = at_once([lambda: fleet.client.process(video_id, USER, key)] * 8)
    assert sorted(receipt.accepted for receipt in receipts) == [False] * 7 + [True]
    assert {receipt.run for receipt in receipts} == {1}
    wait_complete(fleet, video_id)
    assert fleet.client.process(video_id, USER, key).accepted is False
    other = fleet.upload(silent, video_id, name="other.mp4")
    with pytest.raises(Conflict, match=rf"video twice already is '{key}': delete it"):
        fleet.client.process(video_id, USER, other)
    assert fleet.client.status(video_id, USER).storage_key == key
    assert [job["attempt"] for job in fleet.of_video("jobs", video_id, "stage = 'split'")] == [1]


def test_changes_at_once_leave_one_consistent_video(fleet: Fleet, silent: Path) -> None:
    video_id = "busy"
    index(fleet, silent, video_id)
    acts = [fleet.client.rerun, fleet.client.cancel, fleet.client.rerun, fleet.client.retry] * 2

    def change(act: Callable[..., Any]) -> None:
        with suppress(Conflict):
            act(video_id, USER)

    at_once([partial(change, act) for act in acts])
    fleet.client.rerun(video_id, USER)
    wait_complete(fleet, video_id)
    assert fleet.of_video("runs", video_id, "ended_at IS NULL") == []


def test_a_request_that_was_sent_before_one_that_is_done_is_refused(indexed: Fleet, outside: Celery) -> None:
    """As a message that a broker delivers again, of a program that has Celery and nothing of ours."""
    who = {"user_id": "viewer", "video_id": "sample"}
    indexed.client.cancel("sample", "viewer")
    sent = outside.send_task(
        VIDEO_RERUN, kwargs=who, queue=TASK_QUEUE[VIDEO_RERUN], headers={SENT_AT: time.time() - 600}
    )
    with pytest.raises(Exception, match="before another one that is done") as refused:
        answer_of(sent)
    assert type(refused.value).__name__ == "Conflict"
    assert not indexed.client.cancel("sample", "viewer").accepted, "no run was begun"
