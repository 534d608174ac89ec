"""Uploads over HTTP to real API processes that are killed meanwhile, by real clients of tus; then the videos are indexed."""

from __future__ import annotations

import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.support.api import Api
from tests.support.fleet import Fleet, eventually
from tests.support.tus_js import find_tus_js

MiB = 2**20
SIZE_BYTES = 40 * MiB
#: Offsets after which the API is killed.
KILLED_AT = tuple(step * 7 * MiB for step in range(1, 6))
USER = "local"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, spoken: Path) -> Path:
    """Seconds of the sample with so much after their end that it has 40 MB."""
    return enlarged(spoken, tmp_path_factory.mktemp("large") / "spoken.mp4")


def enlarged(source: Path, target: Path) -> Path:
    data = source.read_bytes()
    padding = SIZE_BYTES - len(data)
    target.write_bytes(data + struct.pack(">I4s", padding, b"free") + os.urandom(padding - 8))
    return target


@pytest.fixture(scope="module")
def second(fleet: Fleet) -> Iterator[Api]:
    """Another API process of the same fleet."""
    found = Api(fleet, "api-two")
    found.start()
    yield found
    found.stop()


class Killer:
    """Kills an API when an upload passes one of some offsets, a little later each time, and starts it again."""

    def __init__(self, api: Api) -> None:
        self._api, self._left, self._threads = api, list(KILLED_AT), list[threading.Thread]()
        self._one_at_a_time = threading.Lock()

    @property
    def kills(self) -> int:
        return len(self._threads)

    def passed(self, offset_bytes: int) -> None:
        """Note how far the upload is."""
        if self._left and offset_bytes >= self._left[0]:
            self._left.pop(0)
            self._threads.append(threading.Timer(0.01 * len(self._left), self._kill))
            self._threads[-1].start()

    def _kill(self) -> None:
        with self._one_at_a_time:
            self._api.kill()
            self._api.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)


def test_tuspy_resumes_while_the_api_is_killed(api: Api, fleet: Fleet, large: Path) -> None:
    killer = Killer(api)
    client = TusClient(f"{api.url}/api/v1/uploads")
    metadata = {"filename": "Sample & co.mp4", "video_id": "tuspy"}
    uploader = client.uploader(str(large), chunk_size=3 * MiB, metadata=metadata)
    uploader.set_url(uploader.create_url())
    uploader.offset = 0

    def advance() -> bool:
        nonlocal uploader
        try:
            # As the client's documentation has it: a known URL, and the offset of the server.
            uploader = client.uploader(str(large), chunk_size=3 * MiB, url=uploader.url)
            while uploader.offset < SIZE_BYTES:
                killer.passed(uploader.offset)
                uploader.upload_chunk()
        except (requests.RequestException, TusCommunicationError):
            return False
        return True

    eventually(advance, within_s=120, what="the upload is complete")
    killer.join()
    assert killer.kills == 5
    assert fleet.storage.get_bytes("uploads", f"uploads/{USER}/tuspy/Sample & co.mp4") == large.read_bytes()
    fleet.wait_for("tuspy", user_id=USER, within_s=200)
    video = httpx.get(f"{api.url}/api/v1/videos/tuspy").json()
    assert video["scenes"] > 1 and video["run"] == 1
    plays_by_range(api, "tuspy", large.read_bytes())


def plays_by_range(api: Api, video_id: str, data: bytes) -> None:
    """As a browser does: the beginning, then somewhere in the middle, then the end."""
    url = f"{api.url}/api/v1/videos/{video_id}/media?download=1"
    for asked, expected in (("0-", data), ("7000000-7000099", data[7000000:7000100]), ("-5", data[-5:])):
        answer = httpx.get(url, headers={"Range": f"bytes={asked}"}, timeout=60)
        assert answer.status_code == 206 and answer.content == expected
    played = httpx.get(url.removesuffix("?download=1"), headers={"Range": "bytes=0-99"})
    assert played.status_code == 206 and played.headers["content-type"] == "video/mp4"
    assert played.content[4:8] == b"ftyp"


def test_tus_js_client_resumes_while_the_api_is_killed(
    api: Api, fleet: Fleet, silent: Path, tmp_path: Path
) -> None:
    node, module = find_tus_js(tmp_path)
    large = enlarged(silent, tmp_path / "silent.mp4")
    script = Path(__file__).parents[2] / "support" / "tus_upload.cjs"
    killer = Killer(api)
    with subprocess.Popen(
        [node, str(script), str(module), f"{api.url}/api/v1/uploads", str(large), "tusjs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(150, process.kill)
        watchdog.start()
        assert process.stdout is not None and process.stderr is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if line.strip().isdecimal():
                killer.passed(int(line))
        errors = process.stderr.read()
        watchdog.cancel()
    killer.join()
    assert lines[-1:] == ["done"], (lines[-3:], errors)
    assert killer.kills == 5
    assert fleet.storage.get_bytes("uploads", f"uploads/{USER}/tusjs/from a page.mp4") == large.read_bytes()
    fleet.wait_for("tusjs", user_id=USER)


def test_two_processes_take_turns_and_one_dies(api: Api, second: Api, fleet: Fleet, silent: Path) -> None:
    data = silent.read_bytes()
    step = len(data) // 6 + 1
    begun = tus(httpx.post, api, "/api/v1/uploads", {"Upload-Length": str(len(data))})
    path, video_id = begun.headers["location"], begun.headers["scenefleet-video-id"]
    done = 0
    for number in range(6):
        at = (api, second)[number % 2]
        if number == 4:
            api.kill()
            at = second
        headers = {"Upload-Offset": str(done), "Content-Type": "application/offset+octet-stream"}
        answer = tus(httpx.patch, at, path, headers, content=data[done : done + step])
        assert answer.status_code == 204, answer.text
        done = int(answer.headers["upload-offset"])
    api.restart()
    for one in (api, second):
        assert tus(httpx.head, one, path, {}).headers["upload-offset"] == str(len(data))
    assert fleet.wait_for(video_id, user_id=USER).run == 1


def tus(method: Any, api: Api, path: str, headers: dict[str, str], **more: Any) -> httpx.Response:
    answer: httpx.Response = method(
        api.url + path, headers={"Tus-Resumable": "1.0.0", **headers}, timeout=60, **more
    )
    return answer


def test_a_picture_is_searched_for_and_seen_by_its_user_only(api: Api, fleet: Fleet, silent: Path) -> None:
    fleet.index(silent, "pictured", USER)
    scene = httpx.get(f"{api.url}/api/v1/videos/pictured/scenes").json()["scenes"][0]
    picture = httpx.get(f"{api.url}/api/v1/objects/{scene['keyframe_keys'][0]}")
    assert picture.headers["content-type"] == "image/jpeg"
    stored = httpx.put(f"{api.url}/api/v1/pictures", content=picture.content)
    assert stored.status_code == 201
    assert httpx.get(f"{api.url}/api/v1/objects/{stored.json()['storage_key']}").content == picture.content
    sprites = httpx.get(f"{api.url}/api/v1/videos/pictured/sprites.vtt").text
    assert "sprites/0.jpg#xywh=" in sprites
    assert httpx.get(f"{api.url}/api/v1/videos/pictured/sprites/0.jpg").content[:3] == b"\xff\xd8\xff"
    fleet.index(silent, "others", "viewer2")
    (other,) = [key for key in fleet.objects() if key.startswith("keyframes/viewer2/")][:1]
    assert httpx.get(f"{api.url}/api/v1/objects/{other}").status_code == 404
    assert httpx.get(f"{api.url}/api/v1/videos/others/media").status_code == 404
