"""The main job end to end: the sample video through real workers, Postgres and Redis."""

from __future__ import annotations

import json
from typing import Any

import jiwer
import jsonschema
import psycopg
import pytest

from shared.contracts import ScenePage
from shared.errors import NotFound
from tests.acceptance.lite.conftest import VIEWER
from tests.support.figures import RecordFigure
from tests.support.fleet import ROOT, Fleet, eventually

VIDEO = "sample"


@pytest.fixture(scope="module")
def page(indexed: Fleet) -> ScenePage:
    return indexed.client.scenes(VIDEO, VIEWER)


def test_every_cut_is_found_and_no_other(
    page: ScenePage, truth: dict[str, Any], record_figure: RecordFigure
) -> None:
    frame_s = 1 / truth["fps"]
    found = [(scene.start_s, scene.kind) for scene in page.scenes[1:]]
    record_figure("cuts of the sample found", f"{len(found)}, true {len(truth['cuts'])}")
    assert len(found) == len(truth["cuts"])
    for (start_s, kind), cut in zip(found, truth["cuts"], strict=True):
        if cut["kind"] == "hard":
            assert kind == "cut"
            assert abs(start_s - cut["time_s"]) <= frame_s + 1e-6
        else:
            assert kind == "gradual"
            assert abs(start_s - cut["time_s"]) <= cut["length_s"]


def test_word_error_rate_of_the_narration(
    page: ScenePage, truth: dict[str, Any], record_figure: RecordFigure
) -> None:
    said = " ".join(" ".join(scene["words"]) for scene in truth["scenes"])
    heard = " ".join(scene.transcript for scene in page.scenes)
    rate = jiwer.wer(said.lower(), heard.lower())
    record_figure("word error rate of the sample", f"{rate:.3f}")
    assert rate < 0.15


def test_searches_return_the_right_scene_first(indexed: Fleet, truth: dict[str, Any]) -> None:
    for search in truth["searches"]:
        answer = indexed.client.search(VIEWER, search["query"], mode=search["mode"])
        assert answer.hits[0].idx == search["scene"], (search, answer.hits[:3])
        assert answer.coverage.scenes == len(truth["scenes"])


def test_no_text_is_read_where_none_is_shown(indexed: Fleet, page: ScenePage) -> None:
    """The sample has no captions; its cups and engines look like zeros."""
    states = {stage.stage: stage.state for stage in indexed.client.status(VIDEO, VIEWER).stages}
    assert states["ocr"] in ("done", "reused")
    assert [scene.screen_text for scene in page.scenes] == [""] * len(page.scenes)


def test_rows_and_sidecars_are_complete_and_single(indexed: Fleet, page: ScenePage) -> None:
    embeddings = indexed.rows(
        "SELECT scene_id::text, count(*) AS n FROM embeddings WHERE user_id = %s GROUP BY scene_id", VIEWER
    )
    spoken = {scene.scene_id for scene in page.scenes if scene.transcript}
    assert {row["scene_id"] for row in embeddings} == spoken
    assert {row["n"] for row in embeddings} == {1}
    sidecars = {key for key in indexed.objects() if key.startswith(f"sidecars/{VIEWER}/")}
    assert sidecars == {scene.sidecar_key for scene in page.scenes}
    eventually(
        lambda: not [key for key in indexed.objects("tmp") if f"/{VIEWER}/" in key],
        within_s=60,
        what="the run's audio is swept",
    )


def test_sidecars_match_their_schema(indexed: Fleet, page: ScenePage) -> None:
    schema = json.loads((ROOT / "docs" / "sidecar.schema.json").read_text())
    for scene in page.scenes:
        assert scene.sidecar_key is not None
        document = json.loads(indexed.storage.get_bytes("sidecars", scene.sidecar_key))
        jsonschema.validate(document, schema)
        assert document["transcript"]["text"] == scene.transcript
        assert document["embeddings"]["vision"]["has_embedding"] is False
        assert "profile lite" in document["embeddings"]["vision"]["reason"]
        assert document["keyframes"]
        assert len({face["track"] for face in document["faces"]}) == scene.faces


@pytest.mark.parametrize("query", ["quantum physics", "tax return deadline", "a polar bear", "chess"])
def test_a_query_about_nothing_there_answers_nothing(indexed: Fleet, query: str) -> None:
    video = {"video_id": VIDEO}
    answer = indexed.client.search(VIEWER, query, **video)
    assert answer.hits == () and answer.next_cursor is None and answer.truncated is None
    spoken = answer.coverage.with_vectors
    assert answer.left_out == spoken and spoken
    whole = indexed.client.search(VIEWER, query, min_score=0.0, **video)
    assert len(whole.hits) == spoken and whole.left_out == 0


def test_other_users_see_nothing(indexed: Fleet) -> None:
    for mode in ("keyword", "semantic"):
        answer = indexed.client.search("stranger", "rocket", mode=mode)  # type: ignore[arg-type]
        assert answer.hits == () and answer.coverage.scenes == 0
    client = indexed.client
    for ask in (client.status, client.scenes, client.cancel, client.retry, client.rerun, client.delete):
        with pytest.raises(NotFound):
            ask(VIDEO, "stranger")


def test_the_index_serves_semantic_search(indexed: Fleet) -> None:
    with psycopg.connect(indexed.postgres_url) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            "EXPLAIN SELECT scene_id FROM embeddings WHERE model_id = 1"
            " ORDER BY (vec::halfvec(384)) <=> array_fill(0.1, ARRAY[384])::halfvec(384) LIMIT 5"
        ).fetchall()
    assert any("ix_embeddings_hnsw_m1" in row[0] for row in plan), plan
