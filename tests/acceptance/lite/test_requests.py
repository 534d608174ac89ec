"""Requests that change a video, on a running fleet: rerun, cancel, retry, delete, and the same id twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shared.contracts import Receipt, SearchAnswer, VideoStatus
from shared.errors import Conflict, InvalidRequest, NotFound
from shared.routing import wake_up_task
from tests.support.clips import Shot, make_clip
from tests.support.fleet import Fleet, eventually
from tests.support.injection import Injection
from tests.support.threads import at_once

USER = "u1"
#: Tables whose rows belong to one video.
OWNED = ("scenes", "jobs", "runs", "transcript_parts", "embeddings", "faces", "screen_texts")


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes, no sound: indexed in a second."""
    path = tmp_path_factory.mktemp("clips") / "silent.mp4"
    make_clip(path, [Shot(seed=1, frames=20), Shot(seed=2, frames=20)])
    return path


def index(fleet: Fleet, path: Path, video_id: str) -> VideoStatus:
    fleet.process(path, video_id)
    (status,) = fleet.wait_ended([video_id], within_s=120).values()
    assert status.state == "indexed", status
    settle(fleet, video_id)
    return status


def settle(fleet: Fleet, video_id: str) -> None:
    """Wait until the ledger has nothing to do now for this video, its sweep included."""

    def idle() -> bool:
        return not fleet.of_video(
            "jobs",
            video_id,
            "state = 'running' OR lease_until > clock_timestamp()"
            " OR state = 'queued' AND not_before < clock_timestamp() + interval '1 minute'",
        )

    eventually(idle, within_s=60, what=f"{video_id} has settled")


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
    found = keys(fleet, video_id)
    assert found["sidecars"] == expected
    assert found["tmp"] == set()


class Searches:
    """Searches one video again and again while the block runs, and keeps every answer."""

    def __init__(self, fleet: Fleet, video_id: str, query: str = "rocket") -> None:
        self._fleet, self._video_id, self._query = fleet, video_id, query
        self.answers: list[SearchAnswer] = []
        self.errors: list[Exception] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._done.is_set():
            try:
                self.answers.append(
                    self._fleet.client.search(USER, self._query, mode="keyword", video_id=self._video_id)
                )
            except Exception as error:  # noqa: BLE001 - reported by assert_no_gap
                self.errors.append(error)
            self._done.wait(0.02)

    def __enter__(self) -> Searches:
        self._thread.start()
        self._wait_for_another()
        return self

    def _wait_for_another(self) -> None:
        have = len(self.answers)
        eventually(
            lambda: len(self.answers) > have or bool(self.errors), within_s=60, what="a search is answered"
        )

    def __exit__(self, *_: object) -> None:
        # At least one before, and one asked after all that happened in the block.
        self._wait_for_another()
        self._wait_for_another()
        self._done.set()
        self._thread.join()

    def assert_no_gap(self) -> list[str]:
        """Every answer had the one scene, once. Returns the scene ids it had, in order, without repeats."""
        assert not self.errors, self.errors[0]
        assert len(self.answers) >= 3
        seen: list[str] = []
        for answer in self.answers:
            assert len(answer.hits) == 1, answer
            assert answer.coverage.scenes == 2 and answer.coverage.with_words == 2
            if answer.hits[0].scene_id not in seen[-1:]:
                seen.append(answer.hits[0].scene_id)
        return seen


# --- rerun


@pytest.fixture(scope="module")
def published(fleet: Fleet, spoken: Path) -> str:
    """A video that the rerun tests process again and again."""
    video_id = "again"
    index(fleet, spoken, video_id)
    assert_only_run_left(fleet, video_id)
    return video_id


@pytest.mark.parametrize(
    ("stages", "made"),
    [
        ((), {"split", "asr", "text", "face", "ocr", "sidecar"}),
        (("text",), {"text", "sidecar"}),
        (("asr",), {"audio", "asr", "text", "sidecar"}),
        (("face",), {"face", "sidecar"}),
        (("sidecar",), {"sidecar"}),
        (("ocr",), {"ocr", "sidecar"}),
        (("split",), {"split", "asr", "text", "face", "ocr", "sidecar"}),
        (("face", "text"), {"face", "text", "sidecar"}),
    ],
)
def test_a_rerun_is_searchable_all_the_time(
    fleet: Fleet, published: str, stages: Sequence[str], made: set[str]
) -> None:
    before = fleet.client.scenes(published, USER).scenes
    first = fleet.client.status(published, USER)
    with Searches(fleet, published) as searches:
        receipt = fleet.client.rerun(published, USER, stages)
        assert receipt.accepted and receipt.run == first.run + 1
        (status,) = fleet.wait_ended([published], within_s=120).values()
        settle(fleet, published)
    assert status.state == "indexed" and status.published_run == receipt.run, status
    shown = states(status)
    assert {name for name, state in shown.items() if state == "done"} == made
    assert {name for name, state in shown.items() if state not in ("done", "skipped")} == {
        name for name in shown if name not in made and name != "vision"
    }
    assert shown["vision"] == "skipped"
    after = fleet.client.scenes(published, USER).scenes
    seen = searches.assert_no_gap()
    split_again = "split" in made
    assert seen == [before[0].scene_id] + [after[0].scene_id] * split_again
    assert [scene.scene_id == old.scene_id for scene, old in zip(after, before, strict=True)] == [
        not split_again
    ] * 2
    for scene, old in zip(after, before, strict=True):
        assert (scene.start_s, scene.end_s, scene.transcript, scene.faces) == (
            old.start_s, old.end_s, old.transcript, old.faces)  # fmt: skip
        assert scene.sidecar_key != old.sidecar_key, "a sidecar's revision is never used twice"
    assert_only_run_left(fleet, published)


def test_a_rerun_of_what_is_no_stage_is_refused(fleet: Fleet, published: str) -> None:
    for stages in (["tex"], ["audio"], ["sweep"], ["text", ""]):
        with pytest.raises(InvalidRequest, match=r"stages=.* is not a stage: name some of split, asr"):
            fleet.client.rerun(published, USER, stages)
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
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    assert (status.state, status.run, status.published_run) == ("indexed", 2, 2), status
    settle(fleet, video_id)
    assert_only_run_left(fleet, video_id)


def test_a_rerun_of_named_stages_makes_what_the_running_run_had_not_finished(
    fleet: Fleet, injection: Injection, spoken: Path
) -> None:
    video_id = "unfinished"
    held = injection.hold("asr", video_id)
    fleet.process(spoken, video_id)
    held.wait_met()
    fleet.client.rerun(video_id, USER, ["text"])
    held.lift()
    (status,) = fleet.wait_ended([video_id], within_s=90).values()
    assert status.state == "indexed", status
    shown = states(status)
    assert (shown["split"], shown["audio"], shown["asr"]) == ("reused", "done", "done")
    settle(fleet, video_id)
    assert_only_run_left(fleet, video_id)
    assert fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits


def test_a_rerun_that_fails_keeps_the_published_run(fleet: Fleet, injection: Injection, spoken: Path) -> None:
    video_id = "keeps"
    index(fleet, spoken, video_id)
    before = fleet.client.scenes(video_id, USER)
    broken = injection.fail("sidecar", video_id, error="BadMedia", message="on purpose: lift the rule")
    with Searches(fleet, video_id) as searches:
        fleet.client.rerun(video_id, USER)
        (status,) = fleet.wait_ended([video_id], within_s=90).values()
    assert (status.state, status.published_run, status.run) == ("failed", 1, 2)
    assert (status.error_class, status.error) == ("BadMedia", "on purpose: lift the rule")
    assert searches.assert_no_gap() == [before.scenes[0].scene_id]
    assert fleet.client.scenes(video_id, USER) == before
    for scene in before.scenes:
        assert scene.sidecar_key is not None
        fleet.storage.stat("sidecars", scene.sidecar_key)
    broken.lift()
    with Searches(fleet, video_id) as searches:
        assert fleet.client.retry(video_id, USER).accepted
        (status,) = fleet.wait_ended([video_id], within_s=90).values()
        settle(fleet, video_id)
    assert (status.state, status.published_run) == ("indexed", 2)
    assert len(searches.assert_no_gap()) == 2
    assert_only_run_left(fleet, video_id)


@pytest.mark.parametrize("stage", ["asr", "text", "face", "ocr"])
def test_a_rerun_in_which_a_stage_fails_does_not_replace_what_is_published(
    fleet: Fleet, injection: Injection, spoken: Path, stage: str
) -> None:
    """A first run is published without what failed; a rerun must not take away what callers have."""
    video_id = f"loses-{stage}"
    index(fleet, spoken, video_id)
    before = fleet.client.scenes(video_id, USER)
    assert any(scene.faces for scene in before.scenes)
    broken = injection.fail(stage, video_id, error="BadMedia", message="on purpose: lift the rule")
    with Searches(fleet, video_id) as searches:
        fleet.client.rerun(video_id, USER, [stage])
        (status,) = fleet.wait_ended([video_id], within_s=60).values()
    assert (status.state, status.published_run, status.error) == ("failed", 1, "on purpose: lift the rule"), (
        status
    )
    last = status.stages[-1]
    assert (last.stage, last.state) == ("sidecar", "skipped")
    assert last.error is not None and last.error.endswith("the published run has it and is kept")
    assert searches.assert_no_gap() == [before.scenes[0].scene_id]
    assert fleet.client.scenes(video_id, USER) == before
    broken.lift()
    assert fleet.client.retry(video_id, USER).accepted
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    settle(fleet, video_id)
    assert (status.state, status.published_run, status.error) == ("indexed", 2, None)
    assert_only_run_left(fleet, video_id)


def test_a_rerun_without_its_source_keeps_the_words(fleet: Fleet, spoken: Path) -> None:
    video_id = "sourceless"
    index(fleet, spoken, video_id)
    before = fleet.client.scenes(video_id, USER)
    fleet.storage.delete("uploads", fleet.client.status(video_id, USER).storage_key)
    for stages in (["asr"], []):
        fleet.client.rerun(video_id, USER, stages)
        (status,) = fleet.wait_ended([video_id], within_s=60).values()
        assert (status.state, status.error_class, status.published_run) == ("failed", "ObjectMissing", 1)
        assert fleet.client.scenes(video_id, USER) == before
    assert fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits
    fleet.client.rerun(video_id, USER, ["text"])
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    assert status.state == "indexed", "what needs no source can be made without it"


def test_a_silent_video_can_be_rerun_from_any_stage(fleet: Fleet, silent: Path) -> None:
    video_id = "silent"
    index(fleet, silent, video_id)
    with pytest.raises(Conflict, match="vision can't be made again: unavailable: profile lite has no vision"):
        fleet.client.rerun(video_id, USER, ["vision"])
    for stages in (["asr"], ["text"], ["face"], ["sidecar"], []):
        fleet.client.rerun(video_id, USER, stages)
        (status,) = fleet.wait_ended([video_id], within_s=60).values()
        assert (status.state, status.published_run) == ("indexed", status.run), status
        settle(fleet, video_id)
        assert_only_run_left(fleet, video_id)


def test_a_partial_video_is_completed_by_a_rerun_or_a_retry(
    fleet: Fleet, injection: Injection, spoken: Path
) -> None:
    repairs: tuple[tuple[str, Callable[[str], Receipt]], ...] = (
        ("partial-rerun", lambda name: fleet.client.rerun(name, USER, ["face"])),
        ("partial-retry", lambda name: fleet.client.retry(name, USER)),
    )
    for video_id, repair in repairs:
        broken = injection.fail("face", video_id, message="on purpose: lift the rule")
        fleet.process(spoken, video_id)
        (status,) = fleet.wait_ended([video_id], within_s=90).values()
        assert (status.state, status.published_run, states(status)["face"]) == ("partial", 1, "failed")
        assert (status.error_class, status.error) == ("ModelFailure", "on purpose: lift the rule")
        face = next(stage for stage in status.stages if stage.stage == "face")
        assert face.attempts == 3, "a retryable failure has max_failures attempts"
        assert fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits, (
            "a partial video is searched"
        )
        assert not any(scene.faces for scene in fleet.client.scenes(video_id, USER).scenes)
        broken.lift()
        with Searches(fleet, video_id) as searches:
            assert repair(video_id).accepted
            (status,) = fleet.wait_ended([video_id], within_s=90).values()
            settle(fleet, video_id)
        assert (status.state, status.error_class, status.error) == ("indexed", None, None)
        assert len(searches.assert_no_gap()) == 1
        assert any(scene.faces for scene in fleet.client.scenes(video_id, USER).scenes)
        assert_only_run_left(fleet, video_id)


def test_what_hangs_on_a_failed_stage_is_skipped_and_says_so(
    fleet: Fleet, injection: Injection, spoken: Path
) -> None:
    video_id = "hanging"
    broken = injection.fail("asr", video_id, error="BadMedia", message="on purpose: lift the rule")
    fleet.process(spoken, video_id)
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    assert status.state == "partial"
    by_name = {stage.stage: stage for stage in status.stages}
    assert (by_name["asr"].state, by_name["asr"].attempts) == ("failed", 1), "permanent: one attempt"
    assert (by_name["text"].state, by_name["text"].error) == ("skipped", "upstream asr failed")
    assert by_name["face"].state == "done"
    broken.lift()
    fleet.client.retry(video_id, USER)
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    assert status.state == "indexed"
    assert fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits


# --- cancel and retry


@pytest.mark.parametrize("stage", ["split", "asr", "text", "face", "ocr", "sidecar"])
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
    assert fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits == ()
    assert fleet.client.cancel(video_id, USER).accepted is False
    held.lift()
    assert fleet.client.retry(video_id, USER).run == 2
    (status,) = fleet.wait_ended([video_id], within_s=90).values()
    assert (status.state, status.published_run) == ("indexed", 2)
    settle(fleet, video_id)
    assert_only_run_left(fleet, video_id)


def test_cancelling_a_rerun_keeps_what_is_published_and_nothing_of_the_rerun(
    fleet: Fleet, injection: Injection, silent: Path
) -> None:
    video_id = "cancelled-rerun"
    index(fleet, silent, video_id)
    before = fleet.client.scenes(video_id, USER)
    held = injection.hold("sidecar", video_id, when="after")
    fleet.client.rerun(video_id, USER)
    held.wait_met()
    fleet.client.cancel(video_id, USER)
    settle(fleet, video_id)
    assert fleet.client.scenes(video_id, USER) == before
    assert_only_run_left(fleet, video_id)
    held.lift()


def test_retry_without_anything_failed_is_refused(fleet: Fleet, published: str) -> None:
    with pytest.raises(Conflict, match=r"video again is indexed: nothing failed; use rerun"):
        fleet.client.retry(published, USER)


# --- delete


def assert_forgotten(fleet: Fleet, video_id: str) -> None:
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


def test_delete_of_an_idle_video_leaves_a_tombstone(fleet: Fleet, spoken: Path) -> None:
    video_id = "idle-delete"
    index(fleet, spoken, video_id)
    receipt = fleet.client.delete(video_id, USER)
    assert (receipt.accepted, receipt.state) == (True, "deleted")
    assert fleet.client.search(USER, "rocket", mode="keyword", video_id=video_id).hits == (), (
        "gone from the receipt on"
    )
    settle(fleet, video_id)
    assert_forgotten(fleet, video_id)
    again = fleet.client.delete(video_id, USER)
    assert (again.accepted, again.state) == (False, "deleted")


@pytest.mark.parametrize(
    ("stage", "deaf"),
    [
        ("split", False),
        ("split", True),
        ("asr", False),
        ("text", True),
        ("face", False),
        ("ocr", True),
        ("sidecar", True),
    ],
)
def test_delete_while_running_leaves_nothing(
    fleet: Fleet, injection: Injection, spoken: Path, stage: str, deaf: bool
) -> None:
    video_id = f"delete-{stage}-{deaf}"
    held = injection.hold(stage, video_id, when="after", deaf=deaf)
    fleet.process(spoken, video_id)
    attempt = held.wait_met()
    assert fleet.client.delete(video_id, USER).accepted
    with pytest.raises(NotFound):
        fleet.client.status(video_id, USER)
    if deaf:
        held.lift()
    settle(fleet, video_id)
    held.lift()
    assert_forgotten(fleet, video_id)
    assert not Path(attempt["folder"]).exists()


def test_delete_while_a_run_is_swept_or_queued(fleet: Fleet, injection: Injection, silent: Path) -> None:
    video_id = "delete-swept"
    held = injection.hold("sweep", video_id, deaf=True)
    fleet.process(silent, video_id)
    held.wait_met()
    fleet.client.delete(video_id, USER)
    held.lift()
    settle(fleet, video_id)
    assert_forgotten(fleet, video_id)


def test_a_tombstoned_id_never_comes_back(fleet: Fleet, silent: Path) -> None:
    video_id = "tombstone"
    index(fleet, silent, video_id)
    (job,) = fleet.of_video("jobs", video_id, "stage = 'split'")
    fleet.client.delete(video_id, USER)
    settle(fleet, video_id)
    key = fleet.upload(silent, video_id)
    with pytest.raises(Conflict, match="video tombstone was deleted: send the file under a new video id"):
        fleet.client.process(video_id, USER, key)
    client = fleet.client
    for ask in (client.status, client.scenes, client.cancel, client.retry, client.rerun):
        with pytest.raises(NotFound, match="no video 'tombstone': check the id"):
            ask(video_id, USER)
    # Stale wake-up messages of its jobs ring for nothing.
    for _ in range(3):
        fleet.client._app.send_task(
            wake_up_task("media"), kwargs={"job_id": job["job_id"]}, queue="media", ignore_result=True
        )
    index(fleet, silent, "after-tombstone")
    (row,) = fleet.of_video("videos", video_id)
    assert row["state"] == "deleted"
    assert not fleet.of_video("scenes", video_id)


def test_another_users_video_is_out_of_reach(fleet: Fleet, published: str) -> None:
    before = fleet.client.status(published, USER)
    client = fleet.client
    for ask in (client.status, client.scenes, client.cancel, client.retry, client.rerun, client.delete):
        with pytest.raises(NotFound):
            ask(published, "u2")
    assert fleet.client.process(published, "u2", f"uploads/u2/{published}/x.mp4").accepted
    assert fleet.client.status(published, "u2").run == 1
    assert fleet.client.delete(published, "u2").state == "deleted"
    assert fleet.client.status(published, USER) == before


# --- the same id twice


def test_the_same_video_sent_at_once_is_one_video_and_one_run(fleet: Fleet, silent: Path) -> None:
    video_id = "twice"
    key = fleet.upload(silent, video_id)
    receipts = at_once([lambda: fleet.client.process(video_id, USER, key)] * 8)
    assert sorted(receipt.accepted for receipt in receipts) == [False] * 7 + [True]
    assert {receipt.run for receipt in receipts} == {1}
    fleet.wait_ended([video_id], within_s=60)
    assert fleet.client.process(video_id, USER, key).accepted is False
    assert [job["attempt"] for job in fleet.of_video("jobs", video_id, "stage = 'split'")] == [1]
    settle(fleet, video_id)
    assert_only_run_left(fleet, video_id)


def test_the_same_id_with_another_file_is_refused(fleet: Fleet, silent: Path) -> None:
    video_id = "other-file"
    index(fleet, silent, video_id)
    other = fleet.upload(silent, video_id, name="other.mp4")
    with pytest.raises(
        Conflict, match=r"video other-file already is 'uploads/u1/other-file/silent.mp4': delete it"
    ):
        fleet.client.process(video_id, USER, other)
    assert fleet.client.status(video_id, USER).storage_key == f"uploads/{USER}/{video_id}/silent.mp4"


def test_changes_at_once_leave_one_consistent_video(fleet: Fleet, silent: Path) -> None:
    video_id = "busy"
    index(fleet, silent, video_id)
    acts = [fleet.client.rerun, fleet.client.cancel, fleet.client.rerun, fleet.client.retry] * 2

    def change(act: Callable[..., Any]) -> None:
        with suppress(Conflict):
            act(video_id, USER)

    at_once([partial(change, act) for act in acts])
    fleet.client.rerun(video_id, USER)
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    settle(fleet, video_id)
    assert status.state == "indexed"
    assert_only_run_left(fleet, video_id)
    assert fleet.of_video("runs", video_id, "ended_at IS NULL") == []
