"""What comes from outside is checked by field and value, and nothing else than InvalidRequest comes of it."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from shared.contracts import (
    MAX_QUERY_CHARS,
    Contract,
    DetectFaces,
    EmbedImages,
    EmbedTexts,
    EncodeTexts,
    ListScenes,
    MakeSubtitles,
    ProcessVideo,
    RerankDocuments,
    RerunVideo,
    SearchScenes,
    ShowTimeline,
    TextVectors,
    TranscribeAudio,
    UnpackedVectors,
    VideoRef,
    parse,
)
from shared.errors import InvalidRequest

JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=80),
        st.integers(min_value=2**62, max_value=2**200)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
GOOD: dict[type[Contract], dict[str, Any]] = {
    VideoRef: {"video_id": "v-1_A", "user_id": "u"},
    ProcessVideo: {"video_id": "v", "user_id": "u", "storage_key": "uploads/u/v/a.mp4", "priority": 9},
    RerunVideo: {"video_id": "v", "user_id": "u", "stages": ["text", "face"]},
    ListScenes: {"video_id": "v", "user_id": "u", "after_idx": 3, "limit": 1000},
    ShowTimeline: {"video_id": "v", "user_id": "u", "after_idx": 3, "limit": 500},
    MakeSubtitles: {"video_id": "v", "user_id": "u", "format": "vtt"},
    EmbedTexts: {"texts": ["a", ""]},
    EncodeTexts: {"texts": ["a", ""], "lexical": True},
    RerankDocuments: {"query": "a hot drink", "documents": ["a", ""]},
    DetectFaces: {"user_id": "u", "storage_keys": ["faces/u/p/photo_1.jpg"], "vectors": True},
    EmbedImages: {"user_id": "u", "storage_keys": ["uploads/u/a.jpg", "keyframes/u/v/1.0/0.jpg"]},
    TranscribeAudio: {"user_id": "u", "storage_key": "uploads/u/a.wav", "start_s": 1, "end_s": 2.5},
    SearchScenes: {"user_id": "u", "query": "a hot drink", "mode": "semantic", "limit": 5, "video_id": "v"},
    TextVectors: {"model": "m", "revision": "r", "dim": 2, "vectors": [[0.5, 1]], "lexical": [{"7": 0.5}]},
}
FIELDS = sorted({name for contract in GOOD for name in contract.model_fields})


def refusal(contract: type[Contract], payload: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(contract, payload)
    return str(caught.value)


@pytest.mark.parametrize("contract", GOOD)
def test_good_requests_pass_and_come_back_the_same_frozen_and_closed(contract: type[Contract]) -> None:
    parsed = parse(contract, GOOD[contract])
    assert parse(contract, json.loads(parsed.model_dump_json())) == parsed
    assert parsed.model_dump(mode="json").items() >= {"version": 1}.items()
    with pytest.raises(ValueError, match="frozen"):
        setattr(parsed, "version", 1)  # noqa: B010 - a type checker sees it too
    assert "colour='red'" in refusal(contract, {**GOOD[contract], "colour": "red"})
    assert refusal(contract, {**GOOD[contract], "version": 2}).startswith("version=2")


@pytest.mark.parametrize("contract", GOOD)
@given(payload=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=30), JSON, max_size=6))
def test_payloads_are_accepted_or_refused_by_name(contract: type[Contract], payload: dict[str, Any]) -> None:
    try:
        parsed = parse(contract, payload)
    except InvalidRequest as error:
        message = str(error)
        assert message.isprintable(), message
        assert 10 < len(message) < 300
    else:
        assert isinstance(parsed, contract)


@pytest.mark.parametrize("contract", GOOD)
@given(data=st.data())
def test_one_wrong_field_is_named(contract: type[Contract], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(GOOD[contract])))
    wrong = data.draw(
        st.sampled_from([{"a": 1}, math.nan, math.inf, b"bytes", 1.5, [[[]]], "\x00", "\ud800"])
    )
    try:
        parse(contract, {**GOOD[contract], name: wrong})
    except InvalidRequest as error:
        message = str(error)
        assert message.startswith((name, "the payload of")), message
    else:
        is_query = contract is SearchScenes and name == "query" and isinstance(wrong, str)
        is_time = contract is TranscribeAudio and name in ("start_s", "end_s") and wrong == 1.5
        assert is_query or is_time


@settings(max_examples=300)
@given(value=st.text(max_size=70))
def test_an_id_is_letters_digits_dash_and_underscore(value: str) -> None:
    good = 1 <= len(value) <= 64 and all(
        character.isascii() and (character.isalnum() or character in "_-") for character in value
    )
    try:
        parse(VideoRef, {"video_id": value, "user_id": "u"})
    except InvalidRequest:
        assert not good
    else:
        assert good


@given(
    query=st.text(
        alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=MAX_QUERY_CHARS
    )
)
def test_a_query_of_the_greatest_length_fits_in_any_script(query: str) -> None:
    whole = (query * MAX_QUERY_CHARS)[:MAX_QUERY_CHARS]
    assert parse(SearchScenes, {"user_id": "u" * 64, "query": whole, "video_id": "v" * 64}).query == whole


@pytest.mark.parametrize(
    ("contract", "payload", "says"),
    [
        (VideoRef, {}, "video_id is missing: send it"),
        (VideoRef, {"video_id": "v"}, "user_id is missing: send it"),
        (VideoRef, {"video_id": 1, "user_id": "u"}, "video_id=1 is not acceptable: Input should be a valid string"),
        (VideoRef, [], "the payload of VideoRef is a list: send an object with named fields"),
        (VideoRef, None, "the payload of VideoRef is a NoneType: send an object with named fields"),
        (VideoRef, {"video_id": {1}}, "the payload of VideoRef is not plain JSON: send strings and numbers"),
        (VideoRef, {"video_id": 10**5000}, "the payload of VideoRef is not plain JSON: send strings and numbers"),
        (EmbedTexts, {"texts": ["x" * 2_100_000]},
         "the payload of EmbedTexts has 2100015 bytes, more than 2097152: send storage keys, not data"),
        (EmbedTexts, {"texts": "x"}, "texts='x' is not acceptable: Input should be a valid array"),
        (EmbedImages, {"user_id": "u", "storage_keys": ["k"] * 1001},
         "storage_keys=['k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', 'k', '... is not"
         " acceptable: Tuple should have at most 1000 items after validation, not 1001"),
        (EmbedImages, {"user_id": "u", "storage_keys": ["k" * 513]},
         f"storage_keys.0='{'k' * 76}... is not acceptable: Value should have at most 512 items after validation, not 513"),
        (DetectFaces, {"user_id": "u", "storage_keys": ["faces/u/a.jpg"], "vectors": "yes"},
         "vectors='yes' is not acceptable: Input should be a valid boolean"),
        (EmbedImages, {"user_id": "../u", "storage_keys": []},
         "user_id='../u' is not acceptable: Value error, must match [A-Za-z0-9_-]{1,64}"),
        (TextVectors, {"model": "m", "revision": "r", "dim": 1, "vectors": [[math.nan]]},
         "vectors.0.0=nan is not acceptable: Input should be a finite number"),
        (TextVectors, {"model": "m", "revision": "r", "dim": 1, "vectors": [], "lexical": [{"cup": 0.5}]},
         "lexical.0.cup.[key]='cup' is not acceptable: String should match pattern '^[0-9]{1,9}$'"),
        (RerankDocuments, {"query": "", "documents": []},
         "query='' is not acceptable: String should have at least 1 character"),
        (SearchScenes, {"user_id": "u", "query": "x", "indexed_from": "0.5"},
         "indexed_from='0.5' is not acceptable: Value error, must be a date and time, as in 2026-01-31T12:00:00Z"),
        (SearchScenes, {"user_id": "u", "query": "x", "indexed_to": 5},
         "indexed_to=5 is not acceptable: Value error, must be a date and time, as in 2026-01-31T12:00:00Z"),
        (RerankDocuments, {"query": "q", "documents": ["d"] * 1001},
         "documents=" + repr(["d"] * 1001)[:77] + "... is not acceptable: Tuple should have at most 1000 items after"
         " validation, not 1001"),
    ],
)  # fmt: skip
def test_the_sentence(contract: type[Contract], payload: Any, says: str) -> None:
    assert refusal(contract, payload) == says


@given(name=st.text(max_size=200) | st.text(alphabet="\n\u202e\x00\ud800", min_size=1))
def test_a_field_of_any_name_is_refused_in_one_sentence(name: str) -> None:
    message = refusal(VideoRef, {**GOOD[VideoRef], **{f"x{name}": 1}})
    assert message.isprintable() and len(message) < 200


def test_nesting_without_end_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert "not plain JSON" in refusal(VideoRef, {"video_id": nested})
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    assert "not plain JSON" in refusal(VideoRef, circle)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T14:00:00+02:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31)),
    ],
)
def test_a_date_and_time_is_read(text: str, moment: datetime) -> None:
    request = parse(SearchScenes, {"user_id": "u", "query": "x", "indexed_from": text})
    assert request.indexed_from == moment


def test_vectors_are_read_from_base64() -> None:
    answer = {"model": "m", "revision": "r", "dim": 2, "vectors": [], "packed": ["AAAAPwAAgL8=", None]}
    found = UnpackedVectors.model_validate(answer, strict=False)
    assert (found.vectors, found.packed) == (((0.5, -1.0), None), None)
    with pytest.raises(ValueError, match="base64"):
        UnpackedVectors.model_validate({**answer, "packed": ["no base64!"]}, strict=False)
