"""Nothing is lost, doubled or stranded when processes, servers and disks fail: the compact form.

Real nodes over a Postgres, a Redis and a disk of their own. The long form is ``tests/faults`` (``make test-faults``).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Queue

from shared import routing
from shared.broker import broker_config
from shared.client import Client
from shared.errors import BrokerUnavailable
from tests.faults.campaign import (
    Stand,
    restart_dead,
    run_disturbed,
    run_undisturbed,
    seed_of,
    stand,
    wait_indexed,
    wake_ups_received,
)
from tests.faults.material import SHORT_SPANS, Source, cut_clips, sources
from tests.faults.results import Results, collect, differences, leftovers
from tests.support.figures import RecordFigure
from tests.support.fleet import FAMILIES, ROOT, Fleet, eventually

pytestmark = pytest.mark.timeout(600)

MEDIA_LEASE_S = 4


@pytest.fixture(scope="module")
def clips(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cut_clips(sample, tmp_path_factory.mktemp("clips"), SHORT_SPANS)


@pytest.fixture(scope="module")
def the_stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """All nodes, two children for media; they obey injected rules. Asr holds the GIL: its lease must outlast that."""
    with stand(tmp_path_factory.mktemp("stand"), LEASE_S="30") as made:
        start(made.fleet, *FAMILIES)
        made.fleet.wait_ready()
        yield made


def start(fleet: Fleet, *families: str) -> None:
    for family in families:
        media: Any = {"concurrency": 2, "LEASE_S": str(MEDIA_LEASE_S)} if family == "media" else {}
        fleet.start(family, **media)


def unacked(fleet: Fleet) -> int:
    """Messages taken and not acknowledged. Those of processes that were killed stay for an hour: compare."""
    with redis.Redis.from_url(fleet.redis_url) as client:
        return int(client.hlen("unacked"))


@pytest.fixture
def fleet(the_stand: Stand) -> Fleet:
    """The fleet with every node up and nobody held, whatever the test before did."""
    fleet = the_stand.fleet
    the_stand.injection.lift_all()
    start(fleet, *(name for name in FAMILIES if name not in fleet.nodes))
    restart_dead(fleet)
    fleet.wait_ready()
    return fleet


@pytest.fixture
def producer(fleet: Fleet) -> Celery:
    """An API process that has nothing of ours but the broker's address."""
    app = Celery("api", set_as_current=False)
    queues = [Queue(name) for name in routing.QUEUES]
    app.conf.update(broker_config(fleet.redis_url), task_queues=queues)
    app.backend.on_task_call = lambda producer, task_id: None  # answers are polled for
    return app


def ask(producer: Celery, task: str, **payload: str) -> str:
    """Send a request that never expires; returns its id. (The handle would speak to Redis when it is collected.)"""
    result = producer.send_task(task, kwargs=payload, queue=routing.REQUESTS)
    result.backend = None
    return str(result.id)


def send_wake_up(producer: Celery, **payload: int) -> None:
    producer.send_task(routing.wake_up_task("media"), kwargs=payload, queue="media", ignore_result=True)


def wait_answer(producer: Celery, task_id: str, *, within_s: float = 60) -> Any:
    """The answer to a request.

    Raises: what the fleet answered with.
    """

    def answered() -> dict[str, Any]:
        found: dict[str, Any] = producer.backend.get_task_meta(task_id)
        return found if found["status"] in ("SUCCESS", "FAILURE") else {}

    meta = eventually(answered, within_s=within_s, what=f"request {task_id} is answered")
    if meta["status"] == "FAILURE":
        raise meta["result"]
    return meta["result"]


def send(fleet: Fleet, clip: Path, video_id: str) -> Source:
    fleet.process(clip, video_id)
    return Source(video_id, "u1", clip)


def wait_done(fleet: Fleet, *sent: Source, within_s: float = 120) -> None:
    wait_indexed(fleet, sent, within_s=within_s)
    wanted = [source.video_id for source in sent]
    # A worker that gives up still tidies its folder after the video has ended.
    left = f"nothing left: {leftovers(fleet, wanted)}"
    eventually(lambda: not leftovers(fleet, wanted), within_s=60, what=left)


def job(fleet: Fleet, video_id: str, stage: str) -> dict[str, Any]:
    (row,) = fleet.of_video("jobs", video_id, f"stage = '{stage}'")
    return row


# --- the campaign


@pytest.fixture(scope="module")
def twelve(clips: list[Path]) -> list[Source]:
    return sources(clips, 12)


@pytest.fixture(scope="module")
def undisturbed(the_stand: Stand, twelve: list[Source]) -> Results:
    """What an undisturbed run makes of the videos; it also counts the wake-up messages."""
    before = wake_ups_received(the_stand.fleet)
    results = run_undisturbed(the_stand.fleet, twelve, within_s=300)
    assert leftovers(the_stand.fleet) == []
    notified = wake_ups_received(the_stand.fleet) - before
    jobs = Counter(row["queue"] for row in the_stand.fleet.rows("SELECT queue FROM jobs WHERE attempt > 0"))
    print(f"\nwake-up messages {dict(notified)} for jobs {dict(jobs)}")
    for queue, count in jobs.items():
        # About one wake-up message per job.
        assert count <= notified[routing.wake_up_task(queue)] <= 1.25 * count + 2, queue
    assert the_stand.fleet.rows("SELECT * FROM jobs WHERE failures + outages > 0") == []
    # Comparing two runs proves little unless there is something to compare.
    scenes = [scene for video in results.videos.values() for scene in video["scenes"]]
    assert len(scenes) >= 24 and sum(bool(scene["transcript"]) for scene in scenes) >= 12
    assert sum(key.endswith(".json") for key in results.objects) == len(scenes) and len(results.faces) >= 4
    the_stand.start_over()
    return results


def test_a_run_in_which_everything_fails(
    the_stand: Stand, undisturbed: Results, twelve: list[Source], fleet: Fleet
) -> None:
    chaos = the_stand.new_chaos(seed_of("FAULTS_SEED"))
    print(f"\nFAULTS_SEED={chaos.seed}")
    kinds = list(chaos.kinds)
    chaos.random.shuffle(kinds)
    disturbed = run_disturbed(chaos, twelve, kinds, within_s=300)
    print(chaos.table())
    assert sum(fault.running > 0 for fault in chaos.faults) >= len(kinds) - 1, "faults met an idle fleet"
    assert leftovers(fleet) == []
    assert differences(undisturbed, disturbed) == []


# --- jobs and workers that die


def test_a_job_that_always_kills_its_worker(the_stand: Stand, fleet: Fleet, clips: list[Path]) -> None:
    deadly = the_stand.injection.die("split", "deadly")
    send(fleet, clips[0], "deadly")
    others = [send(fleet, clip, f"beside{n}") for n, clip in enumerate(clips[:2])]
    wait_indexed(fleet, others, within_s=120)
    status = fleet.wait_for("deadly", "failed")
    assert status.error_class == "WorkerLost" and "died while it ran this job" in (status.error or "")
    row = job(fleet, "deadly", "split")
    assert (row["deaths"], row["deaths_alone"], row["failures"]) == (3, 2, 0), (
        "the first one may be another's fault"
    )
    assert len(deadly.met) == 3, "no storm"
    assert not any(fleet.of_video("jobs", source.video_id, "deaths > 0") for source in others)
    deadly.lift()
    fleet.client.retry("deadly", "u1")
    wait_done(fleet, Source("deadly", "u1", clips[0]))


def test_a_request_that_kills_its_worker_is_not_repeated_for_ever(
    fleet: Fleet, producer: Celery, tmp_path: Path
) -> None:
    """Redis counts no deliveries: 280 deaths in 45 s have been seen. Requests are not worth a second worker."""
    fleet.stop("search")
    (tmp_path / "sitecustomize.py").write_text(_DEADLY_REQUEST)
    fleet.start("search", PYTHONPATH=str(tmp_path), DEATHS=str(tmp_path / "deaths"))
    fleet.wait_ready("search")
    with pytest.raises(Exception, match=r"WorkerLost|exited prematurely"):
        wait_answer(producer, ask(producer, routing.VIDEO_STATUS, video_id="die", user_id="u1"))
    assert fleet.client.search("u1", "rocket", mode="keyword").query == "rocket", "the next child answers"
    assert len((tmp_path / "deaths").read_text().split()) == 1
    fleet.stop("search")
    start(fleet, "search")


_DEADLY_REQUEST = """
import os, signal
from db import videos
get = videos.status
def status(session, video_id, user_id):
    if video_id == "die":
        with open(os.environ["DEATHS"], "a") as sink:
            sink.write(f"{os.getpid()}\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return get(session, video_id, user_id)
videos.status = status
"""


def test_duplicate_wake_ups_while_the_first_still_runs(
    the_stand: Stand, fleet: Fleet, producer: Celery, clips: list[Path]
) -> None:
    held = the_stand.injection.hold("split", "doubled")
    sent = send(fleet, clips[0], "doubled")
    job_id = held.wait_met()["job_id"]
    before = unacked(fleet)
    for _ in range(5):
        send_wake_up(producer, job_id=job_id)
    with redis.Redis.from_url(fleet.redis_url) as client:
        eventually(
            lambda: client.llen("media") == 0 and unacked(fleet) <= before,
            within_s=30,
            what="the other child has answered the duplicates",
        )
    row = job(fleet, "doubled", "split")
    assert (row["state"], row["attempt"], len(held.met)) == ("running", 1, 1)
    held.lift()
    wait_done(fleet, sent)
    assert job(fleet, "doubled", "split")["attempt"] == 1


@pytest.mark.parametrize("stage", ["split", "sidecar"])
def test_a_worker_that_wakes_after_its_lease_was_taken(
    the_stand: Stand, fleet: Fleet, clips: list[Path], stage: str
) -> None:
    """The sleeper of split wakes while the run goes on, that of sidecar when all is over and swept."""
    video_id = f"woken_{stage}"
    when: Any = "after" if stage == "split" else "before"
    slept = the_stand.injection.hold(stage, video_id, when=when, deaf=True, times=1)
    later = the_stand.injection.hold("asr", video_id) if stage == "split" else None
    sent = send(fleet, clips[1], video_id)
    sleeper = slept.wait_met()
    os.kill(sleeper["pid"], signal.SIGSTOP)
    try:
        done = f"stage = '{stage}' AND state = 'done'"
        eventually(lambda: fleet.of_video("jobs", video_id, done), within_s=60, what="another child's work")
        if later is not None:
            later.wait_met()
        else:
            wait_indexed(fleet, [sent], within_s=120)
        mine = f"/{sleeper['job_id']}.{sleeper['attempt']}/"
        if stage == "split":
            assert [key for key in fleet.objects("sidecars") if mine in key], "it had stored pictures"
        made = {key: data for key, data in fleet.objects("sidecars").items() if mine not in key}
        rows = collect(fleet)
        slept.lift()
    finally:
        os.kill(sleeper["pid"], signal.SIGCONT)
    said = re.compile(rf"job given up\s.*job_id={sleeper['job_id']}")
    eventually(
        lambda: said.search(re.sub(r"\x1b\[[0-9;]*m", "", fleet.log("media"))),
        within_s=30,
        what="it gives up",
    )
    eventually(lambda: fleet.objects("sidecars") == made, within_s=30, what="what it had stored is gone")
    assert differences(rows, collect(fleet)) == [] or stage == "split"
    if later is not None:
        later.lift()
    wait_done(fleet, sent)
    row = job(fleet, video_id, stage)
    assert (row["state"], row["attempt"], row["failures"]) == ("done", 2, 0)


def test_several_reconcilers_at_once(the_stand: Stand, tmp_path: Path) -> None:
    """Each expired job is taken back once, each stuck video goes on once, and no more wake-up messages than jobs."""
    count = 40
    the_stand.postgres.execute("CREATE DATABASE reconcilers TEMPLATE template_scenefleet")
    url = the_stand.redis_server.url.removesuffix("/0") + "/1"
    fleet = Fleet(tmp_path / "home", the_stand.postgres.url("reconcilers"), url)
    the_stand.postgres.execute(_EXPIRED_AND_STUCK.format(count=count), "reconcilers")
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "tests.faults.reconcilers", str(tmp_path / "here"), "3"]
    environment = fleet.process_environment(BACKOFF_S="0.001")
    running = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    expired = "SELECT state, attempt, outages, failures FROM jobs WHERE starts_with(video_id, 'expired')"
    taken_back = {"state": "queued", "attempt": 1, "outages": 1, "failures": 0}
    assert fleet.rows(expired) == [taken_back] * count
    states = fleet.rows("SELECT stage, state FROM jobs WHERE starts_with(video_id, 'stuck')")
    assert Counter((row["stage"], row["state"]) for row in states) == {
        ("split", "failed"): count,
        ("sweep", "queued"): count,
        **{(stage, "skipped"): count for stage in ("asr", "text", "vision", "face", "ocr", "sidecar")},
    }
    stuck = fleet.rows("SELECT DISTINCT state FROM videos WHERE starts_with(video_id, 'stuck')")
    assert stuck == [{"state": "failed"}]
    with redis.Redis.from_url(url) as client:
        assert client.llen("media") == count, "one wake-up message for each job that can be claimed"


_EXPIRED_AND_STUCK = """
INSERT INTO videos (video_id, user_id, external_id, storage_key, state, run)
    SELECT kind || n, 'u' || n % 3, kind || n, 'k', 'processing', 1
    FROM generate_series(1, {count}) n, (VALUES ('expired'), ('stuck')) AS kinds (kind);
INSERT INTO runs (video_id, run, stages, stage_runs)
    SELECT video_id, 1, '["split", "asr", "text", "vision", "face", "ocr", "sidecar"]',
        '{{"split": 1, "asr": 1, "text": 1, "vision": 1, "face": 1, "ocr": 1, "sidecar": 1}}' FROM videos;
INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, state, attempt, lease_owner, lease_until)
    SELECT video_id, video_id, user_id, 'media', 1, 'split', 'running', 1, 'gone:1:0:1',
        clock_timestamp() - interval '1 second' FROM videos WHERE video_id LIKE 'expired%';
INSERT INTO jobs (subject_id, video_id, user_id, queue, run, stage, state, attempt)
    SELECT video_id, video_id, user_id, 'media', 1, 'split', 'failed', 1 FROM videos WHERE video_id LIKE 'stuck%';
"""


# --- nodes that stop


def test_a_stopped_node_gives_its_job_back_uncounted(
    the_stand: Stand, fleet: Fleet, clips: list[Path], record_figure: RecordFigure
) -> None:
    """SIGTERM, as a supervisor sends it: the job is free at once, and a deploy is nobody's failure."""
    held = the_stand.injection.hold("split", "deployed", deaf=True)
    sent = send(fleet, clips[0], "deployed")
    held.wait_met()
    began = time.monotonic()
    fleet.stop("media")
    row = job(fleet, "deployed", "split")
    assert (row["state"], row["failures"], row["outages"]) == ("queued", 0, 0)
    record_figure("a node with a deaf job stopped in", f"{time.monotonic() - began:.1f} s")
    held.lift()
    start(fleet, "media")
    wait_done(fleet, sent)
    row = job(fleet, "deployed", "split")
    assert (row["attempt"], row["failures"], row["outages"]) == (2, 0, 0)


def scale_down(fleet: Fleet, name: str, grace_s: float) -> bool:
    """End a node as a kubelet ends a pod: SIGTERM, and SIGKILL after the grace period. Returns whether it was killed."""
    process = fleet.nodes[name].process
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        fleet.kill(name)
        killed = True
    else:
        killed = False
    del fleet.nodes[name]
    # The volume of a pod goes with it.
    shutil.rmtree(fleet.home / "work" / f"{name}@{os.uname().nodename}", ignore_errors=True)
    return killed


def test_scaled_down_again_and_again_in_the_middle_of_work(
    the_stand: Stand, fleet: Fleet, clips: list[Path], record_figure: RecordFigure
) -> None:
    """Whether the grace period suffices or not: jobs run again on another node, and no error is counted."""
    # The second is long enough: SOFT_SHUTDOWN_S is 2.
    graces_s = (0.3, 30.0, 0.3)
    held = the_stand.injection.hold("split", "scaled", deaf=True, times=len(graces_s))
    listening = the_stand.injection.hold("asr", "beside_scaled", deaf=True, times=1)
    sent = [send(fleet, clips[n], name) for n, name in enumerate(("scaled", "beside_scaled", "third_scaled"))]
    began, killed = time.monotonic(), 0
    for number, grace_s in enumerate(graces_s, 1):
        held.wait_met(number)
        # Another pod, with another name: nothing but the lease tells that the job is free.
        fleet.start("media", name=f"media{number}", LEASE_S=str(MEDIA_LEASE_S))
        owner = job(fleet, "scaled", "split")["lease_owner"].partition("@")[0]
        killed += scale_down(fleet, owner, grace_s)
    listening.wait_met()
    assert scale_down(fleet, "asr", 0.3)
    start(fleet, "asr")
    wait_done(fleet, *sent)
    assert killed == 2
    for source in sent:
        assert fleet.of_video("jobs", source.video_id, "failures > 0 OR state = 'failed'") == []
    row = job(fleet, "scaled", "split")
    assert (row["attempt"], row["outages"]) == (len(graces_s) + 1, killed)
    record_figure("three videos, four nodes scaled down meanwhile", f"{time.monotonic() - began:.1f} s")
    fleet.stop(*(name for name in tuple(fleet.nodes) if name.startswith("media")))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(the_stand: Stand, fleet: Fleet, clips: list[Path], times: int) -> None:
    """Ctrl-C reaches the whole process group. Once: the job ends first. Twice: the job is given back."""
    held = the_stand.injection.hold("split", f"interrupted{times}", deaf=True)
    sent = send(fleet, clips[0], f"interrupted{times}")
    held.wait_met()
    node = fleet.nodes["media"]
    again = "Hitting Ctrl+C again"
    for _ in range(times):
        shown = fleet.log("media").count(again)
        os.killpg(node.process.pid, signal.SIGINT)
        eventually(lambda: fleet.log("media").count(again) > shown, within_s=20, what="it is taken")  # noqa: B023
    if times == 1:
        held.lift()
    node.process.wait(timeout=60)
    row = job(fleet, sent.video_id, "split")
    assert (row["state"], row["failures"], row["outages"]) == ("done" if times == 1 else "queued", 0, 0)
    held.lift()
    fleet.restart("media")
    wait_done(fleet, sent)
    assert job(fleet, sent.video_id, "split")["attempt"] == times


# --- the broker


def test_redis_flushed_under_warm_workers_and_producers(
    fleet: Fleet, producer: Celery, clips: list[Path]
) -> None:
    """Nothing restarts: wake-up messages sent before are rung again from the ledger, later ones arrive as ever."""
    before = send(fleet, clips[0], "before_flush")
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.flushall()
    began = time.monotonic()
    after = send(fleet, clips[1], "after_flush")
    assert time.monotonic() - began < 20, "the warm producer and the warm worker still speak"
    answers = producer.control.inspect(timeout=20, limit=len(fleet.nodes)).ping()
    assert len(answers or {}) == len(fleet.nodes), "`celery inspect` still reaches every node"
    wait_done(fleet, before, after)


def test_redis_down_when_a_video_is_sent(the_stand: Stand, fleet: Fleet, clips: list[Path]) -> None:
    client = Client(fleet.redis_url, timeout_s=20)
    source = Source("redis_down", "u1", clips[0])
    key = fleet.upload(source.path, source.video_id)
    assert client.search("u1", "warm", mode="keyword").query == "warm"
    the_stand.redis_server.stop()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"Redis does not answer .* is it running"):
        client.process(source.video_id, "u1", key)
    assert time.monotonic() - began < 10
    the_stand.redis_server.start()
    receipt = client.process(source.video_id, "u1", key)
    assert receipt.accepted and receipt.run == 1, "the first call after the restart works"
    assert not client.process(source.video_id, "u1", key).accepted, "sent again: nothing changes"
    wait_done(fleet, source)


def test_a_redis_restart_keeps_what_is_queued(
    the_stand: Stand, fleet: Fleet, producer: Celery, clips: list[Path]
) -> None:
    """Append-only file: neither a request that waits nor a wake-up message is lost, though the reconciler would send it again."""
    fleet.stop("media", "search")
    source = Source("kept", "u1", clips[0])
    key = fleet.upload(source.path, "kept")
    ask(producer, routing.VIDEO_PROCESS, video_id="kept", user_id="u1", storage_key=key)
    for _ in range(7):
        send_wake_up(producer)
    with redis.Redis.from_url(fleet.redis_url) as client:
        client.config_set("appendfsync", "always")  # what a second of waiting would show as well
        queued = {queue: client.lrange(queue, 0, -1) for queue in ("media", routing.REQUESTS)}
    the_stand.redis_server.stop(signal.SIGKILL)
    the_stand.redis_server.start()
    with redis.Redis.from_url(fleet.redis_url) as client:
        assert queued == {queue: client.lrange(queue, 0, -1) for queue in ("media", routing.REQUESTS)}
    start(fleet, "search", "media")
    wait_done(fleet, source)


# --- the database


def test_postgres_down_when_a_video_is_sent(
    the_stand: Stand, fleet: Fleet, producer: Celery, clips: list[Path]
) -> None:
    """The message is kept, answered when Postgres is back, and sending it again meanwhile changes nothing."""
    source = Source("postgres_down", "u1", clips[0])
    key = fleet.upload(clips[0], source.video_id)
    before = unacked(fleet)
    the_stand.postgres.stop()
    payload = {"video_id": source.video_id, "user_id": "u1", "storage_key": key}
    answers = [ask(producer, routing.VIDEO_PROCESS, **payload) for _ in range(2)]
    eventually(lambda: unacked(fleet) > before, within_s=20, what="a worker has taken the message")
    the_stand.postgres.start()
    receipts = [wait_answer(producer, answer) for answer in answers]
    assert sorted(receipt["accepted"] for receipt in receipts) == [False, True]
    wait_done(fleet, source)


def test_nothing_is_left_of_all_this_and_idle_nodes_ring_no_wake_ups(fleet: Fleet) -> None:
    """A dozen rounds of every reconciler over an idle ledger."""
    assert leftovers(fleet) == []
    with redis.Redis.from_url(fleet.redis_url) as client:
        assert [queue for queue in routing.QUEUES if client.llen(queue)] == []
        client.config_resetstat()
        time.sleep(6)
        calls = {name: stat["calls"] for name, stat in client.info("commandstats").items()}
    assert calls.get("cmdstat_lpush", 0) == 0, json.dumps(calls)
