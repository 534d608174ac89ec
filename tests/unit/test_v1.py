"""The drop-in addresses without a fleet: what they accept, refuse and send on, and the shapes of their errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from api.app import create_app
from api.asking import Asking
from api.batches import MAX_PART_BYTES
from api.dialects import UnknownModel
from api.limits import Slots
from api.served_models import ServedModels
from api.sounds import MAX_SOUND_BYTES, STRETCH_S, cut_at
from api.uploads import Uploads
from shared import routing
from shared.admission import Reservation
from shared.contracts import Segment, TextVectors, UnpackedVectors, Word
from shared.contracts.base import parse
from shared.errors import BadMedia, BrokerUnavailable, NotFound, Outage, Overloaded, ScenefleetError
from shared.nodes import HeldModel, NodeRecord
from shared.settings import Settings
from shared.storage import Storage

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
MODELS = {
    model.name: model
    for model in (
        HeldModel(name="words", kind="text", dim=2),
        HeldModel(name="pictures", kind="vision", dim=2),
        HeldModel(name="judge", kind="rerank", dim=None),
        HeldModel(name="ear", kind="asr", dim=None),
    )
}


class Served:
    async def list(self) -> list[HeldModel]:
        return list(MODELS.values())

    async def find(self, name: str | None, *kinds: str) -> HeldModel:
        for model in MODELS.values():
            if model.kind in kinds and name in (None, model.name):
                return model
        raise UnknownModel(f"no model {name}")


class Fleet:
    """Answers requests as the tasks do; the vector of a text is (its length, 1)."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.asked: list[tuple[str, dict[str, Any]]] = []
        #: Places in queues, for requests in parts.
        self.reserved: list[Reservation] = []
        self.error: ScenefleetError | None = None
        #: Seconds of sound, and its segments.
        self.sound: tuple[float, list[Segment]] = (3.0, [])

    def for_request(self, request: object) -> Fleet:
        return self

    def waiting(self, timeout_s: float) -> Fleet:
        return self

    @contextlib.asynccontextmanager
    async def admitted(self, task: str, kwargs: dict[str, Any], user_id: str) -> AsyncIterator[Fleet]:
        self.reserved.append(Reservation.of(task, kwargs, 30, user_id))
        yield self

    async def embed(self, task: str, contract: Any, kwargs: dict[str, Any]) -> Any:
        return await self.ask(task, contract, kwargs, UnpackedVectors)

    async def ask(self, task: str, contract: Any, kwargs: dict[str, Any], answer: Any) -> Any:
        parse(contract, kwargs)
        self.asked.append((task, kwargs))
        if self.error is not None:
            raise self.error
        told: dict[str, Any] = {"model": kwargs.get("model", "ear"), "revision": "1"}
        if task == routing.ASR_TRANSCRIBE:
            assert self.storage.exists("uploads", kwargs["storage_key"])
            length_s, segments = self.sound
            start_s, end_s = kwargs["start_s"], min(kwargs["end_s"], length_s)
            heard = [s for s in segments if start_s <= s.start_s < end_s]
            told |= {"language": "en", "text": "", "segments": [s.model_dump() for s in heard]}
            told["duration_s"] = end_s - start_s
        elif task == routing.TEXT_RERANK:
            told["scores"] = [len(text) / 100 for text in kwargs["documents"]]
        elif task == routing.VISION_EMBED_IMAGES:
            sizes = [len(self.storage.get_bytes("uploads", key)) for key in kwargs["storage_keys"]]
            told |= {"dim": 2, "vectors": [[float(size), 0.0] for size in sizes]}
        else:
            texts = kwargs["texts"]
            told |= {
                "dim": 2,
                "vectors": [[float(len(text)), 1.0] for text in texts],
                "tokens": [3] * len(texts),
            }
        return answer.model_validate(json.loads(json.dumps(told)), strict=False)


class Api:
    """The application in this process, over a fleet that is not there."""

    def __init__(self, folder: Path, **settings_given: str) -> None:
        given = {"REDIS_URL": "redis://127.0.0.1:1/0", "SCENEFLEET_USER": "ann", **settings_given}
        settings = Settings(STORAGE_ROOT=folder, **given)
        self.app: FastAPI = create_app(settings)
        state = self.app.state
        self.storage: Storage = state.storage
        self.storage.ensure_buckets()
        self.fleet = Fleet(self.storage)
        state.asking = self.fleet
        state.served_models = Served()
        state.large_bodies, state.sounds = Slots("bodies", 2, 2), Slots("sounds", 1, 1)
        state.uploads = Uploads(settings, self.storage, cast(Redis, None), cast(Asking, None))

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **request)

        return asyncio.run(run())

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.send("POST", path, json=body)

    def transcribe(self, data: bytes = b"sound", **fields: Any) -> httpx.Response:
        given = {"model": "ear", **fields}
        return self.send("POST", "/v1/audio/transcriptions", data=given, files={"file": ("a.wav", data)})

    @property
    def stored(self) -> list[str]:
        return [
            info.key for bucket in ("uploads", "tmp") for info in self.storage.list(cast(Any, bucket), "")
        ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Api:
    return Api(tmp_path_factory.mktemp("storage"))


@pytest.fixture
def api(made: Api) -> Api:
    """One for all tests, each of which leaves nothing stored."""
    made.app.state.asking = made.fleet = Fleet(made.storage)
    return made


def test_texts_come_back_as_vectors_in_their_order_in_both_encodings(api: Api) -> None:
    texts = ["a" * length for length in range(1, 151)]
    plain = api.post("/v1/embeddings", model="words", input=texts).json()
    assert [item["embedding"] for item in plain["data"]] == [[float(n), 1.0] for n in range(1, 151)]
    assert [item["index"] for item in plain["data"]] == list(range(150))
    assert plain["usage"] == {"prompt_tokens": 450, "total_tokens": 450} and plain["model"] == "words"
    assert [len(kwargs["texts"]) for _, kwargs in api.fleet.asked] == [64, 64, 22]
    # One place for all parts, of the user who asks.
    (place,) = api.fleet.reserved
    assert (place.queue, place.user_id, place.items) == ("text.online", "ann", 150)
    coded = api.post("/v1/embeddings", model="words", input="abc", encoding_format="base64").json()
    assert struct.unpack("<2f", base64.b64decode(coded["data"][0]["embedding"])) == (3.0, 1.0)


def test_long_texts_go_in_several_payloads_each_within_the_contract(api: Api) -> None:
    texts = ["é\n" * 5000] * 20  # 20 kB each as JSON
    assert len(api.post("/v1/embeddings", model="words", input=texts).json()["data"]) == 20
    sizes = [len(json.dumps(kwargs, ensure_ascii=False).encode()) for _, kwargs in api.fleet.asked]
    assert len(sizes) > 1 and max(sizes) <= MAX_PART_BYTES


def test_pictures_are_embedded_beside_texts_and_removed(api: Api) -> None:
    address = "data:image/png;base64," + base64.b64encode(PNG).decode()
    given = ["ab", {"image": address}, {"text": "abc"}, {"image": base64.b64encode(PNG + b"1").decode()}]
    data = api.post("/v1/embeddings", model="pictures", input=given).json()["data"]
    sizes = float(len(PNG)), float(len(PNG) + 1)
    assert [item["embedding"] for item in data] == [[2.0, 1.0], [sizes[0], 0.0], [3.0, 1.0], [sizes[1], 0.0]]
    asked = dict(api.fleet.asked)
    assert asked.keys() == {routing.VISION_EMBED_TEXTS, routing.VISION_EMBED_IMAGES}
    assert all(key.startswith("uploads/ann/") for key in asked[routing.VISION_EMBED_IMAGES]["storage_keys"])
    assert api.stored == []
    api.fleet.error = BadMedia("damaged")
    assert api.post("/v1/embeddings", model="pictures", input=given).status_code == 400
    assert api.stored == []


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"input": ""}, "input", "empty text"),
        ({"input": []}, "input", "input is empty"),
        ({"input": ["a", ""]}, "input", "input.1 is an empty text"),
        ({"input": [1, 2]}, "input", "tokens"),
        ({"input": [[1], [2]]}, "input", "tokens"),
        ({"input": [None]}, "input", "input.0 is no text"),
        ({"input": [{"text": "a", "image": "b"}]}, "input", "input.0 is no text"),
        ({"input": ["a"] * 1001}, "input", "1001 items, at most 1000"),
        ({"input": "a" * 70_000}, "input", "input.0 has 70004 bytes, at most"),
        ({"input": [{"image": base64.b64encode(PNG).decode()}]}, "input", "words embeds texts only"),
        ({"input": [{"image": "https://x/y.png"}]}, "input.0", "is an address"),
        ({"input": [{"image": "?"}]}, "input.0", "is not Base64"),
        ({"input": [{"image": "YWJj"}]}, "input.0", "is no JPEG, PNG or WebP"),
        ({"dimensions": 3}, "dimensions", "vectors of 2"),
        ({"dimensions": "2"}, "dimensions", "valid integer"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"late_chunking": True}, "late_chunking", "not permitted"),
        ({"model": ...}, "model", "model is missing"),
    ],
)  # fmt: skip
def test_what_can_not_be_embedded_is_refused_as_openai_does(
    api: Api, changes: dict[str, Any], param: str, says: str
) -> None:
    body = {"model": "words", "input": "a", **changes}
    answer = api.post("/v1/embeddings", **{name: value for name, value in body.items() if value is not ...})
    error = answer.json()["error"]
    assert answer.status_code == 400 and says in error["message"], error
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        param,
        "InvalidRequest",
    )
    assert api.fleet.asked == [] and api.stored == []


def test_a_length_that_is_the_model_s_is_accepted(api: Api) -> None:
    assert api.post("/v1/embeddings", model="words", input="a", dimensions=2).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (Overloaded("busy", retry_after_s=2.2), 429, "rate_limit_error", "rate_limit_exceeded"),
        (BrokerUnavailable("away"), 503, "server_error", "BrokerUnavailable"),
        (UnknownModel("no such"), 404, "invalid_request_error", "model_not_found"),
        (ScenefleetError("secret"), 500, "server_error", "ScenefleetError"),
    ],
)
def test_errors_of_the_fleet_have_each_client_s_shape(
    api: Api, error: ScenefleetError, status: int, kind: str, code: str
) -> None:
    api.fleet.error = error
    openai = api.post("/v1/embeddings", model="words", input="a")
    told = openai.json()["error"]
    assert (openai.status_code, told["type"], told["code"]) == (status, kind, code)
    assert openai.headers.get("retry-after") == {429: "3", 503: "2"}.get(status)
    assert "secret" not in openai.text
    cohere = api.post("/v2/rerank", model="judge", query="q", documents=["a"])
    assert cohere.status_code == status and cohere.json().keys() == {"message", "detail"}
    tei = api.post("/embed", inputs="a")
    assert tei.status_code == status and tei.json().keys() == {"error", "error_type"}


def test_requests_are_counted_by_route_and_status_and_refusals_by_reason(tmp_path: Path) -> None:
    api = Api(tmp_path)
    plain, in_flight = api.fleet.ask, []

    async def ask(*args: Any) -> Any:
        in_flight.append(counted()["scenefleet_api_in_flight"])
        return await plain(*args)

    def counted() -> dict[str, float]:
        """Name and labels' values, by the names of the labels -> value."""
        _, _, page = api.app.state.metrics.page()
        return {
            " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
        }

    api.fleet.ask = ask  # type: ignore[method-assign]
    assert api.post("/v1/embeddings", model="words", input="a").status_code == 200
    api.fleet.error = Overloaded("full", retry_after_s=1)
    assert api.post("/v1/embeddings", model="words", input="a").status_code == 429
    api.fleet.error = NotFound("no such video")
    for video in ("one", "another"):
        assert api.send("GET", f"/api/v1/videos/{video}").status_code == 404
    assert api.send("GET", "/v1/no/such").status_code == 404
    assert api.send("BREW", "/api/v1/me").status_code == 405
    found = counted()
    requests = {
        name: value for name, value in found.items() if name.startswith("scenefleet_api_requests_total")
    }
    assert requests == {
        "scenefleet_api_requests_total POST /v1/embeddings 200": 1,
        "scenefleet_api_requests_total POST /v1/embeddings 429": 1,
        # The route's path: a video's id is no part of a metric.
        "scenefleet_api_requests_total GET /api/v1/videos/{video_id} 404": 2,
        "scenefleet_api_requests_total GET none 404": 1,
        "scenefleet_api_requests_total other /api/v1/me 405": 1,
    }
    assert found["scenefleet_api_request_seconds_count /v1/embeddings"] == 2
    rejected = {
        name: value for name, value in found.items() if name.startswith("scenefleet_api_rejected_total")
    }
    assert rejected == {"scenefleet_api_rejected_total Overloaded": 1}
    assert set(in_flight) == {1} and found["scenefleet_api_in_flight"] == 0


def test_a_user_has_a_few_large_requests_at_once(api: Api) -> None:
    """One more is told when to come again; small ones need no place."""
    with api.app.state.large_bodies.hold("ann"), api.app.state.large_bodies.hold("ann"), api.app.state.sounds.hold("ann"):  # fmt: skip
        for refused in (
            api.post("/v1/embeddings", model="words", input=["a" * 60_000] * 5),
            api.transcribe(),
        ):
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert refused.json()["error"]["type"] == "rate_limit_error"
        assert api.post("/v1/embeddings", model="words", input="a").status_code == 200
    assert api.post("/v1/embeddings", model="words", input=["a" * 60_000] * 5).status_code == 200
    assert api.stored == []


def test_what_is_no_route_or_no_json_is_told_in_each_client_s_shape(api: Api) -> None:
    for method, path, status in (
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/v1/models/gpt", 404),
    ):
        answer = api.send(method, path)
        assert answer.status_code == status and answer.json()["error"]["message"], path
    assert api.send("POST", "/v2/chat").json()["message"]
    assert api.send("GET", "/embed").json()["error_type"] == "validation"
    for body, kind, status in (
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"[" * 100_000, "application/json", 400),
        (b" " * (17 * 2**20), "application/json", 413),
    ):
        answer = api.send("POST", "/v1/embeddings", content=body, headers={"content-type": kind})
        assert answer.status_code == status and answer.json()["error"]["message"], (body[:10], answer.text)
    foreign = api.send("POST", "/v1/embeddings", json={}, headers={"origin": "https://evil.example"})
    assert foreign.status_code == 403 and foreign.json()["error"]["type"] == "invalid_request_error"


def test_a_key_is_asked_for_before_the_body_is_read(tmp_path: Path) -> None:
    api = Api(tmp_path, API_KEYS="true")
    for path in ("/v1/embeddings", "/v1/audio/transcriptions"):
        answer = api.send("POST", path, content=b"x" * 1000)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (401, "invalid_api_key"), answer.text
        assert "www-authenticate" in answer.headers
    assert api.send("GET", "/v1/models").status_code == 401
    assert api.post("/v2/rerank").json().keys() == {"message", "detail"}
    assert api.stored == []


def test_models_are_listed_by_what_they_are_for(api: Api) -> None:
    listed = api.send("GET", "/v1/models").json()
    assert {model["id"]: model["kind"] for model in listed["data"]} == {
        "words": "text", "pictures": "vision", "judge": "rerank", "ear": "asr",
    }  # fmt: skip
    one = api.send("GET", "/v1/models/words").json()
    assert one in listed["data"] and (one["object"], one["dimensions"]) == ("model", 2)
    assert api.post("/v1/embeddings", model="judge", input="a").status_code == 404


def node(family: str, *held: HeldModel) -> NodeRecord:
    return NodeRecord(name=family, family=family, state="ready", error="", pid=1, models=(), held=held)


def test_callers_name_active_models_and_those_that_the_operator_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = HeldModel(name="used", kind="text", dim=3, active=False)
    records = {"t": node("text", MODELS["words"], used), "a": node("asr", MODELS["ear"])}
    monkeypatch.setattr("api.served_models.nodes.read_nodes", lambda url: records)
    clock = [0.0]
    monkeypatch.setattr("api.served_models.time.monotonic", lambda: clock[0])

    async def story() -> None:
        plain = ServedModels(Settings(REDIS_URL="redis://x"))
        more = ServedModels(Settings(REDIS_URL="redis://x", REQUEST_MODELS="used, unused"))
        assert [model.name for model in await plain.list()] == ["ear", "words"]
        assert [model.name for model in await more.list()] == ["ear", "used", "words"]
        for name, kinds in (("used", "text"), ("ear", "text"), ("none", "text"), (None, "rerank")):
            with pytest.raises(UnknownModel):
                await plain.find(name, kinds)
        assert await plain.find(None, "text") == await more.find("words", "vision", "text") == MODELS["words"]
        assert await more.find("used", "text", "vision") == used
        assert (await more.find("unused", "text", "vision")).kind == "text"
        with pytest.raises(UnknownModel):
            await more.find("unused", "asr")
        with pytest.raises(Outage, match="no node of vision is up"):
            await plain.find("words", "vision")
        # A node that is away for a while is no reason to say that its model does not exist.
        del records["t"]
        clock[0] = 300
        assert await plain.find("words", "text") == MODELS["words"]
        clock[0] = 700
        assert [model.name for model in await plain.list()] == ["ear"]
        with pytest.raises(Outage, match="no node of text is up"):
            await plain.find("words", "text")

    asyncio.run(story())


def test_documents_are_sorted_and_shown_as_each_client_expects(api: Api) -> None:
    documents = ["aa", {"text": "aaaa"}, "a", "aaa"]
    v1 = api.post("/v1/rerank", model="judge", query="q", documents=documents, top_n=2).json()
    assert [(found["index"], found["document"]["text"]) for found in v1["results"]] == [
        (1, "aaaa"),
        (3, "aaa"),
    ]
    v2 = api.post("/v2/rerank", model="judge", query="q", documents=documents).json()
    assert v2["results"][0] == {"index": 1, "relevance_score": 0.04}
    tei = api.post("/rerank", query="q", texts=["a", "aaa", "aa"], return_text=True).json()
    assert [(found["index"], found["text"]) for found in tei] == [(1, "aaa"), (2, "aa"), (0, "a")]
    api.fleet.asked.clear()
    many = api.post("/v2/rerank", model="judge", query="q", documents=["a" * n for n in range(1, 131)]).json()
    assert [found["index"] for found in many["results"]] == list(range(129, -1, -1))
    assert len(api.fleet.asked) == 3
    assert api.post("/rerank", query="q", texts=[]).status_code == 422
    assert api.post("/rerank", query="q", texts=["a"], raw_scores=True).status_code == 422
    assert api.post("/v2/rerank", model="judge", query="", documents=["a"]).status_code == 400


def test_cohere_and_tei_embed(api: Api) -> None:
    v1 = api.post("/v1/embed", model="words", texts=["a", "ab"], input_type="search_query").json()
    assert (v1["response_type"], v1["embeddings"]) == ("embeddings_floats", [[1.0, 1.0], [2.0, 1.0]])
    v2 = api.post("/v2/embed", model="words", texts=["ab"], input_type="search_query", embedding_types=["float", "base64"]).json()  # fmt: skip
    assert v2["embeddings"]["float"] == [[2.0, 1.0]] and v2["embeddings"]["base64"]
    image = "data:image/png;base64," + base64.b64encode(PNG).decode()
    seen = api.post("/v2/embed", model="pictures", images=[image], input_type="image").json()
    assert seen["embeddings"]["float"] == [[float(len(PNG)), 0.0]]
    assert api.post("/v2/embed", model="words", input_type="x").status_code == 400
    assert api.post("/v2/embed", model="words", texts=["a"], embedding_types=["int8"]).status_code == 400
    assert api.post("/embed", inputs=["a", "ab"]).json() == [[1.0, 1.0], [2.0, 1.0]]
    assert api.post("/embed", inputs="a").json() == [[1.0, 1.0]]
    similar = api.post("/similarity", inputs={"source_sentence": "a", "sentences": ["ab", "abc"]})
    assert similar.json() == [3.0, 4.0]
    assert api.post("/embed", inputs=[{"text": "a"}]).status_code == 422
    refused = api.post("/embed", inputs=["a"], normalize=False)
    assert refused.status_code == 422 and refused.json()["error_type"] == "validation"


def said(*times: tuple[float, float]) -> list[Segment]:
    """Segments "w0 w0", "w1 w1", ... between these times."""
    found = []
    for number, (start_s, end_s) in enumerate(times):
        middle_s = (start_s + end_s) / 2
        words = tuple(
            Word(start_s=a, end_s=b, text=f"w{number}", probability=0.5)
            for a, b in ((start_s, middle_s), (middle_s, end_s))
        )
        found.append(
            Segment(start_s=start_s, end_s=end_s, text=f"w{number} w{number}", words=words, rejected=None)
        )
    return found


def test_a_sound_is_transcribed_in_every_form_and_removed(api: Api) -> None:
    api.fleet.sound = (3.0, said((0.0, 1.0), (2.0, 3.0)))
    assert api.transcribe().json() == {"text": "w0 w0 w1 w1", "usage": {"type": "duration", "seconds": 3}}
    assert api.transcribe(response_format="text").text == "w0 w0 w1 w1\n"
    srt = api.transcribe(response_format="srt")
    assert srt.text.startswith("1\n00:00:00,000 --> ") and srt.headers["content-type"].startswith(
        "application/x-subrip"
    )
    assert api.transcribe(response_format="vtt").text.startswith("WEBVTT\n\n00:00:00.000 --> ")
    both = api.transcribe(
        response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]}
    ).json()
    assert (both["language"], both["duration"], len(both["segments"]), len(both["words"])) == (
        "en",
        3.0,
        2,
        4,
    )
    assert both["words"][2] == {"word": "w1", "start": 2.0, "end": 2.5}
    assert both["segments"][1]["start"] == 2.0 and both["segments"][1]["avg_logprob"] == pytest.approx(
        -0.693, abs=1e-3
    )
    assert "words" not in api.transcribe(response_format="verbose_json").json()
    assert api.stored == []


def test_a_long_sound_is_heard_in_stretches_and_nothing_twice(api: Api) -> None:
    times = [(float(n), n + 0.8) for n in range(0, 100, 2)]
    api.fleet.sound = (99.0, said(*times))
    found = api.transcribe(response_format="verbose_json").json()
    assert [segment["start"] for segment in found["segments"]] == [start for start, _ in times]
    assert found["duration"] == pytest.approx(99.0)
    stretches = [(kwargs["start_s"], kwargs["end_s"]) for _, kwargs in api.fleet.asked]
    assert all(end - start == pytest.approx(STRETCH_S) for start, end in stretches) and len(stretches) > 3
    api.fleet.sound = (2000.0, [])
    refused = api.transcribe()
    assert refused.status_code == 413 and "longer than 1500 s" in refused.json()["error"]["message"]


def test_a_stretch_ends_in_silence() -> None:
    assert cut_at(said((0, 18), (20, 25), (25.5, 30)), 0, 30) == 19
    assert cut_at(said((0, 5), (12, 28)), 0, 30) == 29
    assert cut_at(said((0, 30)), 0, 30) == pytest.approx(29.9)
    assert cut_at([], 0, 30) == pytest.approx(29.9)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": ""}, "model", "model is missing"),
        ({"response_format": "xml"}, "response_format", "'xml' is not known"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities", "needs response_format=verbose_json"),
        ({"timestamp_granularities[]": "letter"}, "timestamp_granularities", "'letter' is not known"),
        ({"stream": "true"}, "stream", "is not supported"),
        ({"temperature": "warm"}, "temperature", "is no number"),
        ({"prompt": "names"}, "prompt", "'prompt' is not supported"),
        ({"prompt": "x" * 20_000}, "prompt", "more than 16384 bytes"),
    ],
)  # fmt: skip
def test_what_can_not_be_transcribed_is_refused_and_nothing_is_left(
    api: Api, fields: dict[str, Any], param: str, says: str
) -> None:
    answer = api.transcribe(**fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]
    assert api.stored == [] and api.fleet.asked == []


def test_a_sound_that_is_too_large_empty_or_damaged_leaves_nothing(api: Api) -> None:
    assert api.transcribe(b"x" * (MAX_SOUND_BYTES + 1)).status_code == 413
    assert api.transcribe(b"").json()["error"]["param"] == "file"
    assert api.transcribe(model="words").json()["error"]["code"] == "model_not_found"
    api.fleet.error = BadMedia("uploads/ann/queries/x: no sound")
    assert api.transcribe().status_code == 400
    for content in (b"", b"--b\r\n", b"no form", b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc"):  # fmt: skip
        headers = {"content-type": "multipart/form-data; boundary=b"}
        broken = api.send("POST", "/v1/audio/transcriptions", content=content, headers=headers)
        assert broken.status_code == 400, broken.text
    assert api.send("POST", "/v1/audio/transcriptions", json={}).status_code == 415
    assert api.stored == []


def test_a_client_that_goes_while_it_sends_leaves_nothing(api: Api) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * (2 * 2**20)
    coming: list[dict[str, Any]] = [
        {"type": "http.request", "body": head, "more_body": True},
        {"type": "http.disconnect"},
    ]
    seen: list[list[str]] = []

    async def receive() -> dict[str, Any]:
        seen.append(api.stored)
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/audio/transcriptions", "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=b")],
        "scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": "",
    }  # fmt: skip
    run = cast(Callable[..., Awaitable[None]], api.app)
    asyncio.run(cast(Any, run(scope, receive, send)))
    assert any(seen), "nothing was stored while it came"
    assert api.stored == []


def test_vectors_may_have_tokens_and_need_not() -> None:
    old = {"model": "m", "revision": "1", "dim": 1, "vectors": [[1.0]]}
    assert TextVectors.model_validate_json(json.dumps(old)).tokens is None
