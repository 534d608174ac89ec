"""Two API processes behind a round-robin proxy are one API: no request needs the process that answered the one before."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.api import Api
from tests.support.events import Stream
from tests.support.fleet import ENDED, Fleet, eventually
from tests.support.oidc import AUDIENCE, PAGE, Provider, sign_in
from tests.support.round_robin import RoundRobin

TUS = {"Tus-Resumable": "1.0.0"}
PIECE_BYTES = 2 * 1024


class Replicas:
    """The proxy, the processes behind it, and who may ask them."""

    def __init__(self, proxy: RoundRobin, apis: tuple[Api, Api], provider: Provider, key: str) -> None:
        self.proxy, self.apis, self.provider, self.key = proxy, apis, provider, key

    def client(self, **headers: str) -> httpx.Client:
        """A client whose requests take turns: each has a connection of its own."""
        alone = {"Connection": "close"}
        return httpx.Client(base_url=f"{self.proxy.url}/api/v1", headers=alone | headers, timeout=60)


@pytest.fixture(scope="module")
def replicas(fleet: Fleet) -> Iterator[Replicas]:
    with ExitStack() as opened:
        proxy = RoundRobin()
        opened.callback(proxy.close)
        provider = Provider([f"{proxy.url}/api/v1/session/oidc/callback"], secret=None)
        opened.callback(provider.stop)
        provider.start()
        settings = {"API_KEYS": "true", "OIDC_ISSUER": provider.url, "OIDC_CLIENT_ID": PAGE}
        settings |= {"OIDC_AUDIENCE": AUDIENCE, "API_PUBLIC_URL": proxy.url}
        first, second = (Api(fleet, f"api-replica-{number}", **settings) for number in (1, 2))
        for api in (first, second):
            opened.callback(api.stop)
            api.start()
            proxy.ports.append(api.port)
        made = fleet.command("keys", "add", "--user", "twin", "--json")
        yield Replicas(proxy, (first, second), provider, json.loads(made.stdout)["key"])


@pytest.fixture
def twin(replicas: Replicas) -> Iterator[httpx.Client]:
    """User "twin" by a key. The test's requests have to reach both processes."""
    before = len(replicas.proxy.taken)
    with replicas.client(Authorization=f"Bearer {replicas.key}") as client:
        yield client
    assert len(set(replicas.proxy.taken[before:])) == 2


def ended(client: httpx.Client, video_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"/videos/{video_id}").json()
        return found if found["state"] in ENDED else None

    found = eventually(look, within_s=120, what=f"video {video_id} has ended")
    assert found is not None
    return found


def test_an_upload_goes_on_at_either_and_a_request_is_done_once(
    replicas: Replicas, twin: httpx.Client, silent: Path
) -> None:
    data = silent.read_bytes()
    name = base64.b64encode(b"replicas").decode()
    begun = twin.post(
        "/uploads",
        headers={
            **TUS,
            "Upload-Length": str(len(data)),
            "Upload-Metadata": f"video_id {name},filename {name}",
        },
    )
    assert begun.status_code == 201, begun.text
    upload = twin.base_url.copy_with(path=httpx.URL(begun.headers["location"]).path)
    offsets = range(0, len(data), PIECE_BYTES)
    for offset in offsets:
        sent = twin.patch(
            upload,
            content=data[offset : offset + PIECE_BYTES],
            headers={**TUS, "Upload-Offset": str(offset), "Content-Type": "application/offset+octet-stream"},
        )
        assert sent.status_code == 204, sent.text
    turns = replicas.proxy.taken[-len(offsets) :]
    assert len(turns) > 3 and all(one != other for one, other in pairwise(turns))
    assert ended(twin, "replicas")["state"] == "indexed"
    named = {"Idempotency-Key": "twice"}
    reruns = [twin.post("/videos/replicas/rerun", headers=named) for _ in range(2)]
    assert [answer.status_code for answer in reruns] == [202, 202]
    assert reruns[0].json() == reruns[1].json()
    assert ended(twin, "replicas")["run"] == 2
    assert twin.get("/search", params={"video_ids": "replicas", "q": "picture"}).status_code == 200


def test_events_go_on_at_the_other_process_when_one_is_killed(
    replicas: Replicas, twin: httpx.Client, fleet: Fleet, silent: Path
) -> None:
    shown = {"Authorization": f"Bearer {replicas.key}"}
    fleet.index(silent, "before", "twin")
    stream = Stream(replicas.proxy.url, headers=shown)
    stream.wait(lambda events: events, "a snapshot")
    serving = replicas.proxy.taken[-1]
    (killed,) = (api for api in replicas.apis if api.port == serving)
    killed.kill()
    stream.wait_end()
    try:
        fleet.index(silent, "meanwhile", "twin")
        again = Stream(replicas.proxy.url, last_id=stream.last_id, headers=shown)
        assert replicas.proxy.taken[-1] != serving
        again.wait_state("meanwhile", "indexed")
        assert "snapshot" not in {event.name for event in again.events}, "only what has changed"
        again.close()
    finally:
        killed.start()
    assert [twin.get("/me").status_code for _ in range(4)] == [200] * 4


def test_a_sign_in_is_known_to_both_and_shows_ones_own_only(replicas: Replicas, twin: httpx.Client) -> None:
    with replicas.client() as browser:
        begin = f"{replicas.proxy.url}/api/v1/session/oidc?next=/library"
        back = sign_in(browser, begin, "twin", until=f"{replicas.proxy.url}/api/v1/session/oidc/callback")
        assert browser.get(back).headers["location"] == "/library"
        assert [browser.get("/me").json()["how"] for _ in range(4)] == ["oidc"] * 4
        # The user of the key is the same one.
        own = {video["video_id"] for video in browser.get("/videos").json()["videos"]}
        assert own == {video["video_id"] for video in twin.get("/videos").json()["videos"]} and own
    token = replicas.provider.tokens("stranger")["access_token"]
    with replicas.client(Authorization=f"Bearer {token}") as stranger:
        for _ in range(2):
            assert stranger.get("/videos").json()["videos"] == []
            assert {stranger.get(f"/videos/{video_id}").status_code for video_id in own} == {404}
    with replicas.client() as browser:
        assert browser.post("/session", json={"key": replicas.key}).status_code == 204
        assert [browser.get("/me").json()["how"] for _ in range(4)] == ["key"] * 4
