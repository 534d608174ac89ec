"""The HTTP API over the shared fleet: the whole story, who asks, the documentation's lines, and a fuzzer."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from api.asking import READER
from shared.contracts import SearchAnswer, VideoStatus
from tests.support.api import Api
from tests.support.fleet import ENDED, ROOT, Fleet, eventually, kept_environment

#: The user of the fixture `api`.
USER = "local"


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{api.url}/api/v1", timeout=60) as client:
        yield client


def ended(http: httpx.Client, video_id: str) -> VideoStatus:
    """The status of a video once it has ended."""

    def look() -> VideoStatus | None:
        status = VideoStatus.model_validate_json(http.get(f"/videos/{video_id}").content)
        return status if status.state in ENDED else None

    found = eventually(look, within_s=120, what=f"video {video_id} has ended")
    assert found is not None
    return found


def problem(answer: httpx.Response, status: int) -> str:
    """The code of a problem document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status and found["detail"] and found["title"]
    return str(found["code"])


def test_a_video_from_its_file_to_a_found_scene(http: httpx.Client, fleet: Fleet, spoken: Path) -> None:
    key = fleet.upload(spoken, "http1", USER)
    first = http.put("/videos/http1", json={"storage_key": key})
    again = http.put("/videos/http1", json={"storage_key": key})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() | {"accepted": False, "state": again.json()["state"]} == again.json()
    assert ended(http, "http1").state == "indexed"
    scenes = http.get("/videos/http1/scenes", params={"limit": 1}).json()
    assert scenes["next_after_idx"] == 0 and scenes["scenes"][0]["idx"] == 0
    sidecar = http.get("/videos/http1/scenes/0/sidecar").json()
    assert sidecar["scene_id"] == scenes["scenes"][0]["scene_id"]
    assert http.get("/videos/http1/subtitles.vtt").text.startswith("WEBVTT")
    words = " ".join(scene["transcript"] for scene in http.get("/videos/http1/scenes").json()["scenes"])
    word = max(words.split(), key=len)
    asked = {"q": word, "mode": "keyword", "video_ids": ["http1"], "weight_text": 1}
    by_address = SearchAnswer.model_validate_json(http.get("/search", params=asked).content)
    body = {"query": word, "mode": "keyword", "video_ids": ["http1"], "weights": {"text": 1}}
    by_body = SearchAnswer.model_validate_json(http.post("/search", json=body).content)
    assert by_address.hits and by_address == by_body
    assert http.post("/videos/http1/rerun", json={"stages": ["text"]}).status_code == 202
    assert ended(http, "http1").run == 2
    assert http.delete("/videos/http1").status_code == 202
    assert problem(http.get("/videos/http1"), 404) == "NotFound"


def test_what_others_have_is_not_found(http: httpx.Client, indexed: Fleet) -> None:
    """Video "sample" is another user's."""
    for path in ("", "/scenes", "/failures", "/subtitles.srt", "/scenes/0/sidecar"):
        assert problem(http.get(f"/videos/sample{path}"), 404) == "NotFound"
    for act in ("retry", "cancel", "rerun"):
        assert problem(http.post(f"/videos/sample/{act}"), 404) == "NotFound"
    assert problem(http.delete("/videos/sample"), 404) == "NotFound"
    assert http.get("/search", params={"q": "rocket", "video_ids": "sample"}).json()["hits"] == []
    theirs = http.put("/videos/mine", json={"storage_key": "uploads/viewer/sample/sample.mp4"})
    assert problem(theirs, 422) == "InvalidKey"
    assert indexed.client.status("sample", "viewer").state == "indexed"


def test_values_are_checked_strictly(http: httpx.Client) -> None:
    key = "uploads/local/strict/a.mp4"
    for body in (
        {"storage_key": key, "priority": "5"},
        {"storage_key": key, "priority": True},
        {"storage_key": key, "user_id": "viewer"},
        {"storage_key": key, "unknown": 1},
        {"storage_key": 5},
        {},
    ):
        assert problem(http.put("/videos/strict", json=body), 422) == "InvalidRequest"
    text = http.put("/videos/strict", content=b"{}", headers={"content-type": "text/plain"})
    assert problem(text, 415) == "UnsupportedMedia"
    assert problem(http.put("/videos/strict", content=b"{" + b" " * 300_000), 413) == "BodyTooLarge"
    assert problem(http.get("/videos", params={"limit": "many"}), 422) == "InvalidRequest"
    assert problem(http.get("/search", params={"qq": "x"}), 422) == "InvalidRequest"
    assert problem(http.get("/nothing"), 404) == "NotFound"
    wrong = http.patch("/videos")
    assert problem(wrong, 405) == "BadRequest" and wrong.headers["allow"] == "GET, POST"
    assert problem(http.get("/videos/strict"), 404) == "NotFound"


def test_a_request_with_the_same_key_is_done_once(http: httpx.Client, fleet: Fleet, silent: Path) -> None:
    key = fleet.upload(silent, "once", USER)
    body, named = {"storage_key": key}, {"Idempotency-Key": "k1"}
    first, again = (http.post("/videos", json=body, headers=named) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.json()["video_id"] == "once" and first.json()["accepted"] is True
    assert again.json() == first.json()
    assert problem(http.post("/videos", json={**body, "priority": 1}, headers=named), 422) == "InvalidRequest"
    ended(http, "once")
    runs = {
        http.post("/videos/once/rerun", headers={"Idempotency-Key": "k2"}).json()["run"] for _ in range(3)
    }
    assert runs == {2}
    refused = {"storage_key": "uploads/local/other/none"}
    for _ in range(2):
        # An error is not kept.
        answer = http.post("/videos", json={**refused, "video_id": "x"}, headers={"Idempotency-Key": "k3"})
        assert problem(answer, 422) == "InvalidKey"
    ended(http, "once")
    http.delete("/videos/once")


def test_what_a_foreign_page_sends_is_refused(api: Api) -> None:
    url = f"{api.url}/api/v1/videos"
    for headers in ({"Host": "films.example"}, {"Host": f"films.example:{api.port}"}):
        assert problem(httpx.get(url, headers=headers), 403) == "Forbidden"
        assert problem(httpx.get(f"{api.url}/", headers=headers), 403) == "Forbidden"
    for headers in (
        {"Origin": "https://films.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null"},
    ):
        assert problem(httpx.delete(f"{url}/v", headers=headers), 403) == "Forbidden"
    assert (
        httpx.get(url, headers={"Origin": "https://films.example"}).headers.get("access-control-allow-origin")
        is None
    )
    assert problem(httpx.delete(f"{url}/v", headers={"Origin": api.url}), 404) == "NotFound"


def test_every_answer_has_the_security_headers(api: Api) -> None:
    for path in ("/", "/api/v1/me", "/nothing.js", "/api/v1/videos/none"):
        headers = httpx.get(f"{api.url}{path}").headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    for path in ("/../pyproject.toml", "/%2e%2e/pyproject.toml", "/package.json", "/.gitignore", "/a%00.js"):
        assert httpx.get(f"{api.url}{path}").status_code == 404, path


@pytest.fixture(scope="module")
def keyed(fleet: Fleet) -> Iterator[Api]:
    """An API that asks for keys or a proxy's header, and takes few requests."""
    found = Api(
        fleet,
        "api-keyed",
        API_KEYS="true",
        API_USER_HEADER="X-Forwarded-User",
        API_TRUSTED_PROXIES="127.0.0.1",
        API_OPERATORS="boss@films.example",
        API_RATE_PER_MINUTE="300",
        API_SLOW_CLIENT_S="2",
        API_MAX_CONNECTIONS="300",
    )
    found.start()
    yield found
    found.stop()


def get(api: Api, path: str, key: str | None = None, **headers: str) -> httpx.Response:
    shown = {"Authorization": f"Bearer {key}"} if key else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(f"{api.url}/api/v1{path}", headers=shown | named, timeout=60)


def test_a_key_is_of_one_user_until_it_ends(keyed: Api, fleet: Fleet, indexed: Fleet) -> None:
    made = fleet.command("keys", "add", "--user", "viewer", "--name", "laptop")
    key = made.stdout.strip()
    assert made.returncode == 0 and key.startswith("sf_")
    assert get(keyed, "/videos/sample", key).json()["user_id"] == "viewer"
    me = get(keyed, "/me", key).json()
    assert (me["user_id"], me["operator"], me["how"]) == ("viewer", False, "key")
    other = json.loads(fleet.command("keys", "add", "--user", "stranger", "--operator", "--json").stdout)
    assert problem(get(keyed, "/videos/sample", other["key"]), 404) == "NotFound"
    assert get(keyed, "/me", other["key"]).json()["operator"] is True
    refused = httpx.post(
        f"{keyed.url}/api/v1/models/text/activate", headers={"Authorization": f"Bearer {key}"}, timeout=60
    )
    assert problem(refused, 403) == "Forbidden"
    # An address may send three wrong keys in a minute here: this test sends no more.
    for wrong in (None, key[:-1] + ("a" if key[-1] != "a" else "b")):
        answer = get(keyed, "/videos", wrong)
        assert problem(answer, 401) == "NotAuthenticated"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    with httpx.Client(base_url=f"{keyed.url}/api/v1", timeout=60) as browser:
        assert problem(browser.post("/session", json={"key": "sf_x"}), 401) == "NotAuthenticated"
        signed_in = browser.post("/session", json={"key": key})
        assert signed_in.status_code == 204
        assert {"HttpOnly", "SameSite=strict"} <= set(signed_in.headers["set-cookie"].split("; "))
        assert browser.get("/me").json()["user_id"] == "viewer"
        foreign = browser.delete("/videos/sample", headers={"Origin": "https://evil.example"})
        assert problem(foreign, 403) == "Forbidden"
        assert browser.delete("/session").status_code == 204
        assert problem(browser.get("/me"), 401) == "NotAuthenticated"
    listed = json.loads(fleet.command("keys", "list", "--user", "viewer", "--json").stdout)["keys"]
    assert [(row["name"], row["ended_at"]) for row in listed] == [("laptop", None)]
    (stored,) = fleet.rows("SELECT * FROM api_keys WHERE account = 'viewer'")
    assert key.split("_", 2)[2] not in str(stored)
    assert fleet.command("keys", "end", listed[0]["key_id"]).returncode == 0
    keyed.restart()
    assert problem(get(keyed, "/videos", key), 401) == "NotAuthenticated"
    assert fleet.command("keys", "end", "0" * 12).returncode == 1


def test_a_trusted_proxy_says_who_asks(keyed: Api) -> None:
    me = get(keyed, "/me", X_Forwarded_User="viewer").json()
    assert (me["user_id"], me["operator"], me["how"]) == ("viewer", False, "proxy")
    boss = get(keyed, "/me", X_Forwarded_User="boss@films.example").json()
    assert boss["operator"] is True and boss["user_id"].startswith("u_")
    twice = [("X-Forwarded-User", "viewer"), ("X-Forwarded-User", "boss@films.example")]
    assert problem(httpx.get(f"{keyed.url}/api/v1/me", headers=twice), 403) == "Forbidden"


def test_a_caller_who_sends_too_much_waits_and_others_do_not(keyed: Api, fleet: Fleet) -> None:
    with httpx.Client(base_url=f"{keyed.url}/api/v1", headers={"X-Forwarded-User": "greedy"}) as client:
        # Up to two minutes' worth: a minute may end meanwhile.
        refused = next(found for found in (client.get("/me") for _ in range(602)) if found.status_code != 200)
    assert problem(refused, 429) == "TooManyRequests"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert get(keyed, "/me", X_Forwarded_User="modest").status_code == 200
    key = fleet.command("keys", "add", "--user", "steady").stdout.strip()
    assert get(keyed, "/me", key).status_code == 200
    wrong = [f"sf_00000000000{digit}_" + "x" * 43 for digit in range(10)]
    answers = [get(keyed, "/me", text).status_code for text in wrong]
    assert set(answers) == {401, 429}
    # A key in use works on, and a page that still has an ended key is not what uses the limit up.
    assert get(keyed, "/me", key).status_code == 200
    assert get(keyed, "/me", wrong[0]).status_code == 401


def test_slow_and_idle_clients_stop_no_other(keyed: Api) -> None:
    address = ("127.0.0.1", keyed.port)
    idle = [socket.create_connection(address) for _ in range(250)]
    slow = socket.create_connection(address)
    slow.sendall(b"POST /api/v1/search HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: slow\r\n"
                 b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")  # fmt: skip
    try:
        started = time.monotonic()
        assert get(keyed, "/me", X_Forwarded_User="quick").status_code == 200
        assert time.monotonic() - started < 2
        slow.settimeout(60)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        for connection in idle:
            connection.settimeout(60)
            assert connection.recv(1) == b"", "an idle client was not sent away"
    finally:
        for connection in (*idle, slow):
            connection.close()
    # More than it takes at once: it takes others again when these have gone.
    many = [socket.create_connection(address) for _ in range(400)]
    for connection in many:
        connection.close()
    eventually(lambda: _answers(keyed), within_s=30, what="the API answers again")


def _answers(api: Api) -> bool:
    try:
        return get(api, "/me", X_Forwarded_User="after").status_code == 200
    except httpx.TransportError:
        return False


def test_the_documentations_lines_work(
    http: httpx.Client, api: Api, fleet: Fleet, spoken: Path, tmp_path: Path
) -> None:
    """Every `sh` block of docs/api.md, in its order."""
    fleet.storage.put_file("uploads", "uploads/local/film1/film.mp4", spoken, "video/mp4")
    (tmp_path / "photo.jpg").write_bytes(b"refused later, as no picture")
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.M | re.S):
        if "/scenes" in block:
            ended(http, "film1")
        script = block.replace("http://127.0.0.1:8080", api.url).replace(
            "curl ", "curl --fail-with-body -sS "
        )
        done = subprocess.run(
            ["bash", "-ec", script],
            cwd=tmp_path,
            env=kept_environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    ended(http, "film1")
    http.delete("/videos/film1")


def test_a_fuzzer_finds_nothing(api: Api, tmp_path: Path) -> None:
    """Schemathesis sends what docs/openapi.json describes, and what it forbids."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests/support/schemathesis.toml"), "run", str(ROOT / "docs/openapi.json"), "--url", api.url, "--seed", "1",
        "--max-examples", "3", "--no-shrink", "--phases", "examples,coverage,fuzzing", "--checks", "all",
        "--request-timeout", "30", "--no-color", "--report-dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=kept_environment(), capture_output=True, text=True, timeout=240
    )
    # Of a long value its beginning is enough.
    said = re.sub(
        r"((?:%[0-9A-F]{2}|\\u[0-9a-f]{4}){20})(?:%[0-9A-F]{2}|\\u[0-9a-f]{4})+", r"\1...", done.stdout
    )
    assert done.returncode == 0, said[-20000:] + done.stderr[-2000:]


def test_a_killed_api_or_a_lost_connection_to_redis_stops_no_later_request(
    api: Api, http: httpx.Client, fleet: Fleet
) -> None:
    api.kill()
    api.restart()
    assert http.get("/videos").status_code == 200
    with redis.Redis.from_url(fleet.redis_url) as client:
        for _ in range(5):
            reader = eventually(
                lambda: next((c for c in client.client_list() if c["name"] == READER), None),
                within_s=20,
                what="answers are read",
            )
            client.client_kill_filter(_id=reader["id"])
            assert http.get("/videos").status_code == 200
    answers: list[int] = []

    def ask() -> None:
        answers.append(httpx.get(f"{api.url}/api/v1/videos", timeout=60).status_code)

    asking = [threading.Thread(target=ask) for _ in range(40)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == [200] * 40
