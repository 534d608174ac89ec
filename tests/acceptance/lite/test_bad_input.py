"""Bad files and bad messages through a running fleet: one clear error each, one attempt, and nobody dies of it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import struct
import uuid
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import TimeoutError as NoAnswer
from celery.result import AsyncResult
from kombu import Connection, Producer

from shared.errors import NotFound
from shared.routing import NODES, wake_up_task
from tests.integration.test_media_hostile import Watch
from tests.support.clips import Encoding, Shot, Sound, make_clip
from tests.support.fleet import FAMILIES, Fleet, eventually
from tests.unit.media import test_probe as files

USER = "u1"
#: What the nodes of the fleet listen to.
QUEUES = tuple(queue for family in FAMILIES for queue in NODES[family].queues)


def pids(fleet: Fleet) -> dict[str, set[int]]:
    """Every process of every node."""
    return {
        name: {node.process.pid, *(child.pid for child in node.children)}
        for name, node in fleet.nodes.items()
    }


@pytest.fixture(autouse=True)
def nobody_died(fleet: Fleet) -> Iterator[None]:
    """The same processes before and after, and no message that comes again and again."""
    before = pids(fleet)
    yield
    assert pids(fleet) == before
    with redis.Redis.from_url(fleet.redis_url) as client:
        eventually(
            lambda: not client.hlen("unacked") and not any(client.llen(queue) for queue in QUEUES),
            within_s=20,
            what="every message was taken and acknowledged",
        )
    assert pids(fleet) == before


# --- files


def over_the_pixel_limit(path: Path) -> None:
    make_clip(path, [Shot(seed=3, frames=3)], Encoding(size=(8208, 16)))


def absurd_frame_rate(path: Path) -> None:
    times_s = tuple(i / 10_000 for i in range(50))
    make_clip(path, [Shot(seed=3, frames=50)], Encoding(fps=Fraction(10_000), times_s=times_s))


def absurd_duration(path: Path) -> None:
    """A Matroska header that says 50 days; the content is 1 s."""
    make_clip(path.with_suffix(".mkv"), [Shot(seed=3, frames=25)])
    data = bytearray(path.with_suffix(".mkv").read_bytes())
    at = data.index(b"\x44\x89\x88")  # the Duration element: 8 bytes of float, in milliseconds
    data[at + 3 : at + 11] = struct.pack(">d", 50 * 86_400_000.0)
    path.write_bytes(data)


def absurd_sample_times(path: Path) -> None:
    """An MP4 whose table of sample times makes every picture last a day."""
    make_clip(path, [Shot(seed=3, frames=25)])
    data = bytearray(path.read_bytes())
    timescale = int.from_bytes(data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20], "big")
    at = data.index(b"stts")
    data[at + 16 : at + 20] = (timescale * 86_400).to_bytes(4, "big")
    # Without the edit list, which would cut it to the true second.
    path.write_bytes(data.replace(b"edts", b"free"))


def truncated(path: Path) -> None:
    make_clip(path, [Shot(seed=3, frames=200, move="pan")])
    whole = files.faststart(path)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def without_end(path: Path) -> None:
    make_clip(path, [Shot(seed=3, frames=50)])
    path.write_bytes(path.read_bytes()[:-2000])


BAD_FILES: list[tuple[Callable[[Path], None], str, str]] = [
    (files.empty, "BadMedia", r"The file is empty \(0 bytes\); upload it again"),
    (files.text, "BadMedia", r"\d+ bytes\) is damaged or in no video format we accept .*convert it to"),
    (files.random_bytes, "BadMedia", r"damaged or in no video format we accept .*convert it to"),
    (
        truncated,
        "BadMedia",
        r"truncated: the header says 8\.\d s, content ends at [1-7]\.\d s; upload it again",
    ),
    (without_end, "BadMedia", r"without its index .*truncated .*upload it again"),
    (files.audio_only, "BadMedia", r"no video stream; upload a file with moving pictures"),
    (files.zero_length, "BadMedia", r"No picture .*export it again|no video format we accept .*convert"),
    (files.one_pixel, "BadMedia", r"1x1 pixels, the smallest usable side is 16; upload"),
    (over_the_pixel_limit, "LimitExceeded", r"8208x16 pixels, the limit is 8192 a side; scale it down"),
    (absurd_duration, "LimitExceeded", r"duration of 4320000 s, the limit is 43200 s; cut it"),
    (absurd_sample_times, "LimitExceeded", r"shown at 86400 s, the limit is 43200 s; cut the file up"),
    (absurd_frame_rate, "LimitExceeded", r"10000 frames a second, the limit is 240; re-encode it"),
    (files.playlist, "BadMedia", r"an HLS playlist, which only names other files; upload the video itself"),
    (files.concat_list, "BadMedia", r"a concat list, which only names other files; upload the video itself"),
    (files.dash_manifest, "BadMedia", r"a DASH manifest, which only names other files; upload the video"),
]


def assert_refused(fleet: Fleet, video_id: str, error_class: str, says: str) -> None:
    """The video failed for one clear reason, tried once."""
    (status,) = fleet.wait_ended([video_id], within_s=60).values()
    assert (status.state, status.error_class) == ("failed", error_class), status
    assert status.error is not None and re.search(says, status.error), status.error
    assert "\n" not in status.error and "Traceback" not in status.error and len(status.error) < 300
    by_name = {stage.stage: stage for stage in status.stages}
    assert (by_name["split"].state, by_name["split"].attempts) == ("failed", 1)
    assert {stage.state for name, stage in by_name.items() if name != "split"} == {"skipped"}
    assert status.published_run is None
    assert fleet.client.scenes(video_id, USER).scenes == ()


@pytest.mark.parametrize(
    ("make", "error_class", "says"), BAD_FILES, ids=[make.__name__ for make, _, _ in BAD_FILES]
)
def test_a_bad_file_gives_one_error_and_one_attempt(
    fleet: Fleet, tmp_path: Path, make: Callable[[Path], None], error_class: str, says: str
) -> None:
    path = tmp_path / "film.mp4"
    make(path)
    video_id = make.__name__.replace("_", "-")
    fleet.process(path, video_id)
    assert_refused(fleet, video_id, error_class, says)
    assert not list((fleet.home / "work").rglob("*.jpg"))


def as_missing(place: Path, good: Path) -> None:
    pass


def as_symlink(place: Path, good: Path) -> None:
    place.symlink_to(good)


def as_symlinked_folder(place: Path, good: Path) -> None:
    place.parent.rmdir()
    place.parent.symlink_to(good.parent)


def as_folder(place: Path, good: Path) -> None:
    place.mkdir()


def as_pipe(place: Path, good: Path) -> None:
    os.mkfifo(place)


@pytest.mark.parametrize("plant", [as_missing, as_symlink, as_symlinked_folder, as_folder, as_pipe])
def test_a_source_that_is_no_object_is_refused(
    fleet: Fleet, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    good = tmp_path / "outside" / "film.mp4"
    good.parent.mkdir()
    make_clip(good, [Shot(seed=5, frames=10)])
    watch = Watch(good)
    video_id = plant.__name__.replace("_", "-")
    place = fleet.home / "storage" / "uploads" / "uploads" / USER / video_id / "film.mp4"
    place.parent.mkdir(parents=True)
    plant(place, good)
    try:
        fleet.client.process(video_id, USER, f"uploads/{USER}/{video_id}/film.mp4")
        (status,) = fleet.wait_ended([video_id], within_s=60).values()
        assert status.state == "failed" and status.error_class in ("ObjectMissing", "InvalidKey"), status
        assert status.error is not None and ("film.mp4" in status.error or video_id in status.error)
        assert next(stage.attempts for stage in status.stages if stage.stage == "split") == 1
        assert not watch.opened()
    finally:
        watch.close()


# --- storage keys


@pytest.mark.parametrize(
    ("number", "key"),
    list(
        enumerate(
            [
                "uploads/u1/{id}/../../u2/secret/film.mp4",
                "uploads/u1/{id}/./film.mp4",
                "../etc/passwd",
                "/etc/passwd",
                "//etc/passwd",
                "uploads/u2/{id}/film.mp4",
                "uploads/u1/another/film.mp4",
                "uploads/u1/{id}",
                "uploads/u1/{id}/",
                "uploads/u1/{id}x/film.mp4",
                "sidecars/u1/{id}/x.json",
                "uploads\\u1\\{id}\\film.mp4",
                "uploads/u1/{id}/a\x01b.mp4",
                "uploads/u1/{id}/a\nb.mp4",
                "uploads/u1/{id}/\u202efilm.mp4",
                "uploads/u1/{id}/" + "a" * 300,
                "https://example.org/film.mp4",
                "file:///etc/passwd",
                "s3://bucket/uploads/u1/{id}/film.mp4",
                "",
                " ",
            ]
        )
    ),
)
def test_a_bad_storage_key_is_refused_and_nothing_stored(fleet: Fleet, number: int, key: str) -> None:
    video_id = f"key-{number}"
    key = key.replace("{id}", video_id)
    kind, message = ask(fleet, "tasks.video.process", video_id=video_id, user_id=USER, storage_key=key)
    assert kind == "InvalidKey", message
    assert "storage key" in message and (":" in message), message
    with pytest.raises(NotFound):
        fleet.client.status(video_id, USER)
    assert not fleet.rows("SELECT 1 FROM videos WHERE external_id = %s", video_id)


def test_a_video_refused_for_its_key_is_accepted_with_a_right_one(fleet: Fleet, tmp_path: Path) -> None:
    kind, _ = ask(fleet, "tasks.video.process", video_id="mended", user_id=USER, storage_key="/film.mp4")
    assert kind == "InvalidKey"
    path = tmp_path / "film.mp4"
    make_clip(path, [Shot(seed=5, frames=10)])
    fleet.process(path, "mended")
    (status,) = fleet.wait_ended(["mended"], within_s=60).values()
    assert (status.state, status.error_class, status.error) == ("indexed", None, None)


# --- payloads


@cache
def stranger(redis_url: str) -> Celery:
    """A Celery application with the defaults of anybody's API."""
    return Celery("api", broker=redis_url, backend=redis_url, set_as_current=False)


def ask(
    fleet: Fleet, task: str, args: Any = None, /, timeout_s: float = 30, **kwargs: Any
) -> tuple[str, str]:
    """Send a request as anybody's API would; ("ok", answer) or (error class, message)."""
    api = stranger(fleet.redis_url)
    queue = "text.online" if task.startswith("tasks.text.") else "search"
    sent = api.send_task(task, args=args, kwargs=kwargs, queue=queue)
    return answer_of(sent, f"{task} {kwargs}", timeout_s)


def answer_of(sent: AsyncResult, what: str, timeout_s: float = 30) -> tuple[str, str]:
    try:
        return "ok", json.dumps(sent.get(timeout=timeout_s))
    except NoAnswer:
        raise AssertionError(f"no answer to {what[:200]}") from None
    except Exception as error:  # noqa: BLE001 - what came back is the answer
        return type(error).__name__, str(error)
    finally:
        # Its end would unsubscribe, after Redis has gone.
        sent.backend = None


def video(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "video_id": "never",
        "user_id": USER,
        "storage_key": f"uploads/{USER}/never/a.mp4",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


BAD_IDS: list[Any] = [5, None, [], {"$ne": 1}, True, "", "a" * 65, "a/b", "..", "a\n", "é", "a b", "a\x00"]
BAD_PAYLOADS: list[tuple[str, dict[str, Any], str]] = [
    *[("tasks.video.process", video(video_id=value), r"^video_id=") for value in BAD_IDS],
    *[("tasks.video.status", {"video_id": "v", "user_id": value}, r"^user_id=") for value in BAD_IDS],
    ("tasks.video.process", video(video_id=...), r"^video_id is missing"),
    ("tasks.video.process", {}, r"^video_id is missing"),
    ("tasks.video.process", video(storage_key=...), r"^storage_key is missing"),
    ("tasks.video.process", video(storage_key=7), r"^storage_key=7 "),
    ("tasks.video.process", video(storage_key="a" * 600), r"^storage_key='aaa.* at most 512"),
    ("tasks.video.process", video(storage_key="a" * 5000), r"5\d\d\d bytes, more than 4096: send storage keys"),
    ("tasks.video.process", video(storage_key="a\x00b"), r"^storage_key=.*NUL"),
    *[
        ("tasks.video.process", video(priority=value), r"^priority=")
        for value in ("high", "5", 1.5, True, -1, 10, 2**63, 10**300, [1], None)
    ],
    ("tasks.video.process", video(version=2), r"^version=2 "),
    ("tasks.video.process", video(colour="red"), r"^colour='red' "),
    ("tasks.video.process", video(notes=["x" * 3000] * 3), r"bytes, more than 4096"),
    ("tasks.video.rerun", video(storage_key=..., stages="text"), r"^stages='text' "),
    ("tasks.video.rerun", video(storage_key=..., stages=["x"] * 50), r"^stages="),
    ("tasks.video.rerun", video(storage_key=..., stages=[1]), r"^stages\.0=1 "),
    ("tasks.video.rerun", video(storage_key=..., stages=["no"]), r"^stages='no' is not a stage: name some of"),
    ("tasks.video.scenes", video(storage_key=..., limit=0), r"^limit=0 "),
    ("tasks.video.scenes", video(storage_key=..., limit=10**9), r"^limit=1000000000 "),
    ("tasks.video.scenes", video(storage_key=..., after_idx=-2), r"^after_idx=-2 "),
    ("tasks.video.scenes", video(storage_key=..., after_idx=10**30), r"^after_idx=1000000"),
    ("tasks.search.scenes", {"user_id": USER}, r"^query is missing"),
    ("tasks.search.scenes", {"user_id": USER, "query": ""}, r"^query='' "),
    ("tasks.search.scenes", {"user_id": USER, "query": 3}, r"^query=3 "),
    ("tasks.search.scenes", {"user_id": USER, "query": "x" * 1001}, r"^query='xx.* at most 1000"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x" * 10_000}, r"bytes, more than 8192"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "mode": "magic"}, r"^mode='magic' "),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "limit": 51}, r"^limit=51 is more than 50"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "limit": 10**40}, r"^limit=1000"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "self": 1}, r"^self=1 "),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "limit": 0}, r"^limit=0 "),
    ("tasks.search.scenes", {"user_id": USER, "query": "x\x00"}, r"^query='x\\x00' .*NUL"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "weights": {"text": "9"}}, r"^weights\.text='9' "),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "weights": {"text": 10**400}}, r"^weights\.text=1000"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "cursor": 5}, r"^cursor=5 "),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "cursor": "'; DROP"}, r"^cursor=.* is none of ours"),
    ("tasks.search.scenes", {"user_id": USER, "query": "x", "persons": [None]}, r"^persons\.0=None "),
    *[("tasks.people.get", {"user_id": USER, "person_id": value}, r"^person_id=") for value in BAD_IDS],
    *[
        ("tasks.people.create", {"user_id": USER, "name": value}, r"^name=")
        for value in ("", " ", "a\x00", "a\u202eb", "a\tb", "x" * 201, 5, None, ["a"])
    ],
    ("tasks.people.list", {"user_id": USER, "limit": 10**9}, r"^limit=1000000000 "),
    ("tasks.people.list", {"user_id": USER, "kind": "all"}, r"^kind='all' "),
    ("tasks.people.faces", {"user_id": USER, "person_id": "p", "after": "' OR 1=1"}, r"^after="),
    ("tasks.people.judge", {"user_id": USER, "person_id": "p", "track_ids": [], "is_person": True}, r"^track_ids="),
    ("tasks.people.judge", {"user_id": USER, "person_id": "p", "track_ids": ["t"], "is_person": 1}, r"^is_person=1 "),
    ("tasks.people.split", {"user_id": USER, "person_id": "p", "track_ids": ["t"] * 65}, r"^track_ids="),
    ("tasks.people.undo", {"user_id": USER, "event_id": -1}, r"^event_id=-1 "),
    ("tasks.people.undo", {"user_id": USER, "event_id": 2**64}, r"^event_id=18446744073709551616 "),
    ("tasks.people.events", {"user_id": USER, "before": 0}, r"^before=0 "),
    ("tasks.people.add_photo", {"user_id": USER, "person_id": "p", "extension": "../x"}, r"^extension='\.\./x' "),
    ("tasks.search.finish", {"search": "../x"}, r"^search='\.\./x' "),
    ("tasks.search.finish", {"search": "x", "request": {}}, r"^request=\{\} "),
    ("tasks.text.embed", {"texts": "one"}, r"^texts='one' "),
    ("tasks.text.embed", {"texts": ["x"] * 65}, r"^texts="),
    ("tasks.text.embed", {"texts": [1]}, r"^texts\.0=1 "),
    ("tasks.text.embed", {"texts": [None]}, r"^texts\.0=None "),
]  # fmt: skip


@pytest.mark.parametrize(("task", "payload", "says"), BAD_PAYLOADS)
def test_a_bad_payload_is_refused_by_field_and_value(
    fleet: Fleet, task: str, payload: dict[str, Any], says: str
) -> None:
    kind, message = ask(fleet, task, None, **payload)
    assert kind == "InvalidRequest", (kind, message)
    assert re.search(says, message), message
    assert "\n" not in message and len(message) < 300
    assert not fleet.rows("SELECT 1 FROM videos WHERE external_id = 'never'")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_know_are_refused(fleet: Fleet, value: str) -> None:
    kind, message = send_raw(
        fleet, "tasks.video.process", f'[[], {json.dumps(video())[:-1]}, "priority": {value}}}, null]'
    )
    assert kind == "InvalidRequest" and "priority=" in message, (kind, message)


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("tasks.search.scenes", {"query": "?"}),
        ("tasks.people.create", {"name": "?"}),
        ("tasks.people.list", {"?": 1}),
    ],
)
def test_broken_unicode_is_refused(fleet: Fleet, task: str, fields: dict[str, Any]) -> None:
    """Half a surrogate pair: valid JSON, and no text."""
    payload = json.dumps({"user_id": USER, **fields}).replace("?", "\\ud83d")
    kind, message = send_raw(fleet, task, f"[[], {payload}, null]")
    assert kind == "InvalidRequest" and "not valid Unicode: send UTF-8" in message, (kind, message)


def test_an_unknown_video_is_not_found(fleet: Fleet) -> None:
    for request in ("status", "scenes", "cancel", "retry", "rerun", "delete"):
        kind, message = ask(fleet, f"tasks.video.{request}", video_id="unheard-of", user_id=USER)
        assert (kind, message) == (
            "NotFound",
            "no video 'unheard-of': check the id, or send tasks.video.process first",
        )


def test_arguments_without_names_are_refused(fleet: Fleet) -> None:
    for task in ("tasks.video.process", "tasks.video.delete", "tasks.search.scenes", "tasks.text.embed"):
        kind, message = ask(fleet, task, ["v1", USER])
        assert kind == "InvalidRequest" and "by name" in message, (kind, message)


@pytest.mark.parametrize("said", ["y", [], {}, {"model": "m"}, {"vectors": [["a", 1]]}, None])
def test_a_forged_answer_of_a_queue_goes_nowhere(fleet: Fleet, said: Any) -> None:
    """Whoever does not know the id of a waiting search has nothing to answer, and leaves nothing behind."""
    api = stranger(fleet.redis_url)
    for search in ("0" * 32, "x"):
        for failed in (False, True):
            kwargs = {"search": search, "queue": "text", "failed": failed}
            api.send_task("tasks.search.gather", [said], kwargs, queue="search", ignore_result=True)
    assert answers(fleet)
    with redis.Redis.from_url(fleet.redis_url) as client:
        assert client.keys("scenefleet:search:*") == []


# --- messages


def send_raw(
    fleet: Fleet,
    task: Any,
    body: str | bytes,
    *,
    queue: str = "search",
    content_type: str = "application/json",
    encoding: str = "utf-8",
    answered: bool = True,
) -> tuple[str, str]:
    """Publish a message whose body Celery would not write; the answer, if one is awaited."""
    task_id = str(uuid.uuid4())
    whole = {
        "lang": "py", "task": task, "id": task_id, "root_id": task_id, "parent_id": None, "group": None,
        "argsrepr": "()", "kwargsrepr": "{}", "origin": "test", "ignore_result": False,
    }  # fmt: skip
    with Connection(fleet.redis_url) as connection:
        Producer(connection).publish(
            body,
            routing_key=queue,
            exchange="",
            headers=whole,
            content_type=content_type,
            content_encoding=encoding,
            correlation_id=task_id,
            reply_to=str(uuid.uuid4()),
        )
    if not answered:
        return "", ""
    return answer_of(stranger(fleet.redis_url).AsyncResult(task_id), f"{task} {body[:80]!r}")


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (f"touch {self.path}",))


def test_a_pickled_message_is_never_loaded(fleet: Fleet, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    body = pickle.dumps(((Bomb(mark),), {}, {}))
    for queue in QUEUES:
        for task in ("tasks.video.status", wake_up_task("media")):
            for content, encoding in (
                (body, "binary"),
                (base64.b64encode(body), "base64"),
            ):
                send_raw(
                    fleet, task, content, queue=queue, content_type="application/x-python-serialize",
                    encoding=encoding, answered=False)  # fmt: skip
    assert answers(fleet)
    assert not mark.exists()


def answers(fleet: Fleet) -> bool:
    """The search node still answers, after all that was sent before."""
    return ask(fleet, "tasks.video.status", video_id="unheard-of", user_id=USER)[0] == "NotFound"


def test_an_unknown_task_is_answered(fleet: Fleet) -> None:
    kind, message = ask(fleet, "tasks.video.explode", video_id="v", user_id=USER)
    assert kind == "NotRegistered" and "tasks.video.explode" in message


DEEP = 200_000


@pytest.mark.parametrize(
    "body",
    [
        "[[], {" + '"video_id": ' + "[" * DEEP + "]" * DEEP + "}, null]",
        "[" * DEEP,
        "",
        "null",
        "{}",
        "[]",
        "[1]",
        '"tasks"',
        "[[], {}",
        "[{}, [], null]",
        '[[], "kwargs", null]',
        "[[], null, null]",
        '[[], {"1": 2}, {"callbacks": [1], "chord": 5}]',
        "\ud800".encode(errors="surrogatepass"),
        b"\xff\xfe\x00garbage",
        "[[], {" + '"video_id": ' + "9" * 10_000 + "}, null]",
    ],
    ids=lambda body: str(body[:24]),
)
def test_a_malformed_body_is_dropped(fleet: Fleet, body: str | bytes) -> None:
    for queue in QUEUES:
        for task in ("tasks.video.status", wake_up_task("media")):
            send_raw(fleet, task, body, queue=queue, answered=False)
    assert answers(fleet)


def test_an_oversized_message_is_refused(fleet: Fleet) -> None:
    kind, message = ask(fleet, "tasks.video.process", None, **video(storage_key="x" * 20_000_000))
    assert kind == "InvalidRequest" and "more than 4096: send storage keys, not data" in message
    kind, message = ask(fleet, "tasks.text.embed", None, texts=["x" * 2_000_000])
    assert kind == "InvalidRequest" and "bytes, more than 65536" in message


@pytest.mark.parametrize("queue", ["media", "asr", "text", "face", "ocr", "housekeeping"])
def test_wake_ups_with_nonsense_ring_for_nothing(fleet: Fleet, queue: str) -> None:
    bodies: Sequence[Any] = ([[], {"job_id": "x"}, None], [[], {"job_id": 2**80}, None], [["x", "y"], {}, None],
                             [[], {"nonsense": {}}, None], [[], {}, None])  # fmt: skip
    for body in bodies:
        send_raw(fleet, wake_up_task(queue), json.dumps(body), queue=queue, answered=False)
    assert answers(fleet)


def test_after_all_that_a_good_video_is_indexed(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "good.mp4"
    make_clip(path, [Shot(seed=6, frames=40), Shot(seed=7, frames=40)], sound=Sound())
    fleet.process(path, "good")
    (status,) = fleet.wait_ended(["good"], within_s=90).values()
    assert status.state == "indexed" and status.scenes == 2
    assert {stage.attempts for stage in status.stages if stage.state == "done"} <= {0, 1}
