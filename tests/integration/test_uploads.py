"""Uploads over HTTP on two APIs that share a storage and a Redis; the fleet is played by the test."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from shared import routing
from shared.errors import Conflict, Outage
from shared.settings import Settings
from shared.storage import Storage
from tests.support.replicas import PlayedFleet, Replica, replica
from tests.support.s3_servers import variables_of, with_own_buckets
from tests.support.services import RedisServer

MiB = 2**20
TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {**TUS, "Content-Type": "application/offset+octet-stream"}


class Two:
    """Two replicas, and what a client of tus does."""

    def __init__(self, replicas: tuple[Replica, Replica], fleet: PlayedFleet, storage: Storage) -> None:
        self.replicas, self.fleet, self.storage = replicas, fleet, storage
        self.client = httpx.Client(timeout=40, headers={"X-User": "u1"})

    def url(self, number: int, path: str = "/api/v1/uploads") -> str:
        return self.replicas[number % 2].url + path

    def begin(self, size: int, fields: dict[str, str] | None = None, **headers: str) -> httpx.Response:
        return self.client.post(
            self.url(0),
            headers={**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata(fields or {}), **headers},
        )

    def send(self, path: str, offset: int, data: bytes, number: int = 0, **headers: str) -> httpx.Response:
        return self.client.patch(
            self.url(number, path), content=data, headers={**OCTETS, "Upload-Offset": str(offset), **headers}
        )

    def offset(self, path: str, number: int = 0, **headers: str) -> httpx.Response:
        return self.client.head(self.url(number, path), headers={**TUS, **headers})

    def stored(self, bucket: Any = "tmp") -> list[str]:
        return sorted(info.key for info in self.storage.list(bucket, ""))


def metadata(fields: dict[str, str]) -> str:
    return ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())


@pytest.fixture(params=["local", "moto"])
def two(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Two]:
    values: dict[str, Any] = {"redis_url": redis_server.url, "storage_root": tmp_path / "storage"}
    values |= {"max_video_bytes": 64 * MiB}
    if request.param == "moto":
        values |= variables_of(with_own_buckets(request.getfixturevalue("moto")))
    settings, fleet = Settings(**values), PlayedFleet()
    with ExitStack() as opened:
        first, second = (opened.enter_context(replica(monkeypatch, settings, fleet)) for _ in range(2))
        first.app.state.storage.ensure_buckets()
        yield Two((first, second), fleet, first.app.state.storage)


def test_two_replicas_take_turns_at_one_upload(two: Two) -> None:
    data = os.urandom(21 * MiB + 11)
    begun = two.begin(len(data), {"filename": "a film.mp4", "video_id": "v1", "priority": "7"})
    assert begun.status_code == 201 and begun.headers["Scenefleet-Video-Id"] == "v1"
    path = begun.headers["Location"]
    done = 0
    for number, size in enumerate((100, 9 * MiB, 0, 5 * MiB, len(data))):
        answer = two.send(path, done, data[done : done + size], number)
        assert answer.status_code == 204, answer.text
        done = int(answer.headers["Upload-Offset"])
        assert two.offset(path, number + 1).headers["Upload-Offset"] == str(done)
    key = "uploads/u1/v1/a film.mp4"
    assert two.storage.get_bytes("uploads", key) == data
    request = {"user_id": "u1", "video_id": "v1", "storage_key": key, "priority": 7}
    assert two.fleet.asked == [(routing.VIDEO_PROCESS, request)]
    # The answer to the last request may have been lost.
    for number in range(2):
        assert two.offset(path, number).headers["Upload-Offset"] == str(len(data))
        assert two.send(path, len(data), b"", number).status_code == 204
    assert len(two.fleet.asked) == 1
    assert two.stored() == [f"received/u1/{path.rpartition('/')[2]}.json"]


def test_a_broken_connection_keeps_what_came(two: Two) -> None:
    data = os.urandom(10 * MiB)
    path = two.begin(len(data)).headers["Location"]
    broken_patch(two, path, data[: 9 * MiB], close=True)
    deadline = time.monotonic() + 20
    while (done := int(two.offset(path, 1).headers["Upload-Offset"])) < 9 * MiB:
        assert time.monotonic() < deadline
    assert two.send(path, done, data[done:], 1).status_code == 204
    assert two.fleet.asked[0][0] == routing.VIDEO_PROCESS


def test_a_connection_that_went_silent_gives_way_to_its_successor(two: Two) -> None:
    data = os.urandom(3 * MiB)
    path = two.begin(len(data)).headers["Location"]
    silent = broken_patch(two, path, data[:MiB], close=False)
    found = two.offset(path, 1)
    done = int(found.headers["Upload-Offset"])
    assert found.status_code == 200 and 0 < done <= MiB
    assert two.send(path, done, data[done:], 1).status_code == 204
    assert b" 423 " in silent.recv(100)
    silent.close()


def broken_patch(two: Two, path: str, data: bytes, *, close: bool) -> socket.socket:
    """Send a part of a body to the first replica."""
    url = httpx.URL(two.url(0))
    connection = socket.create_connection((url.host, url.port or 0), timeout=30)
    lines = [
        f"PATCH {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "X-User: u1",
        "Upload-Offset: 0",
        f"Content-Length: {10**7}",
    ]
    if not close:
        lines[-1] = f"Content-Length: {3 * MiB}"
    head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in OCTETS.items()), "", ""])
    connection.sendall(head.encode() + data)
    time.sleep(0.3)  # the server may read it; nothing depends on how much of it
    if close:
        connection.close()
    return connection


def test_a_dead_holder_does_not_stop_others(two: Two, redis_server: RedisServer) -> None:
    import redis

    data = os.urandom(1000)
    path = two.begin(len(data)).headers["Location"]
    with redis.Redis.from_url(redis_server.url) as client:
        # What a killed process leaves.
        client.set(f"scenefleet:upload:{path.rpartition('/')[2]}", "dead", px=5000)
    assert two.send(path, 0, data).status_code == 204
    assert len(two.fleet.asked) == 1


def test_an_upload_survives_the_loss_of_redis(two: Two, redis_server: RedisServer) -> None:
    import redis

    data = os.urandom(9 * MiB + 5)
    path = two.begin(len(data)).headers["Location"]
    done = int(two.send(path, 0, data[: 8 * MiB + 3]).headers["Upload-Offset"])
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    done = int(two.send(path, done, data[done : done + 1], 1).headers["Upload-Offset"])
    assert done == 8 * MiB + 4
    assert two.send(path, done, data[done:]).status_code == 204
    assert two.storage.get_bytes("uploads", two.fleet.asked[0][1]["storage_key"]) == data


def test_a_fleet_that_is_down_gets_the_video_later_and_once(two: Two) -> None:
    def down(task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        raise Outage("no answer")

    accept, two.fleet.answer = two.fleet.answer, down
    path = two.begin(3, {"video_id": "v1"}).headers["Location"]
    answer = two.send(path, 0, b"abc")
    assert answer.status_code == 503 and answer.headers["Retry-After"]
    assert two.offset(path, 1).status_code == 503
    two.fleet.answer = accept
    for _ in range(2):
        assert two.offset(path, 1).headers["Upload-Offset"] == "3"
    assert [task for task, _ in two.fleet.asked] == [
        routing.VIDEO_PROCESS
    ] * 3  # two of them without an answer
    assert two.stored("uploads") == ["uploads/u1/v1/video"]


def test_the_sweep_finishes_what_no_client_came_back_for(two: Two) -> None:
    def down(task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        raise Outage("no answer")

    accept, two.fleet.answer = two.fleet.answer, down
    finished = two.begin(3, {"video_id": "v1"}).headers["Location"]
    assert two.send(finished, 0, b"abc").status_code == 503
    two.fleet.answer = accept
    open_ = two.begin(3, {"video_id": "v2"}).headers["Location"]
    two.send(open_, 0, b"ab")
    sweep(two, 0)
    assert two.offset(finished).headers["Upload-Offset"] == "3"
    if two.storage.describe().startswith("folder"):  # moto says that each upload was begun in 2010
        assert two.offset(open_).headers["Upload-Offset"] == "2"
    assert [kwargs["video_id"] for _, kwargs in two.fleet.asked] == ["v1", "v1"]


def test_the_sweep_removes_what_has_expired(two: Two) -> None:
    path = two.begin(3, {"video_id": "v1"}).headers["Location"]
    two.send(path, 0, b"ab")
    answer = two.client.put(two.url(0, "/api/v1/pictures"), content=b"\x89PNG\r\n\x1a\n....")
    assert answer.status_code == 201
    picture = answer.json()["storage_key"]
    assert picture in two.stored("uploads")
    for one in two.replicas:
        settings = one.app.state.settings
        one.app.state.uploads._settings = settings.model_copy(
            update={"upload_ttl_s": -4000.0, "query_picture_ttl_s": -10.0}
        )
    old = two.begin(3, {"video_id": "v2"}).headers["Location"]
    assert two.offset(old).status_code == 404
    sweep(two, 1)
    assert not any("v2" in key or picture in key for key in two.stored("uploads"))
    assert not any(old.rpartition("/")[2] in key for key in two.stored())
    # Begun with a time that has not passed, but the bytes are gone.
    assert two.offset(path).status_code == 404


def sweep(two: Two, number: int) -> None:
    import asyncio

    from redis.asyncio import Redis

    service = two.replicas[number].app.state.uploads

    async def run() -> None:
        kept, url = service._redis, two.replicas[number].app.state.settings.redis_url
        async with Redis.from_url(url) as service._redis:
            await service.sweep()
        service._redis = kept

    thread = Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join(30)


def test_a_video_that_the_fleet_refuses_leaves_nothing(two: Two) -> None:
    def refuse(task: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        raise Conflict("video v1 was deleted")

    two.fleet.answer = refuse
    path = two.begin(3, {"video_id": "v1"}).headers["Location"]
    answer = two.send(path, 0, b"abc")
    assert answer.status_code == 422 and "video v1 was deleted" in answer.json()["detail"]
    assert two.offset(path).status_code == 410
    assert two.stored("uploads") == []
    assert len(two.fleet.asked) == 1


def test_a_video_has_one_file(two: Two) -> None:
    first, second = (two.begin(3, {"video_id": "v1", "filename": "a"}).headers["Location"] for _ in range(2))
    assert two.send(first, 0, b"abc").status_code == 204
    assert two.begin(3, {"video_id": "v1", "filename": "b"}).status_code == 409
    assert two.send(second, 0, b"xyz").status_code == 422
    assert two.storage.get_bytes("uploads", "uploads/u1/v1/a") == b"abc"


def test_a_checksum_decides_what_counts(two: Two) -> None:
    path = two.begin(6).headers["Location"]

    def checksum(algorithm: str, data: bytes) -> dict[str, str]:
        digest = base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
        return {"Upload-Checksum": f"{algorithm} {digest}"}

    wrong = two.send(path, 0, b"abc", **checksum("sha1", b"abd"))
    assert wrong.status_code == 460 and two.offset(path).headers["Upload-Offset"] == "0"
    assert two.send(path, 0, b"abc", **checksum("sha1", b"abc")).status_code == 204
    assert two.send(path, 3, b"def", **checksum("sha256", b"def")).status_code == 204
    for header in ("md5 x", "sha1", "sha1 !!!", "sha1 " + "A" * 28, "crc32 AAAA"):
        assert two.send(path, 6, b"", **{"Upload-Checksum": header}).status_code == 400


def test_others_see_nothing_of_an_upload(two: Two) -> None:
    path = two.begin(3, {"video_id": "v1"}).headers["Location"]
    other = {"X-User": "u2"}
    assert two.offset(path, **other).status_code == 404
    assert two.send(path, 0, b"abc", **other).status_code == 404
    assert two.client.delete(two.url(0, path), headers={**TUS, **other}).status_code == 404
    assert two.offset(path).headers["Upload-Offset"] == "0"
    for name in ("0" * 32, "..", "x", "%2e%2e", "u1%2f" + path.rpartition("/")[2], "A" * 32):
        assert two.offset(f"/api/v1/uploads/{name}").status_code in (404, 405, 422)


def test_an_upload_can_be_ended(two: Two) -> None:
    path = two.begin(9 * MiB).headers["Location"]
    two.send(path, 0, bytes(8 * MiB + 1))
    ended = two.client.delete(two.url(1, path), headers=TUS)
    assert ended.status_code == 204 and ended.headers["Tus-Resumable"] == "1.0.0"
    assert two.offset(path).status_code == two.send(path, 0, b"").status_code == 404
    assert two.stored() == two.stored("uploads") == []


def test_what_the_server_offers(two: Two) -> None:
    answer = two.client.options(two.url(0))
    assert answer.status_code == 204 and answer.headers["Tus-Max-Size"] == str(64 * MiB)
    assert answer.headers["Tus-Extension"] == "creation,creation-with-upload,expiration,checksum,termination"
    begun = two.client.post(two.url(0), headers={**OCTETS, "Upload-Length": "5"}, content=b"ab")
    assert begun.status_code == 201 and begun.headers["Upload-Offset"] == "2"
    assert begun.headers["Upload-Expires"].endswith("GMT")


def test_hostile_requests_are_refused_by_a_problem(two: Two) -> None:
    path = two.begin(10, {"filename": "../../<b>\u202e.mp4", "name": "ignored"}).headers["Location"]
    assert two.send(path, 0, b"ab").status_code == 204
    for offset, status in (("1", 409), ("3", 409), ("11", 413), ("-1", 400), ("2.0", 400), ("9" * 30, 400)):
        answer = two.client.patch(two.url(0, path), content=b"x", headers={**OCTETS, "Upload-Offset": offset})
        assert (offset, answer.status_code) == (offset, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["Tus-Resumable"] == "1.0.0"
    assert two.send(path, 2, b"x" * 9).status_code == 413
    assert (
        two.client.patch(
            two.url(0, path), content=iter([b"x" * 9]), headers={**OCTETS, "Upload-Offset": "2"}
        ).status_code
        == 413
    )  # in chunks, without a length
    assert two.send(path, 2, b"x", **{"Content-Type": "text/plain"}).status_code == 415
    assert two.send(path, 2, b"x", **{"Tus-Resumable": "0.2.2"}).status_code == 412
    assert two.offset(path).headers["Upload-Offset"] == "2"
    for length, status in (
        ("", 422),
        ("-5", 400),
        ("x", 400),
        ("0", 422),
        (str(65 * MiB), 413),
        ("9" * 40, 400),
    ):
        headers = {**TUS, "Upload-Length": length} if length else TUS
        assert two.client.post(two.url(0), headers=headers).status_code == status
    for header in (
        *("filename", "filename !", "filename YQ==,filename YQ==", "a\u00e9 YQ==", "video_id " + "A" * 5000),
        *(metadata({"video_id": "../x"}), metadata({"video_id": "a" * 65}), metadata({"priority": "10"})),
        *(metadata({"priority": "-1"}), metadata({"priority": "high"}), "filename /w==", "x\x7f YQ=="),
    ):
        answer = two.client.post(
            two.url(0), headers={**TUS, "Upload-Length": "5", "Upload-Metadata": header.encode()}
        )
        assert answer.status_code == (201 if header == "filename" else 422), header
