"""Bad files and bad messages through a running fleet: one clear error each, one attempt, and no process dies."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import NotRegistered
from kombu import Connection, Producer

from shared.errors import InvalidKey, InvalidRequest, NotFound
from shared.exit_status import ExitStatus
from shared.replies import new_reply_key, wait_replies
from shared.routing import JOB_QUEUES, NODES, wake_up_task
from tests.acceptance.lite.conftest import Ask, answer_of
from tests.integration.test_media_costs import MEMORY_BYTES, OUTCOMES
from tests.integration.test_media_hostile import Watch
from tests.support.clips import Shot, Sound, make_clip
from tests.support.fleet import FAMILIES, Fleet, eventually, run_to_end
from tests.support.hostile_files import make
from tests.unit.media.test_probe import write_bad

USER = "u1"
#: What the nodes of the fleet listen to.
QUEUES = tuple(queue for family in FAMILIES for queue in NODES[family].queues)
UNKNOWN = "no video 'unheard-of': check the id, or send tasks.video.process first"


def pids(fleet: Fleet) -> dict[str, set[int]]:
    """Every process of every node."""
    return {
        name: {node.process.pid, *(child.pid for child in node.children)}
        for name, node in fleet.nodes.items()
    }


@pytest.fixture(autouse=True)
def no_process_died(fleet: Fleet) -> Iterator[None]:
    """The same processes before and after, and no message that comes again and again."""
    before = pids(fleet)
    yield
    with redis.Redis.from_url(fleet.redis_url) as client:
        eventually(
            lambda: not client.hlen("unacked") and not any(client.llen(queue) for queue in QUEUES),
            within_s=20,
            what="every message was taken and acknowledged",
        )
    assert pids(fleet) == before


# --- files


BAD_FILES = {
    "empty": r"The file is empty \(0 bytes\); upload it again",
    "text": r"\d+ bytes\) is damaged or in no video format we accept .*convert it to",
    "without index": r"without its index .*truncated .*upload it again",
    "audio only": r"no video stream; upload a file with moving pictures",
    "one pixel": r"1x1 pixels, the smallest usable side is 16; upload",
    "hls": r"an HLS playlist, which only names other files; upload the video itself",
}


def test_a_bad_file_gives_one_error_and_one_attempt(fleet: Fleet, tmp_path: Path) -> None:
    expected = {kind.replace(" ", "-"): says for kind, says in BAD_FILES.items()}
    for video_id, kind in zip(expected, BAD_FILES, strict=True):
        write_bad(tmp_path / f"{video_id}.mp4", kind)
        fleet.process(tmp_path / f"{video_id}.mp4", video_id)
    for video_id, status in fleet.wait_ended(expected, within_s=60).items():
        assert (status.state, status.error_class) == ("failed", "BadMedia"), status
        assert status.error is not None and re.search(expected[video_id], status.error), status.error
        assert "\n" not in status.error and "Traceback" not in status.error and len(status.error) < 300
        by_name = {stage.stage: stage for stage in status.stages}
        assert (by_name["split"].state, by_name["split"].attempts) == ("failed", 1), status
        assert {stage.state for name, stage in by_name.items() if name != "split"} == {"skipped"}
        assert status.published_run is None
        assert fleet.client.scenes(video_id, USER).scenes == ()
    assert not list((fleet.home / "work").rglob("*.jpg"))


def test_expensive_files_are_refused_once_while_others_go_on(
    fleet: Fleet, silent: Path, tmp_path: Path
) -> None:
    """tests/integration/test_media_costs.py has every way to be expensive, and measures the decoding process."""
    expensive = {name.partition(".")[0]: make(name, tmp_path) for name in ("references.mp4", "skipped.ts")}
    for video_id, path in expensive.items():
        fleet.process(path, video_id, "mallory")
        fleet.process(silent, f"beside-{video_id}", "alice")
    for video_id, path in expensive.items():
        status = fleet.wait_for(video_id, "failed", "mallory", within_s=240)
        assert re.search(str(OUTCOMES[path.name]), str(status.error)), status
        assert status.error_class == "LimitExceeded"
        assert next(stage.attempts for stage in status.stages if stage.stage == "split") == 1
        fleet.wait_for(f"beside-{video_id}", user_id="alice")
    assert max(fleet.peaks_mb("media").values()) < MEMORY_BYTES / 2**20


def test_a_source_that_is_a_link_is_refused_unopened(fleet: Fleet, silent: Path) -> None:
    key = f"uploads/{USER}/link/film.mp4"
    place = fleet.storage_root / "uploads" / key
    place.parent.mkdir(parents=True)
    place.symlink_to(silent)
    with closing(Watch(silent)) as watch:
        fleet.client.process("link", USER, key)
        status = fleet.wait_for("link", "failed")
        assert not watch.opened()
    assert status.error_class == "InvalidKey" and "film.mp4" in str(status.error), status
    assert next(stage.attempts for stage in status.stages if stage.stage == "split") == 1


@pytest.mark.parametrize(
    "key",
    [
        "uploads/u1/key/../../u2/secret/film.mp4",
        "/etc/passwd",
        "uploads/u2/key/film.mp4",
        "uploads/u1/another/film.mp4",
        "uploads/u1/key",
        "uploads/u1/keyx/film.mp4",
        "sidecars/u1/key/x.json",
        "uploads/u1/key/a\nb.mp4",
        "https://example.org/film.mp4",
        "s3://bucket/uploads/u1/key/film.mp4",
        "",
    ],
)
def test_a_bad_storage_key_is_refused_and_nothing_stored(fleet: Fleet, ask: Ask, key: str) -> None:
    with pytest.raises(InvalidKey, match=r"storage key.*:"):
        ask("tasks.video.process", video_id="key", user_id=USER, storage_key=key)
    assert not fleet.rows("SELECT 1 FROM videos WHERE external_id = 'key'")


def test_a_video_refused_for_its_key_is_accepted_with_a_right_one(
    fleet: Fleet, ask: Ask, silent: Path
) -> None:
    with pytest.raises(InvalidKey):
        ask("tasks.video.process", video_id="mended", user_id=USER, storage_key="/film.mp4")
    status = fleet.index(silent, "mended")
    assert (status.error_class, status.error) == (None, None)


# --- payloads


def video(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {"video_id": "never", "storage_key": f"uploads/{USER}/never/a.mp4"}
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


BAD_IDS: list[Any] = [5, None, [], {"$ne": 1}, True, "", "a" * 65, "a/b", "..", "a\n", "é", "a b", "a\x00"]
#: Task -> its payload but for the user's id, and how the error begins or what it says.
BAD_PAYLOADS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "tasks.video.process": [
        *[(video(video_id=value), r"^video_id=") for value in BAD_IDS],
        (video(video_id=...), r"^video_id is missing"),
        (video(storage_key=...), r"^storage_key is missing"),
        (video(storage_key="a" * 5000), r"5\d\d\d bytes, more than 4096: send storage keys"),
        (video(storage_key="a\x00b"), r"^storage_key=.*NUL"),
        *[
            (video(priority=value), r"^priority=")
            for value in ("high", "5", 1.5, True, -1, 10, 2**63, 10**300, [1], None)
        ],
        (video(version=2), r"^version=2 "),
        (video(colour="red"), r"^colour='red' "),
        (video(storage_key="x" * 20_000_000), r"more than 4096: send storage keys, not data"),
    ],
    "tasks.video.status": [({"video_id": "v", "user_id": value}, r"^user_id=") for value in BAD_IDS],
    "tasks.video.rerun": [
        ({"video_id": "v", "stages": "text"}, r"^stages='text' "),
        ({"video_id": "v", "stages": [1]}, r"^stages\.0=1 "),
        ({"video_id": "v", "stages": ["no"]}, r"^stages='no' is not a stage: name some of"),
    ],
    "tasks.video.scenes": [
        ({"video_id": "v", "limit": 0}, r"^limit=0 "),
        ({"video_id": "v", "after_idx": 10**30}, r"^after_idx=1000000"),
    ],
    "tasks.search.scenes": [
        ({}, r"^query is missing"),
        ({"query": ""}, r"^query='' "),
        ({"query": "x" * 1001}, r"^query='xx.* at most 1000"),
        ({"query": "x" * 10_000}, r"bytes, more than 8192"),
        ({"query": "x", "mode": "magic"}, r"^mode='magic' "),
        ({"query": "x", "limit": 51}, r"^limit=51 is more than 50"),
        ({"query": "x", "self": 1}, r"^self=1 "),
        ({"query": "x\x00"}, r"^query='x\\x00' .*NUL"),
        ({"query": "x", "weights": {"text": "9"}}, r"^weights\.text='9' "),
        ({"query": "x", "cursor": "'; DROP"}, r"^cursor=.* is none of ours"),
        ({"query": "x", "persons": [None]}, r"^persons\.0=None "),
    ],
    "tasks.people.get": [({"person_id": value}, r"^person_id=") for value in BAD_IDS],
    "tasks.people.create": [
        ({"name": value}, r"^name=") for value in ("", " ", "a\x00", "a\u202eb", "a\tb", "x" * 201, 5, None, ["a"])
    ],
    "tasks.people.list": [({"limit": 10**9}, r"^limit=1000000000 "), ({"kind": "all"}, r"^kind='all' ")],
    "tasks.people.faces": [({"person_id": "p", "after": "' OR 1=1"}, r"^after=")],
    "tasks.people.judge": [
        ({"person_id": "p", "track_ids": [], "is_person": True}, r"^track_ids="),
        ({"person_id": "p", "track_ids": ["t"], "is_person": 1}, r"^is_person=1 "),
    ],
    "tasks.people.split": [({"person_id": "p", "track_ids": ["t"] * 65}, r"^track_ids=")],
    "tasks.people.undo": [({"event_id": -1}, r"^event_id=-1 "), ({"event_id": 2**64}, r"^event_id=18446744073709551616 ")],
    "tasks.people.events": [({"before": 0}, r"^before=0 ")],
    "tasks.people.add_photo": [({"person_id": "p", "extension": "../x"}, r"^extension='\.\./x' ")],
    "tasks.text.embed": [
        ({"texts": "one", "user_id": ...}, r"^texts='one' "),
        ({"texts": ["x"] * 1001, "user_id": ...}, r"^texts="),
        ({"texts": ["x", "a\x00b"], "user_id": ...}, r"^texts\.1='a\\x00b' is not acceptable"),
        ({"texts": [None], "user_id": ...}, r"^texts\.0=None "),
        ({"texts": ["x" * 2_100_000], "user_id": ...}, r"bytes, more than 2097152"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("task", BAD_PAYLOADS)
def test_a_bad_payload_is_refused_by_field_and_value(fleet: Fleet, ask: Ask, task: str) -> None:
    for payload, says in BAD_PAYLOADS[task]:
        whole = {"user_id": USER, **payload}
        with pytest.raises(InvalidRequest, match=says) as refusal:
            ask(task, **{name: value for name, value in whole.items() if value is not ...})
        message = str(refusal.value)
        assert "\n" not in message and len(message) < 300
    assert not fleet.rows("SELECT 1 FROM videos WHERE external_id = 'never'")


def test_an_unknown_video_is_not_found(ask: Ask) -> None:
    for request in ("status", "scenes", "cancel", "retry", "rerun", "delete"):
        with pytest.raises(NotFound) as refusal:
            ask(f"tasks.video.{request}", video_id="unheard-of", user_id=USER)
        assert str(refusal.value) == UNKNOWN


def test_arguments_without_names_are_refused(ask: Ask) -> None:
    for task in ("tasks.video.process", "tasks.video.delete", "tasks.search.scenes", "tasks.text.embed"):
        with pytest.raises(InvalidRequest, match="by name"):
            ask(task, "v1", USER)


def test_an_unknown_task_is_answered(ask: Ask) -> None:
    with pytest.raises(NotRegistered, match=r"tasks\.video\.explode"):
        ask("tasks.video.explode", video_id="v", user_id=USER)


# --- messages


def assert_answers(ask: Ask) -> None:
    """The search node still answers, after all that was sent before."""
    with pytest.raises(NotFound):
        ask("tasks.video.status", video_id="unheard-of", user_id=USER)


def test_an_answer_goes_to_a_reply_list_and_to_no_other_key(fleet: Fleet, outside: Celery, ask: Ask) -> None:
    kwargs = {"video_id": "unheard-of", "user_id": USER}
    with redis.Redis.from_url(fleet.redis_url, socket_timeout=5) as client:
        taken = new_reply_key()
        client.set(taken, "of another type")
        for key in ("other", "search", "scenefleet:reply:x", taken):
            outside.send_task("tasks.video.status", kwargs=kwargs, queue="search", reply_to=key)
        key = new_reply_key()
        for task in ("status", "nonsense"):
            options = {"queue": "search", "reply_to": key, "ignore_result": task == "status", "task_id": task}
            outside.send_task(f"tasks.video.{task}", kwargs=kwargs, **options)
        told = {
            reply.id: reply
            for reply in wait_replies(client, key, {"status", "nonsense"}, time.monotonic() + 20)
        }
        assert isinstance(told["status"].error, NotFound) and str(told["status"].error) == UNKNOWN
        assert told["nonsense"].error_class == "NotRegistered"
        assert_answers(ask)
        assert client.keys("other") == [] and client.keys("scenefleet:reply:x") == []
        assert client.get(taken) == b"of another type"
        client.delete(taken)


def publish(
    producer: Producer, task: str, body: str | bytes, queue: str = "search", **properties: str
) -> str:
    """Send a message whose body Celery would not write; returns its id."""
    task_id = str(uuid.uuid4())
    headers = {
        "lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
        "argsrepr": "()", "kwargsrepr": "{}", "origin": "test", "ignore_result": False,
    }  # fmt: skip
    kind = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
    producer.publish(
        body, routing_key=queue, exchange="", headers=headers, correlation_id=task_id,
        reply_to=str(uuid.uuid4()), **kind,
    )  # fmt: skip
    return task_id


@pytest.fixture
def producer(fleet: Fleet) -> Iterator[Producer]:
    with Connection(fleet.redis_url) as connection:
        yield Producer(connection)


#: Half a surrogate pair: valid JSON, and no text.
HALF = "\\ud83d"


@pytest.mark.parametrize(
    ("task", "payload", "says"),
    [
        *[
            ("tasks.video.process", f'{json.dumps(video(user_id=USER))[:-1]}, "priority": {value}}}', "priority=")
            for value in ("NaN", "Infinity", "-Infinity", "1e999")
        ],
        ("tasks.search.scenes", f'{{"user_id": "u1", "query": "{HALF}"}}', "not valid Unicode: send UTF-8"),
        ("tasks.people.create", f'{{"user_id": "u1", "name": "{HALF}"}}', "not valid Unicode: send UTF-8"),
        ("tasks.people.list", f'{{"user_id": "u1", "{HALF}": 1}}', "not valid Unicode: send UTF-8"),
    ],
)  # fmt: skip
def test_what_json_or_unicode_does_not_know_is_refused(
    outside: Celery, producer: Producer, task: str, payload: str, says: str
) -> None:
    sent = publish(producer, task, f"[[], {payload}, null]")
    with pytest.raises(InvalidRequest, match=says):
        answer_of(outside.AsyncResult(sent))


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (f"touch {self.path}",))


MALFORMED = ("[" * 200_000, "", '[[], {"1": 2}, {"callbacks": [1], "chord": 5}]', b"\xff\xfe\x00garbage")
#: Wake-up messages that name no job, or name one in vain.
NONSENSE = (
    '[[], {"job_id": "x"}, null]', f'[[], {{"job_id": {2**80}}}, null]', '[["x", "y"], {}, null]',
    '[[], {"nonsense": {}}, null]', "[[], {}, null]",
)  # fmt: skip


def test_no_queue_loads_a_pickle_or_stops_at_a_malformed_message(
    producer: Producer, ask: Ask, tmp_path: Path
) -> None:
    """tests/acceptance/test_hostile_messages.py has every kind of malformed message; here each queue gets some."""
    mark = tmp_path / "ran"
    bomb = pickle.dumps(((Bomb(mark),), {}, {}))
    pickled = {"content_type": "application/x-python-serialize"}
    for queue in QUEUES:
        for task in ("tasks.video.status", wake_up_task("media")):
            publish(producer, task, bomb, queue, content_encoding="binary", **pickled)
            publish(producer, task, base64.b64encode(bomb), queue, content_encoding="base64", **pickled)
            for body in MALFORMED:
                publish(producer, task, body, queue)
        if queue in JOB_QUEUES:
            for body in NONSENSE:
                publish(producer, wake_up_task(queue), body, queue)
    assert_answers(ask)
    assert not mark.exists()


def test_after_all_that_a_good_video_is_indexed(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "good.mp4"
    make_clip(path, [Shot(seed=6, frames=40), Shot(seed=7, frames=40)], sound=Sound())
    status = fleet.index(path, "good")
    assert status.scenes == 2
    assert {stage.attempts for stage in status.stages if stage.state == "done"} <= {0, 1}


def test_a_second_node_of_one_name_leaves_the_first_alone(fleet: Fleet) -> None:
    before = pids(fleet)
    node = fleet.nodes["housekeeping"]
    environment = fleet.process_environment(SCENEFLEET_FAMILY="housekeeping")
    command = [sys.executable, "-m", "celery", "-A", fleet.app, "worker", "-n", "housekeeping@%h", "-c", "1"]
    second = run_to_end(command, environment, timeout_s=60)
    assert second.returncode == ExitStatus.CONFIG
    assert f"runs on this machine already (pid {node.process.pid})" in second.stdout + second.stderr
    assert pids(fleet) == before
