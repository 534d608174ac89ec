"""The minio backend over real HTTP: signatures against a server that verifies them, and servers that fail.

What every backend has in common is in ``tests/contracts/test_storage.py``. Signatures and expiry are proved on
OpenStack Swift; the failures are played by a scripted server, because no real one fails on demand.
"""

from __future__ import annotations

import datetime as dt
import gzip
import http.server
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import minio.api
import pytest
import urllib3

from shared.errors import (
    InvalidKey,
    InvalidRequest,
    ObjectMissing,
    Permanent,
    ScenefleetError,
    StorageUnavailable,
)
from shared.storage import Storage, StorageConfig, open_storage
from tests.support.fleet import run_to_end
from tests.support.s3_servers import ACCESS_KEY, SECRET_KEY, STRANGER_KEY, config_for, with_own_buckets

KEY = "uploads/u1/v1/Mein Urlaub +1.mp4"
OTHER = "uploads/u2/v1/private.mp4"
MINE, THEIRS = b"bytes of the first user", b"bytes of the second user"
OCTETS = "application/octet-stream"


@pytest.fixture(scope="module")
def config(swift: StorageConfig) -> StorageConfig:
    return with_own_buckets(swift)


@pytest.fixture(scope="module")
def storage(config: StorageConfig) -> Storage:
    """On the verifying server, holding one object of ours and one of another user."""
    storage = open_storage(config)
    storage.ensure_buckets()
    storage.put_bytes("uploads", KEY, MINE, "video/mp4")
    storage.put_bytes("uploads", OTHER, THEIRS, "video/mp4")
    return storage


@pytest.fixture(scope="module")
def browser() -> urllib3.PoolManager:
    """A client that knows nothing of us."""
    return urllib3.PoolManager(retries=False, timeout=20)


# --- presigned URLs, on the server that verifies them


def test_a_download_may_be_given_a_name(storage: Storage, browser: urllib3.PoolManager) -> None:
    name = 'Urlaub "é"\r\nX-Evil: 1;.mp4'
    answer = browser.request("GET", storage.presign_get("uploads", KEY, 60, download_name=name))
    assert (answer.status, answer.data, answer.headers["content-type"]) == (200, MINE, "video/mp4")
    expected = "attachment; filename*=UTF-8''Urlaub%20%22%C3%A9%22%0D%0AX-Evil%3A%201%3B.mp4"
    assert answer.headers["content-disposition"] == expected
    assert "x-evil" not in answer.headers


def change(url: str, **parameters: str) -> str:
    """The URL with some of its query parameters replaced."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    assert parameters.keys() <= query.keys(), "nothing to tamper with"
    return urlunsplit(parts._replace(query=urlencode(query | parameters)))


def parameter(url: str, name: str) -> str:
    return dict(parse_qsl(urlsplit(url).query))[name]


def tamper_signature(url: str) -> str:
    signature = parameter(url, "X-Amz-Signature")
    return change(url, **{"X-Amz-Signature": ("1" if signature[0] == "0" else "0") + signature[1:]})


def tamper_date(url: str) -> str:
    later = dt.datetime.strptime(parameter(url, "X-Amz-Date"), "%Y%m%dT%H%M%SZ") + dt.timedelta(seconds=5)
    return change(url, **{"X-Amz-Date": later.strftime("%Y%m%dT%H%M%SZ")})


TAMPERINGS: dict[str, Callable[[str], str]] = {
    "another's object": lambda url: url.replace("/u1/v1/Mein%20Urlaub%20%2B1.mp4", "/u2/v1/private.mp4"),
    "bucket": lambda url: url.replace("/uploads-", "/sidecars-"),
    "signature": tamper_signature,
    "no signature": lambda url: url.split("&X-Amz-Signature")[0],
    "nothing but the path": lambda url: url.split("?")[0],
    "longer life": lambda url: change(url, **{"X-Amz-Expires": "600"}),
    "later date": tamper_date,
    "another user": lambda url: url.replace("tester", "stranger"),
    "header": lambda url: change(url, **{"response-content-disposition": "inline"}),
    "added parameter": lambda url: url + "&response-content-type=text%2Fhtml",
}
#: Swift takes a request without any signature for one of its own protocol, and finds it bad.
REFUSED = (403, 400)


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampered_url_is_refused(storage: Storage, browser: urllib3.PoolManager, tampering: str) -> None:
    url = storage.presign_get("uploads", KEY, 60, download_name="a.mp4")
    assert browser.request("GET", url).data == MINE
    tampered = TAMPERINGS[tampering](url)
    assert tampered != url
    answer = browser.request("GET", tampered)
    assert answer.status in REFUSED
    assert MINE not in answer.data and THEIRS not in answer.data
    if tampering != "header":  # an upload has none to tamper with
        tampered = TAMPERINGS[tampering](storage.presign_put("uploads", KEY, 60))
        assert browser.request("PUT", tampered, body=b"evil").status in REFUSED
    assert storage.get_bytes("uploads", KEY) == MINE
    assert storage.get_bytes("uploads", OTHER) == THEIRS


def test_a_url_allows_nothing_else(storage: Storage, browser: urllib3.PoolManager) -> None:
    get, put = (presign("uploads", KEY, 60) for presign in (storage.presign_get, storage.presign_put))
    for url, method in ((get, "PUT"), (get, "DELETE"), (put, "GET"), (put, "DELETE")):
        answer = browser.request(method, url, body=b"evil" if method == "PUT" else None)
        assert answer.status == 403 and MINE not in answer.data, (url, method)
        assert storage.get_bytes("uploads", KEY) == MINE


@pytest.mark.parametrize(("age_s", "status"), [(0, 200), (45, 200), (61, 403), (3600, 403)])
def test_urls_expire(
    storage: Storage, browser: urllib3.PoolManager, monkeypatch: pytest.MonkeyPatch, age_s: int, status: int
) -> None:
    """URLs for 60 s, signed ``age_s`` seconds ago by our clock; the server's clock is the real one."""
    now, new, data = minio.api.time.utcnow, f"uploads/u1/v1/{age_s}.mp4", os.urandom(100_000)
    with monkeypatch.context() as patch:
        patch.setattr(minio.api.time, "utcnow", lambda: now() - dt.timedelta(seconds=age_s))
        download = storage.presign_get("uploads", KEY, 60)
        upload = storage.presign_put("uploads", new, 60)
    assert parameter(download, "X-Amz-Expires") == "60"
    assert browser.request("GET", download).status == status
    headers = {"Content-Type": "video/mp4"}
    assert browser.request("PUT", upload, body=data, headers=headers).status == status
    assert storage.exists("uploads", new) == (status == 200)
    assert status != 200 or storage.get_bytes("uploads", new) == data


@pytest.mark.parametrize("expires_s", [0, -1, 604_801])
def test_a_life_s3_does_not_allow_is_refused(storage: Storage, expires_s: int) -> None:
    for presign in (storage.presign_get, storage.presign_put):
        with pytest.raises(InvalidRequest, match="604800 s"):
            presign("uploads", KEY, expires_s)


def test_urls_name_the_server_as_browsers_know_it(
    storage: Storage, config: StorageConfig, browser: urllib3.PoolManager
) -> None:
    """Workers may reach the server by another name; signing needs no connection at all."""
    inside = {"endpoint": "minio.invalid:9000", "public_endpoint": f"http://{config.endpoint}"}
    url = open_storage(config.model_copy(update=inside)).presign_get("uploads", KEY, 60)
    assert browser.request("GET", url).data == MINE
    outside = {**inside, "public_endpoint": "https://media.example.org"}
    url = open_storage(config.model_copy(update=outside)).presign_put("uploads", KEY, 60)
    assert url.startswith("https://media.example.org/uploads-")


# --- credentials


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"secret_key": "wrong-secret-5Zq"}, "STORAGE_SECRET_KEY"),
        ({"access_key": "nobody:nowhere"}, "STORAGE_ACCESS_KEY"),
        ({"access_key": STRANGER_KEY}, "right to read, write, list and delete"),
        ({"region": "mars-north-1"}, "STORAGE_REGION"),
    ],
)
def test_credentials_that_do_not_fit(
    storage: Storage, config: StorageConfig, tmp_path: Path, changes: dict[str, str], advice: str
) -> None:
    wrong = open_storage(StorageConfig.model_validate({**config.model_dump(), **changes}))
    operations = all_operations(wrong, tmp_path)
    for name in ("get_bytes", "get_file", "put_bytes", "put_file", "delete", "list", "delete_prefix"):
        with pytest.raises(Permanent, match=advice) as caught:
            operations[name]()
        assert_discreet(caught.value, wrong_secrets=tuple(changes.values()))
    with pytest.raises(StorageUnavailable):
        wrong.check()
    assert storage.get_bytes("uploads", KEY) == MINE


def assert_discreet(error: ScenefleetError, wrong_secrets: tuple[str, ...] = ()) -> None:
    """One line that names no credential, in the message and in the whole printed traceback."""
    shown = "".join(traceback.format_exception(error))
    for secret in (SECRET_KEY, ACCESS_KEY, *wrong_secrets):
        assert secret not in str(error)
        assert secret not in shown or secret == "mars-north-1"
    assert "\n" not in str(error) and len(str(error)) < 400


# --- servers that fail


@contextmanager
def scripted(answer: Callable[[http.server.BaseHTTPRequestHandler, int], None]) -> Iterator[SimpleNamespace]:
    """A server that answers as told, given the handler and its request's number; ``requests``: what it was asked."""
    script = SimpleNamespace(requests=[], stopping=threading.Event())

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            script.requests.append(f"{self.command} {self.path}")
            answer(self, len(script.requests))

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.endpoint = f"127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield script
        finally:
            script.stopping.set()
            server.shutdown()
            thread.join()


def send(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """One whole answer, after the request's body is read."""
    handler.rfile.read(int(handler.headers.get("content-length") or 0))
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if "Content_Length" not in headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def refuse(handler: http.server.BaseHTTPRequestHandler, status: int, code: str) -> None:
    """An S3 error, which tactlessly repeats the credentials."""
    words = f"words of the server about {ACCESS_KEY} and {SECRET_KEY}"
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message></Error>"
    send(handler, status, xml.encode(), Content_Type="application/xml")


def quick(endpoint: str, **changes: object) -> Storage:
    return open_storage(config_for(endpoint, **({"connect_timeout_s": 0.3, "read_timeout_s": 0.3} | changes)))


def all_operations(storage: Storage, tmp_path: Path) -> dict[str, Callable[[], object]]:
    (tmp_path / "source").write_bytes(b"x")
    return {
        "put_bytes": lambda: storage.put_bytes("uploads", KEY, b"x", OCTETS),
        "put_file": lambda: storage.put_file("uploads", KEY, tmp_path / "source", OCTETS),
        "get_bytes": lambda: storage.get_bytes("uploads", KEY),
        "get_file": lambda: storage.get_file("uploads", KEY, tmp_path / "target"),
        "stat": lambda: storage.stat("uploads", KEY),
        "exists": lambda: storage.exists("uploads", KEY),
        "get_range": lambda: storage.get_bytes("uploads", KEY, offset=5),
        "list": lambda: list(storage.list("uploads", "uploads/u1/")),
        "delete": lambda: storage.delete("uploads", KEY),
        "delete_prefix": lambda: storage.delete_prefix("uploads", "uploads/u1/"),
        "ensure_buckets": storage.ensure_buckets,
        "check": storage.check,
    }


def outcomes(*operations: Callable[[], object]) -> list[ScenefleetError]:
    """What each operation raises, all at once; none may take longer than ten seconds."""

    def call(operation: Callable[[], object]) -> ScenefleetError:
        begun_s = time.monotonic()
        with pytest.raises(ScenefleetError) as caught:
            operation()
        assert time.monotonic() - begun_s < 10
        return caught.value

    with ThreadPoolExecutor(len(operations)) as pool:
        return list(pool.map(call, operations))


@pytest.mark.parametrize(
    ("status", "code", "error", "words", "requests"),
    [
        (503, "SlowDown", StorageUnavailable, "can't serve", 3),
        (503, "ServiceUnavailable", StorageUnavailable, "can't serve", 3),
        (500, "InternalError", StorageUnavailable, "can't serve", 3),
        (429, "TooManyRequests", StorageUnavailable, "can't serve", 1),
        (400, "RequestTimeout", StorageUnavailable, "can't serve", 1),
        (507, "XMinioStorageFull", StorageUnavailable, "no room", 1),
        (400, "XMinioAdminBucketQuotaExceeded", StorageUnavailable, "no room", 1),
        (404, "NoSuchBucket", StorageUnavailable, "has no bucket 'uploads'", 1),
        (403, "RequestTimeTooSkewed", StorageUnavailable, "clock", 1),
        (404, "NoSuchKey", ObjectMissing, "upload it first", 1),
        (403, "AccessDenied", Permanent, "right to read", 1),
        (403, "InvalidAccessKeyId", Permanent, "STORAGE_ACCESS_KEY", 1),
        (403, "SignatureDoesNotMatch", Permanent, "STORAGE_SECRET_KEY", 1),
        (400, "AuthorizationHeaderMalformed", Permanent, "STORAGE_REGION", 1),
        (499, "ClientDisconnected", StorageUnavailable, "can't serve", 1),
        (400, "XAmzContentSHA256Mismatch", StorageUnavailable, "can't serve", 1),
        (400, "XMinioInsecureClientRequest", Permanent, "STORAGE_SECURE", 1),
        (400, "XMinioParentIsObject", InvalidKey, "another key", 1),
        (418, "Teapot", Permanent, "words of the server about *** and ***", 1),
    ],
)
def test_what_a_server_says(
    tmp_path: Path, status: int, code: str, error: type[ScenefleetError], words: str, requests: int
) -> None:
    with scripted(lambda handler, _: refuse(handler, status, code)) as script:
        operations = all_operations(quick(script.endpoint), tmp_path)
        names = ("put_bytes", "put_file", "get_bytes", "get_file")
        for caught in outcomes(*(operations[name] for name in names)):
            assert type(caught) is error
            assert words in str(caught)
            assert_discreet(caught)
        assert len(script.requests) == requests * len(names)
    assert not (tmp_path / "target").exists()


PAGE = f"<html>502 Bad Gateway {SECRET_KEY} {'x' * 100_000}</html>".encode()


@pytest.mark.parametrize(
    ("operation", "status", "kind", "body", "words"),
    [
        # The answer to HEAD has no body.
        ("stat", 503, "", b"", "HTTP 503"),
        ("stat", 507, "", b"", "no room"),
        ("stat", 429, "", b"", "HTTP 429"),
        *(
            (operation, status, "text/html", PAGE, "without S3's XML")
            for operation in ("get_bytes", "put_bytes", "list")
            for status in (404, 403, 502)
        ),
        *(
            ("get_bytes", 400, "application/xml", body, "unreadable")
            for body in (b"<Error><Code>No", b"\xff\xfe\xfa", b"not xml")
        ),
        ("list", 200, "application/xml", b"<ListBu", "unreadable"),
        ("get_range", 200, "", b"0123456789", "ignores ranges"),
    ],
    ids=lambda value: "page" if value == PAGE else None,
)
def test_an_answer_that_is_not_s3s_is_an_outage_and_is_not_quoted(
    tmp_path: Path, operation: str, status: int, kind: str, body: bytes, words: str
) -> None:
    headers = {"Content_Type": kind} if kind else {}
    with (
        scripted(lambda handler, _: send(handler, status, body, **headers)) as script,
        pytest.raises(StorageUnavailable, match=words) as caught,
    ):
        all_operations(quick(script.endpoint), tmp_path)[operation]()
    assert_discreet(caught.value)


def test_a_hiccup_is_not_even_noticed() -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler, number: int) -> None:
        if number < 3:
            refuse(handler, 503, "SlowDown")
        else:
            send(handler, 200, b"at last")

    with scripted(answer) as script:
        assert quick(script.endpoint).get_bytes("uploads", KEY) == b"at last"
        assert len(script.requests) == 3


def test_a_server_that_says_wait_an_hour_is_not_waited_for() -> None:
    with scripted(lambda handler, _: send(handler, 503, Retry_After="3600")) as script:
        begun_s = time.monotonic()
        with pytest.raises(StorageUnavailable):
            quick(script.endpoint).stat("uploads", KEY)
        assert time.monotonic() - begun_s < 30


def test_a_redirect_is_not_followed_with_our_signature(tmp_path: Path) -> None:
    with (
        scripted(lambda handler, _: send(handler, 200, b"thank you")) as thief,
        scripted(lambda handler, _: send(handler, 307, Location=f"http://{thief.endpoint}/")) as script,
    ):
        outcomes(*all_operations(quick(script.endpoint), tmp_path).values())
        assert script.requests and not thief.requests


def test_nobody_listens_or_the_name_is_unknown(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, so that no one else takes the port; not listening
        storage = quick(f"127.0.0.1:{closed.getsockname()[1]}")
        for error in outcomes(*all_operations(storage, tmp_path).values()):
            assert isinstance(error, StorageUnavailable)
            assert re.search(r"can't be reached.*start it or correct STORAGE_ENDPOINT", str(error))
            assert_discreet(error)
    with pytest.raises(StorageUnavailable, match=r"minio\.invalid:9000 can't be reached"):
        quick("minio.invalid:9000").get_bytes("uploads", KEY)


def test_a_server_that_accepts_and_is_silent(tmp_path: Path) -> None:
    """Each wait is bounded: at most 3 tries of 0.15 s, not minio-py's 6 of 300 s."""
    with scripted(lambda handler, _: script.stopping.wait(60) and None) as script:
        storage = quick(script.endpoint, read_timeout_s=0.15)
        errors = outcomes(*all_operations(storage, tmp_path).values())
        assert {type(error) for error in errors} == {StorageUnavailable}
        assert all("does not answer in time" in str(error) for error in errors)
        assert len(script.requests) <= 3 * len(errors)


def test_a_server_that_does_not_even_accept() -> None:
    """A full backlog drops connections unanswered, as a firewall does."""
    with ExitStack() as stack:
        deaf = stack.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        begun_s = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"no answer to a connection|does not answer in time"):
            quick(f"127.0.0.1:{deaf.getsockname()[1]}").get_bytes("uploads", KEY)
        assert time.monotonic() - begun_s < 10


@pytest.mark.parametrize("ending", ["closed", "stalled"])
def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path, ending: str) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler, number: int) -> None:
        send(handler, 200, bytes(700_000), Content_Length="1000000")
        handler.wfile.flush()
        if ending == "stalled":
            script.stopping.wait(60)
        handler.close_connection = True

    with scripted(answer) as script:
        storage = quick(script.endpoint)
        with pytest.raises(StorageUnavailable):
            storage.get_file("uploads", KEY, tmp_path / "target")
        with pytest.raises(StorageUnavailable):
            storage.get_bytes("uploads", KEY)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_without_a_length_is_not_trusted(tmp_path: Path) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler, number: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"how much is this?")
        handler.close_connection = True

    with scripted(answer) as script, pytest.raises(StorageUnavailable, match="does not say how long"):
        quick(script.endpoint).get_file("uploads", KEY, tmp_path / "target")


def test_a_packed_object_stays_packed(tmp_path: Path) -> None:
    packed = gzip.compress(b"0" * 10_000)
    with scripted(lambda handler, _: send(handler, 200, packed, Content_Encoding="gzip")) as script:
        assert quick(script.endpoint).get_file("uploads", KEY, tmp_path / "target") == len(packed)
    assert (tmp_path / "target").read_bytes() == packed


def test_tls_with_a_server_that_has_none() -> None:
    secure = pytest.raises(StorageUnavailable, match="STORAGE_SECURE")
    with scripted(lambda handler, _: send(handler, 200)) as script, secure:
        quick(script.endpoint, secure=True).stat("uploads", KEY)


# --- many, large, forked


def test_more_objects_than_one_page(moto: StorageConfig) -> None:
    from moto.s3.models import s3_backends  # in place of 1005 requests

    config = with_own_buckets(moto)
    storage = open_storage(config)
    storage.ensure_buckets()
    (account,) = s3_backends
    keys = {f"tmp/u1/v1/{number:04}" for number in range(1005)}
    for key in (*keys, "tmp/u1/v2/kept"):
        s3_backends[account]["aws"].put_object(config.bucket_tmp, key, b"")
    assert {info.key for info in storage.list("tmp", "tmp/u1/v1/")} == keys
    assert storage.delete_prefix("tmp", "tmp/u1/v1/") == 1005
    assert [info.key for info in storage.list("tmp", "")] == ["tmp/u1/v2/kept"]


FORKED = """
import multiprocessing, sys
from shared.storage import open_storage
from tests.support.s3_servers import config_for

endpoint, bucket, mine, other = sys.argv[1:]
storage = open_storage(config_for(endpoint, bucket_uploads=bucket))
expected, theirs = storage.get_bytes("uploads", mine), storage.get_bytes("uploads", other)  # opens the connection

def read():
    for _ in range(20):
        assert storage.get_bytes("uploads", mine) == expected

children = [multiprocessing.get_context("fork").Process(target=read) for _ in range(2)]
for child in children:
    child.start()
for _ in range(20):
    assert storage.get_bytes("uploads", other) == theirs
for child in children:
    child.join(60)
    assert child.exitcode == 0
"""


def test_a_child_does_not_share_its_parents_connection(storage: Storage, config: StorageConfig) -> None:
    # In a process of its own: this one has threads, which a fork would stop at whatever they hold.
    arguments = (config.endpoint, config.bucket_uploads, KEY, OTHER)
    result = run_to_end([sys.executable, "-c", FORKED, *arguments], timeout_s=250)
    assert result.returncode == 0, result.stderr


LARGE = """
import sys
from pathlib import Path
from shared.storage import open_storage
from tests.support.s3_servers import config_for

def peak_kib():
    # Not getrusage: its peak begins with the size of the process that started this one.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

endpoint, bucket, source = sys.argv[1:]
storage = open_storage(config_for(endpoint, bucket_tmp=bucket))
storage.ensure_buckets()
storage.put_bytes("tmp", "tmp/warm/up", bytes(2**20), "")
before_kib = peak_kib()
storage.put_file("tmp", "tmp/u1/large", Path(source), "")
storage.get_file("tmp", "tmp/u1/large", Path(source + ".back"))
print((peak_kib() - before_kib) * 1024)
"""


def test_a_large_file_takes_no_large_memory(moto: StorageConfig, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("measuring memory needs Linux's /proc")
    source = tmp_path / "source"
    source.write_bytes(b"".join(bytes([number]) * 2**20 for number in range(128)))
    config = with_own_buckets(moto)
    command = [sys.executable, "-c", LARGE, config.endpoint, config.bucket_tmp, str(source)]
    result = run_to_end(command, timeout_s=250)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "source.back").read_bytes() == source.read_bytes()
    assert int(result.stdout) < 64 * 2**20  # bytes; the file has twice as many


# --- configuration


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"endpoint": ""}, "STORAGE_ENDPOINT is not set"),
        ({"endpoint": "http://u:hunter2@host:9000"}, "STORAGE_ENDPOINT must be host:port"),
        ({"endpoint": "host:9000/path"}, "STORAGE_ENDPOINT must be host:port"),
        ({"endpoint": "host:port"}, "STORAGE_ENDPOINT must be host:port"),
        ({"endpoint": "ftp://host"}, "STORAGE_ENDPOINT must be host:port"),
        ({"endpoint": "http://[::1"}, "STORAGE_ENDPOINT must be host:port"),
        ({"public_endpoint": "https://media.example.org/?x"}, "STORAGE_PUBLIC_ENDPOINT must be host:port"),
        ({"access_key": ""}, "STORAGE_ACCESS_KEY is not set"),
        ({"secret_key": ""}, "STORAGE_SECRET_KEY is not set"),
        ({"bucket_tmp": "Tmp"}, "STORAGE_BUCKET_TMP='Tmp'"),
        ({"bucket_tmp": "10.0.0.1"}, "STORAGE_BUCKET_TMP='10.0.0.1' is reserved"),
        ({"bucket_tmp": "uploads"}, "must differ"),
    ],
)
def test_configurations_that_lead_nowhere(changes: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_storage(config_for(**({"endpoint": "localhost:9000"} | changes)))
    assert words in str(caught.value) and "hunter2" not in str(caught.value)


def test_opening_connects_to_nothing() -> None:
    with scripted(lambda handler, _: send(handler, 200)) as script:
        open_storage(config_for(script.endpoint)).presign_get("uploads", KEY, 60)
        assert script.requests == []
