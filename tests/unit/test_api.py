"""The API's parts that need no server: problems, bodies, callers, origins, the OpenAPI file."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request
from starlette.datastructures import Headers

from api import dialects, openapi
from api.asking import Asking
from api.bodies import json_body, parse_object
from api.callers import COOKIE, Keys, as_user_id, identify, is_trusted
from api.headers import content_policy, inline
from api.limits import read_body
from api.origins import Origins
from api.problems import (
    STATUS,
    BodyTooLarge,
    NotAuthenticated,
    SlowClient,
    TooManyRequests,
    UnsupportedMedia,
    problem,
    status_of,
)
from api.routes.events import is_allowed
from shared import errors
from shared.addresses import check_address, is_loopback
from shared.contracts import KeyView, RerunVideo
from shared.errors import InvalidRequest, NotFound
from shared.keys import make_key, read_key
from shared.settings import Settings

ROOT = Path(__file__).parents[2]


def request(**headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": named})


def test_the_openapi_file_is_current() -> None:
    assert (ROOT / openapi.FILE).read_text() == openapi.text(), "run `python -m api.openapi`"


def test_every_operation_tells_its_problems_and_no_other_form_of_error() -> None:
    described = json.loads((ROOT / openapi.FILE).read_text())
    assert "HTTPValidationError" not in described["components"]["schemas"]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                if int(status) >= 400 and path != "/api/v1/health":
                    dialect = dialects.dialect_of(path)
                    form = "application/json" if dialect else "application/problem+json"
                    assert list(answer["content"]) == [form], (method, path, status)
                    if dialect is not None:
                        shape = answer["content"][form]["schema"]["$ref"].rpartition("/")[2]
                        assert shape == dialects.SHAPES[dialect].__name__, (path, status)
    kinds = {kind["$ref"].rpartition("/")[2] for kind in _references(described)}
    assert kinds == set(described["components"]["schemas"]), "unused or missing definitions"


def _references(node: Any) -> list[dict[str, str]]:
    if isinstance(node, dict):
        own = [node] if "$ref" in node else []
        return own + [found for value in node.values() for found in _references(value)]
    return [found for value in node for found in _references(value)] if isinstance(node, list) else []


def test_every_error_of_ours_has_a_status_and_stands_in_the_documentation() -> None:
    table = (ROOT / "docs" / "api.md").read_text()
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in ours:
        if kind not in (errors.ScenefleetError, errors.Permanent, errors.LeaseLost):
            assert 400 <= status_of(kind("x")) < 504 and status_of(kind("x")) != 500, kind
    for kind, _ in STATUS:
        assert f"`{kind.__name__}`" in table or kind is errors.Retryable, kind


def test_a_problem_tells_what_was_wrong_and_an_internal_error_does_not() -> None:
    told = problem(errors.NotFound("user u has no video v: list the videos"))
    found = json.loads(bytes(told.body))
    assert (told.status_code, told.media_type) == (404, "application/problem+json")
    assert found["code"] == "NotFound" and found["type"].endswith("/docs/api.md#notfound")
    assert found["detail"] == "user u has no video v: list the videos"
    hidden = json.loads(bytes(problem(ValueError("secret")).body))
    assert hidden["status"] == 500 and "secret" not in json.dumps(hidden)


def test_only_what_passes_by_itself_names_a_time_to_ask_again() -> None:
    assert problem(errors.BrokerUnavailable("away")).headers["Retry-After"] == "2"
    assert problem(TooManyRequests("many", retry_after_s=31)).headers["Retry-After"] == "31"
    assert "Retry-After" not in problem(errors.ModelUnavailable("none")).headers
    assert "WWW-Authenticate" not in problem(errors.NotFound("none")).headers


def test_a_body_is_an_object_without_what_the_address_says() -> None:
    hidden = {"user_id", "version"}
    json_type = request(content_type="application/json; charset=utf-8")
    assert parse_object(json_type, b'{"limit": 5}', hidden) == {"limit": 5}
    assert parse_object(request(), b"", hidden) == {}
    for body in (b"[]", b"5", b"{", b'{"x": NaN}', b'{"user_id": "other"}', b"[" * 100_000, b"\xff"):
        with pytest.raises(InvalidRequest):
            parse_object(json_type, body, hidden)
    with pytest.raises(UnsupportedMedia):
        parse_object(request(content_type="text/plain"), b"{}", hidden)


def test_the_schema_of_a_body_lacks_what_the_address_says() -> None:
    extra = json_body(RerunVideo, "user_id", "video_id", name="Rerun").extra["requestBody"]
    assert extra["required"] is False
    schema = json.loads((ROOT / openapi.FILE).read_text())["components"]["schemas"]["Rerun"]
    assert set(schema["properties"]) == {"stages", "missing"} and not schema["additionalProperties"]


LOCAL = Settings(REDIS_URL="redis://x")
BY_PROXY = Settings(REDIS_URL="redis://x", API_USER_HEADER="X-User")
BY_OIDC = Settings(REDIS_URL="redis://x", OIDC_ISSUER="https://sign-in.example", OIDC_CLIENT_ID="page")
BY_KEY = Settings(REDIS_URL="redis://x", API_KEYS="true", API_CORS_ORIGINS="https://films.example")


@pytest.mark.parametrize(
    ("settings", "method", "headers", "allowed"),
    [
        (LOCAL, "GET", {"host": "127.0.0.1:8080"}, True),
        (LOCAL, "GET", {"host": "LOCALHOST:1"}, True),
        (LOCAL, "GET", {"host": "[::1]:8080"}, True),
        (LOCAL, "GET", {"host": "films.example"}, False),
        (LOCAL, "GET", {"host": "127.0.0.1.films.example"}, False),
        (LOCAL, "GET", {}, False),
        (LOCAL, "POST", {"host": "localhost:80", "origin": "http://localhost:80"}, True),
        (LOCAL, "POST", {"host": "localhost:80", "origin": "http://localhost:81"}, False),
        (LOCAL, "POST", {"host": "localhost:80", "origin": "null"}, False),
        (LOCAL, "POST", {"host": "localhost:80", "sec-fetch-site": "cross-site"}, False),
        (LOCAL, "POST", {"host": "localhost:80"}, True),
        (LOCAL, "POST", {"host": "localhost", "authorization": "Bearer x", "origin": "http://x"}, False),
        (BY_PROXY, "GET", {"host": "films.example"}, True),
        (BY_PROXY, "DELETE", {"host": "films.example", "origin": "https://evil.example"}, False),
        (BY_PROXY, "DELETE", {"host": "films.example", "origin": "https://films.example"}, True),
        (BY_KEY, "POST", {"host": "api", "authorization": "Bearer x", "origin": "https://any"}, True),
        (BY_KEY, "POST", {"host": "api", "authorization": "Basic x", "origin": "https://any"}, False),
        (BY_KEY, "POST", {"host": "api", "origin": "https://films.example"}, True),
        (BY_OIDC, "GET", {"host": "films.example"}, True),
        (BY_OIDC, "POST", {"host": "api", "authorization": "Bearer x", "origin": "https://any"}, True),
        (BY_OIDC, "POST", {"host": "api", "origin": "https://any.example"}, False),
        (BY_KEY, "POST", {"host": "api", "origin": "https://any.example"}, False),
    ],
)
def test_what_foreign_pages_send_is_refused(
    settings: Settings, method: str, headers: dict[str, str], allowed: bool
) -> None:
    async def nothing(*_: Any) -> None: ...

    fault = Origins(nothing, settings).find_fault(method, Headers(headers))
    assert (fault is None) is allowed, fault


@pytest.mark.parametrize(("chunks", "error"), [(0, SlowClient), (3, SlowClient), (40, BodyTooLarge)])
def test_a_body_has_time_by_what_has_arrived_not_by_what_may(chunks: int, error: type[Exception]) -> None:
    """However large a body may be, a client that sends nothing is not waited for."""
    left = chunks

    async def receive() -> dict[str, Any]:
        nonlocal left
        if not left:
            await asyncio.sleep(60)
        left -= 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    found = Request({"type": "http", "method": "PUT", "path": "/", "headers": []}, receive)
    found.scope["app"] = SimpleNamespace(state=SimpleNamespace(settings=Settings(API_SLOW_CLIENT_S="0.2")))
    limit = 20 * 2**20 if error is SlowClient else 30_000

    async def read() -> None:
        async with asyncio.timeout(5):
            await read_body(found, limit)

    with pytest.raises(error):
        asyncio.run(read())


class Fleet:
    """Answers checks of keys."""

    def __init__(self, valid: str) -> None:
        self.valid, self.asked = valid, 0

    async def ask(self, task: str, contract: object, kwargs: dict[str, str], answer: object) -> KeyView:
        self.asked += 1
        if kwargs["key_id"] != self.valid:
            raise NotFound("no such key")
        now = datetime.now(UTC)
        return KeyView(
            key_id=self.valid, user_id="ann", name="", operator=False, created_at=now, ended_at=None
        )


def test_a_stream_ends_with_the_key_in_its_cookie_and_keys_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, other = make_key(), make_key()
    fleet = Fleet(key.key_id)
    keys = Keys(cast(Asking, fleet))
    state = SimpleNamespace(settings=Settings(API_KEYS="true", API_RATE_PER_MINUTE="0"), keys=keys)

    def shown(text: str) -> Request:
        found = request(cookie=f"{COOKIE}={text}")
        found.scope["app"] = SimpleNamespace(state=state)
        return found

    async def story() -> None:
        who = await identify(shown(key.text))
        assert (who.user_id, who.how) == ("ann", "key")
        assert await is_allowed(shown(key.text), who)
        assert fleet.asked == 1
        for _ in range(3):
            with pytest.raises(NotAuthenticated):
                await identify(shown(other.text))
        assert fleet.asked == 2, "a refused key is remembered too"
        monkeypatch.setattr("api.callers.time.monotonic", lambda: time.perf_counter() + 1e9)
        fleet.valid = other.key_id
        assert not await is_allowed(shown(key.text), who)

    asyncio.run(story())


def test_it_listens_for_others_only_if_something_says_who_asks() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        assert is_loopback(host)
        check_address(Settings(API_HOST=host))
    for host in ("0.0.0.0", "::", "10.0.0.1", "films.example", ""):
        assert not is_loopback(host)
    with pytest.raises(InvalidRequest, match="API_HOST=0"):
        check_address(Settings(API_HOST="0.0.0.0"))
    check_address(Settings(API_HOST="0.0.0.0", API_KEYS="true"))
    check_address(Settings(API_HOST="0.0.0.0", OIDC_ISSUER="https://sign-in.example"))


def test_names_of_a_proxy_become_ids_that_differ() -> None:
    assert as_user_id("ann_1") == "ann_1"
    ids = {as_user_id(name) for name in ("ann@films.example", "ann@Films.example", "ann ", "é" * 80)}
    assert len(ids) == 4 and all(len(found) == 42 and found.startswith("u_") for found in ids)


def test_only_listed_proxies_are_trusted() -> None:
    assert is_trusted("10.1.2.3", "192.168.0.1, 10.0.0.0/8") and is_trusted("::1", "::1")
    for address in ("11.0.0.1", "", "testclient", "::2"):
        assert not is_trusted(address, "10.0.0.0/8,::1")
    assert not is_trusted("127.0.0.1", "")


def test_a_key_is_read_as_it_was_made() -> None:
    made = make_key()
    assert read_key(made.text) == made and made.secret_sha256 not in made.text
    for text in ("", "sf_x_y", made.text[:-1], made.text + "a", made.text.upper(), f" {made.text}"):
        assert read_key(text) is None


def test_the_policy_allows_inline_scripts_by_hash_only() -> None:
    html = '<script type="importmap">{"a": 1}</script><script src="/app.js"></script>'
    assert inline("script", html) == ["'sha256-+dhgKMbg1k4iUYb5astpM4ssWXZN95FiEH9cS7NNExA='"]
    policy = content_policy("https://s3.example")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert policy.count("https://s3.example") == 3
