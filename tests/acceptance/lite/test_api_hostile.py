"""2,000 requests that nobody means well by, over bare sockets: no failure of ours, and not a byte of another user."""

from __future__ import annotations

import base64
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote

import httpx
import pytest

from tests.support.api import Api
from tests.support.fleet import ROOT, Fleet

pytestmark = pytest.mark.timeout(600)

REQUESTS, SEED = 2000, 10
#: Sends them; owns nothing but what the requests themselves make.
NOSY = "nosy"
MAX_ANSWER_BYTES = 4 * 2**20
VIDEO = "fuzzed"

TEXTS = [
    "", " ", ".", "..", "../..", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e", "%00", "a\x00b", "a\nb", "\r\nX-Injected: 1",
    "<script>document.title='pwned'</script>", "\"><img src=x onerror=alert(1)>", "' OR 1=1 --", "%s%s%n", "${7*7}", "{{7*7}}",
    "\ud7ff", "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", "\N{PILE OF POO}" * 40, "e\u0301" * 90, "x" * 300, "x" * 9000, "-1", "0", "1e309",
    "9" * 40, "NaN", "null", "true", "[]", "{}", "sample", "film", "viewer", "uploads/viewer/sample/sample.mp4", "con", "C:\\x",
]  # fmt: skip
KEYS = [
    "keyframes/viewer/sample/0.jpg", "keyframes/viewer/../nosy/0.jpg", "keyframes/nosy/../viewer/sample/0.jpg",
    "keyframes/nosy/..%2fviewer/sample/0.jpg", "keyframes/nosy/%2e%2e/viewer/sample/0.jpg", "/keyframes/viewer/sample/0.jpg",
    "keyframes//viewer/sample/0.jpg", "uploads/viewer/sample/sample.mp4", "uploads/nosy/queries/../../viewer/sample/sample.mp4",
    "faces/viewer/x.jpg", "keyframes/nosy", "keyframes/nosy/", "keyframes/nosy/\\..\\viewer", "....//....//", "%c0%ae%c0%ae/",
]  # fmt: skip
RANGES = [
    "bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "bytes=" + ",".join("0-9" for _ in range(500)), "bytes=a-b", "bytes=",
    "bytes=-", "bytes=0-99999999999999999999999", "items=0-5", "bytes=--5", "bytes=0-1;q=1", "bytes = 0 - 1", "bytes=\u0664-\u0665",
]  # fmt: skip
OFFSETS = ["0", "-1", "1", "3.5", "9" * 30, "", "0x10", " 7 ", "\u0663", "1e3", "NaN", "+2", "2147483648"]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "GET\t", "get"]


class Fuzzer:
    """Makes requests by the OpenAPI file, and breaks a part of each."""

    def __init__(self, uploads: list[str]) -> None:
        self.random, self.uploads = random.Random(SEED), uploads
        paths = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
        self.operations = [(method.upper(), path) for path, found in paths.items() for method in found]

    def request(self) -> bytes:
        """One request, complete."""
        chosen = self.random.choice
        kind = self.random.random()
        method, path = chosen(self.operations)
        headers: list[tuple[str, str]] = [("X-Forwarded-User", NOSY)]
        if kind < 0.2:
            method, path = chosen(["GET", "HEAD"]), "/api/v1/objects/" + chosen(KEYS)
        elif kind < 0.3:
            method, path = chosen(["GET", "HEAD"]), "/api/v1/videos/{video_id}/media"
            headers.append(("Range", chosen(RANGES)))
        elif kind < 0.5:
            method, path = (
                chosen(["POST", "PATCH", "HEAD", "DELETE"]),
                "/api/v1/uploads" + chosen(["", "/" + chosen(self.uploads)]),
            )
            headers += self.tus()
        elif kind < 0.6:
            path = chosen(
                ["/", "//", "/..;/", "/%2e%2e/", "/./api/v1/../v1/videos", "/v/", "/index.html/"]
            ) + chosen(KEYS + TEXTS)
        if self.random.random() < 0.1:
            method = chosen(METHODS)
        path = re.sub(r"\{\w+\}", lambda _: self.part(), path)
        if self.random.random() < 0.4:
            names = [
                "cursor",
                "limit",
                "q",
                "state",
                "user_id",
                "t",
                "people",
                "mode",
                "download",
                "image_key",
                chosen(TEXTS),
            ]
            path += "?" + "&".join(
                f"{quote(chosen(names))}={quote(chosen(TEXTS))}" for _ in range(self.random.randint(1, 4))
            )
        body = self.body() if method in ("POST", "PUT", "PATCH") else b""
        if self.random.random() < 0.3:
            headers += self.odd_headers()
        if body:
            headers.append(("Content-Type", chosen(
                ["application/json", "application/json; charset=utf-16", "text/plain", "application/offset+octet-stream", "image/jpeg", ""]
            )))  # fmt: skip
        headers += [("Content-Length", str(len(body))), ("Connection", "close")]
        # What can't stand in a request line would be another request.
        line = f"{method} {path} HTTP/1.1".replace("\r", "%0d").replace("\n", "%0a")
        lines = [line, "Host: localhost", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body

    def part(self) -> str:
        """A part of a path."""
        part = self.random.choice([*TEXTS, VIDEO, VIDEO, "sample", "17"])
        return part if self.random.random() < 0.3 else quote(part, safe="")

    def tus(self) -> list[tuple[str, str]]:
        """Headers of an upload, some of them wrong."""
        chosen = self.random.choice
        found = [
            ("Tus-Resumable", chosen(["1.0.0", "1.0.0", "1.0.0", "0.2.2", ""])),
            ("Upload-Offset", chosen(OFFSETS)),
            ("Upload-Length", chosen(OFFSETS)),
            ("Upload-Defer-Length", chosen(["1", "0", "x"])),
            ("Upload-Metadata", chosen(
                ["filename ZmlsbS5tcDQ=,video_id ZnV6emVk", "filename", "filename ===", "video_id Li4vdmlld2Vy", "a " * 300,
                 "filename PHNjcmlwdD4ubXA0,video_id eA==", ",,,", "filename ZmlsbS5tcDQ=," * 30]
            )),
            ("Upload-Checksum", chosen(["sha1 x", "md5 AAAA", "sha1", "crc32 " + "A" * 400])),
            ("Content-Type", "application/offset+octet-stream"),
        ]  # fmt: skip
        return [header for header in found if self.random.random() < 0.7]

    def odd_headers(self) -> list[tuple[str, str]]:
        """Headers that a route may read."""
        chosen = self.random.choice
        text = chosen(TEXTS).replace("\r", " ").replace("\n", " ").replace("\x00", " ")
        return [chosen([
            ("Range", chosen(RANGES)), ("If-None-Match", text), ("If-Range", text), ("Idempotency-Key", text), ("Authorization", text),
            ("Authorization", "Bearer " + text), ("Cookie", f"scenefleet_key={text}"), ("Origin", text), ("Last-Event-ID", text),
            ("Accept-Encoding", text), ("X-Forwarded-For", text), ("X-Forwarded-User", "viewer"), ("Content-Length", "7"),
            ("Transfer-Encoding", "chunked"), ("Expect", "100-continue"), ("X" * 200, "y" * 200), ("Accept", text),
        ])]  # fmt: skip

    def body(self) -> bytes:
        """JSON that fits no contract, or no JSON."""
        chosen = self.random.choice
        deep = "[" * 3000 + "]" * 3000
        key = chosen([*KEYS, f"uploads/{NOSY}/{VIDEO}/film.mp4"])
        values = [
            chosen(TEXTS),
            -1,
            1e308,
            None,
            True,
            [],
            {},
            [chosen(TEXTS)] * 30,
            {"__type__": "uuid", "__value__": "x"},
            key,
        ]
        names = [
            "video_id",
            "storage_key",
            "user_id",
            "query",
            "name",
            "priority",
            "mode",
            "limit",
            "image_key",
            "people",
            "key",
            "ids",
        ]
        made = {chosen(names): chosen(values) for _ in range(self.random.randint(0, 5))}
        text = json.dumps(made).replace("1e+308", "1e999")
        return chosen([
            text.encode("utf-8", "replace"), text.encode("utf-8", "replace"), b"", b"{", deep.encode(), b'{"a":1,"a":2}', b"\xff\xfe{",
            b'{"limit": NaN}', b"null", b"7", b'"' + b"x" * 70_000 + b'"', self.random.randbytes(500), b"\xff\xd8\xff" + self.random.randbytes(300),
        ])  # fmt: skip


def answer_to(port: int, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer; status 0: the server closed the connection without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(ConnectionError):  # it may answer before it has read everything
            connection.sendall(request)
        found = bytearray()
        with suppress(ConnectionError):
            while len(found) < MAX_ANSWER_BYTES and (more := connection.recv(65_536)):
                found += more
    head, _, body = bytes(found).partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 1"):
        head, _, body = body.partition(b"\r\n\r\n")
    matched = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
    return int(matched[1]) if matched else 0, head, body


@pytest.fixture(scope="module")
def open_api(fleet: Fleet) -> Iterator[Api]:
    """A proxy's users, and no limit of requests."""
    found = Api(
        fleet,
        "api-hostile",
        API_USER_HEADER="X-Forwarded-User",
        API_TRUSTED_PROXIES="127.0.0.1",
        API_RATE_PER_MINUTE="0",
        API_SLOW_CLIENT_S="2",
    )
    found.start()
    yield found
    found.stop()


def begin_uploads(api: Api) -> list[str]:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1000", "X-Forwarded-User": NOSY}
    begun = []
    for number in range(3):
        video_id = base64.b64encode(f"up{number}".encode()).decode()
        name = {"Upload-Metadata": f"filename ZmlsbS5tcDQ=,video_id {video_id}"}
        made = httpx.post(f"{api.url}/api/v1/uploads", headers=headers | name, timeout=60)
        assert made.status_code == 201, made.text
        begun.append(made.headers["location"].rpartition("/")[2])
    return begun


def test_2000_hostile_requests(open_api: Api, indexed: Fleet) -> None:
    """User "viewer" has a video and keyframes; their words, files and storage keys come back to nobody else."""
    KEYS.append(next(indexed.storage.list("sidecars", "keyframes/viewer/sample/")).key)
    fuzzer = Fuzzer([*begin_uploads(open_api), "0" * 32, "..", "%00"])
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    for number in range(REQUESTS):
        request = fuzzer.request()
        status, head, body = answer_to(open_api.port, request)
        statuses[status] += 1
        theirs = [mark for mark in (b"viewer", b"rocket", b"\xff\xd8\xff", b"ftyp") if mark in body]
        if status == 0 or status >= 500 or b"X-Injected" in head or (status < 300 and theirs):
            wrong.append(f"{number}: {status} {theirs} {request[:300]!r} -> {body[:300]!r}")
    print(dict(sorted(statuses.items())))
    assert wrong == []
    # The requests were not all stopped at the door, and the process has survived them.
    assert statuses[200] + statuses[201] + statuses[204] >= 50 and statuses[404] >= 200 and len(statuses) >= 8
    alive = httpx.get(f"{open_api.url}/api/v1/me", headers={"X-Forwarded-User": NOSY}, timeout=30)
    assert alive.json()["user_id"] == NOSY
    assert "Traceback" not in open_api.log.read_text()
    assert indexed.client.status("sample", "viewer").state == "indexed", "nothing of theirs was changed"
