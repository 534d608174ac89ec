"""A labelled set made here: what each mode has to find first, by the vectors of real nodes.

The tiny models understand nothing, but what is alike for them is known: the labels of meaning and sight are computed
from what their own towers say, outside of search. The two have the same length of vector, so that one model's vector
against the other's column would go unnoticed by anything but its order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from sqlalchemy.orm import Session

from db import scenes as store
from db.engine import make_engine
from db.ids import person_key
from db.people.registry import create
from db.tables import ScenePerson, Video
from db.vectors import ensure_index, ensure_model, write_embeddings, write_lexical
from shared.contracts import CreatePerson, SearchAnswer, TextVectors
from tests.checkpoints.xlm_roberta import write_tokenizer
from tests.support.clips import picture
from tests.support.fleet import Fleet
from tests.support.scenes import publish_scene

USER, OTHER = "mine", "theirs"
SIZE = (320, 180)


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A scene of the set; keyframes are pictures by seed."""

    video: str
    idx: int
    words: str
    seen: tuple[int, ...]
    #: How much the pictures are darkened: the same seed seen in another light.
    dark: int = 0
    screen: str = ""
    people: dict[str, float] = field(default_factory=dict)
    user: str = USER

    @property
    def name(self) -> tuple[str, int]:
        return self.video, self.idx

    @property
    def keys(self) -> list[str]:
        folder = f"keyframes/{self.user}/{self.video}/1.1"
        return [f"{folder}/{self.idx:06d}_{ordinal}.jpg" for ordinal in range(len(self.seen))]

    @property
    def id(self) -> str:
        return str(store.scene_id(self.video, 1, self.idx))


SHOTS = (
    Shot(video="harbour", idx=0, words="a white boat sails on the sea in the wind", seen=(1, 2), people={"ann": 0.9}),
    Shot(video="harbour", idx=1, words="the old man looks at the water", seen=(3,), people={"bob": 0.7}),
    Shot(video="harbour", idx=2, words="music near the river at night", seen=(4, 5, 6)),
    Shot(video="harbour", idx=3, words="", seen=(7,), screen="Harbour closed 4711"),
    Shot(video="kitchen", idx=0, words="the woman cooks with milk and drinks coffee", seen=(8,), people={"ann": 0.8, "bob": 0.9}),
    Shot(video="kitchen", idx=1, words="a quick brown fox jumps over the lazy dog", seen=(9, 10)),
    Shot(video="kitchen", idx=2, words="coffee in the morning and coffee at night", seen=(11,), screen="Coffee menu"),
    Shot(video="street", idx=0, words="the red bus goes slowly into the town", seen=(12,), people={"bob": 0.6}),
    Shot(video="street", idx=1, words="children walk under the tree with a dog", seen=(13,), people={"ann": 0.65}),
    Shot(video="street", idx=2, words="the rocket stands near the mountain", seen=(14, 15)),
    # The same places in another light, silent: what is like them without a word.
    Shot(video="street", idx=3, words="", seen=(1,), dark=3),
    Shot(video="street", idx=4, words="", seen=(13,), dark=3),
    # Another user has all of it, too.
    Shot(video="foreign", idx=0, words="a white boat sails on the sea in the wind", seen=(1, 2), user=OTHER),
    Shot(video="foreign", idx=1, words="coffee in the morning and coffee at night", seen=(11,), screen="Coffee menu 4711", user=OTHER),
)  # fmt: skip
MINE = tuple(shot for shot in SHOTS if shot.user == USER)


def encoded(seed: int, dark: int = 0, quality: int = 95) -> bytes:
    pixels = np.clip(picture(seed, *SIZE).astype(np.int16) - dark, 0, 255).astype(np.uint8)
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return data.tobytes()


@pytest.fixture(scope="module")
def labelled(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """The set, indexed by the very nodes that are asked."""
    vocabulary = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    engine = make_engine(fleet.postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with Session(engine) as session, session.begin():
            for shot in SHOTS:
                write(fleet, session, shot, vocabulary)
        with Session(engine) as session, session.begin():
            text, vision = fleet.client.embed_texts(["x"]), fleet.client.embed_vision_texts(["x"])
            models = [row_of(session, text, "text"), row_of(session, vision, "vision")]
        # Not beside an open transaction: it would wait for that one.
        for model in models:
            ensure_index(engine, model)
    finally:
        engine.dispose()
    return fleet


def row_of(session: Session, vectors: TextVectors, family: str) -> Any:
    model: Any = {"name": vectors.model, "revision": vectors.revision, "dim": vectors.dim}
    return ensure_model(session, family=family, metric="cosine", **model)


def write(fleet: Fleet, session: Session, shot: Shot, vocabulary: int) -> None:
    """Publish a scene with the vectors that the nodes give for it."""
    if session.get(Video, shot.video) is None:
        published: Any = {"storage_key": "k", "run": 1, "published_run": 1, "state": "indexed"}
        session.add(Video(video_id=shot.video, user_id=shot.user, **published))
        session.flush()
    keyframes = []
    for ordinal, (seed, key) in enumerate(zip(shot.seen, shot.keys, strict=True)):
        fleet.storage.put_bytes("sidecars", key, encoded(seed, shot.dark), "image/jpeg")
        size = dict(zip(("width", "height"), SIZE, strict=True))
        keyframes.append({"ordinal": ordinal, "key": key, "ts_s": 10.0 * shot.idx, **size})
    scene = store.scene_id(shot.video, 1, shot.idx)
    rows = {
        "scene_id": scene, "video_id": shot.video, "user_id": shot.user, "split_version": 1, "idx": shot.idx,
        "start_s": 10.0 * shot.idx, "end_s": 10.0 * shot.idx + 10, "kind": "cut", "keyframes": keyframes,
    }  # fmt: skip
    session.add(store.Scene(**rows))
    session.flush()
    words = store.Words(shot.words, "en" if shot.words else None)
    made = {"text": 1, "vision": 1, "face": 1, "ocr": 1}
    publish_scene(session, scene, words, "sidecars/none", made, shot.screen)
    looks = fleet.client.embed_images(shot.user, shot.keys)
    vectors = [(scene, ordinal, np.array(vector, np.float32)) for ordinal, vector in enumerate(looks.vectors)]
    write_embeddings(session, row_of(session, looks, "vision"), 1, shot.user, [scene], vectors)
    if shot.words:
        said = fleet.client.embed_texts([shot.words], lexical=True)
        model = row_of(session, said, "text")
        vector = np.array(said.vectors[0], np.float32)
        write_embeddings(session, model, 1, shot.user, [scene], [(scene, 0, vector)])
        assert said.lexical is not None
        words_weigh = {int(token): weight for token, weight in said.lexical[0].items()}
        write_lexical(session, model, 1, shot.user, [scene], [(scene, words_weigh)], vocabulary)
    for name, confidence in shot.people.items():
        create(session, CreatePerson(user_id=shot.user, name=name, person_id=name))
        who: Any = {"person_id": person_key(shot.user, name), "user_id": shot.user, "confidence": confidence}
        session.add(ScenePerson(scene_id=scene, frame_count=1, **who))
    session.flush()


def find(fleet: Fleet, query: str | None = None, **options: Any) -> SearchAnswer:
    answer = fleet.client.search(options.pop("user", USER), query, **options)
    assert answer.degraded == {}
    assert {hit.video_id for hit in answer.hits} <= {shot.video for shot in MINE}, "nobody else's"
    return answer


def names(answer: SearchAnswer) -> list[tuple[str, int]]:
    return [(hit.video_id, hit.idx) for hit in answer.hits]


def towers(fleet: Fleet, query: str) -> dict[str, Any]:
    """The query as each model sees it, and every scene of the user as the vision model does: by calls, without search."""
    vision = fleet.client.embed_vision_texts([query])
    text = fleet.client.embed_texts([query])
    assert vision.dim == text.dim and vision.model != text.model
    looks = {shot.name: np.array(fleet.client.embed_images(USER, shot.keys).vectors) for shot in MINE}
    spoken = [shot for shot in MINE if shot.words]
    said = {shot.name: np.array(fleet.client.embed_texts([shot.words]).vectors[0]) for shot in spoken}
    queries = {"vision": np.array(vision.vectors[0]), "text": np.array(text.vectors[0])}
    return {**queries, "looks": looks, "said": said}


def similarity(vector: Any, looks: dict[Any, Any]) -> dict[Any, float]:
    """Scene -> how alike its best keyframe is."""
    return {name: max(0.0, float((frames @ vector).max())) for name, frames in looks.items()}


def best(scores: dict[Any, float]) -> list[Any]:
    return sorted(scores, key=lambda name: (-scores[name], name))


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("boat sea", [("harbour", 0)]),
        ('"old man"', [("harbour", 1)]),
        ('"man old"', []),
        # Whoever says it twice comes first.
        ("coffee", [("kitchen", 2), ("kitchen", 0)]),
        ("coffee -milk", [("kitchen", 2)]),
        ("dog", [("kitchen", 1), ("street", 1)]),
        ("rocket or bus", [("street", 0), ("street", 2)]),
        # On a screen it is not said.
        ("4711", []),
    ],
)
def test_keyword(labelled: Fleet, query: str, first: list[tuple[str, int]]) -> None:
    assert names(find(labelled, query, mode="keyword")) == first


def test_meaning(labelled: Fleet) -> None:
    """Who says the very words comes first; then everything in the order of the text model's vectors."""
    for shot in MINE:
        if shot.words:
            answer = find(labelled, shot.words, mode="semantic", weights={"vision": 0.0})
            assert names(answer)[0] == shot.name
            assert answer.hits[0].similarities["text"] == pytest.approx(1, abs=2e-3)
    for query in ("a woman with a cup", "sky", "the number of people in the house"):
        seen = towers(labelled, query)
        expected = {name: max(0.0, float(vector @ seen["text"])) for name, vector in seen["said"].items()}
        answer = find(labelled, query, mode="semantic", weights={"vision": 0.0})
        assert names(answer)[:5] == best(expected)[:5]


@pytest.mark.parametrize("mode", ["semantic", "hybrid"])
def test_sight_is_asked_by_the_vision_models_own_text_tower(
    labelled: Fleet, mode: Literal["semantic", "hybrid"]
) -> None:
    alone = dict.fromkeys(("text", "lexical", "keyword", "screen"), 0.0)
    told_apart = 0
    for query in ("a photo of a cat", "red car", "moon", "people at the beach", "old computer screen"):
        seen = towers(labelled, query)
        right, wrong = similarity(seen["vision"], seen["looks"]), similarity(seen["text"], seen["looks"])
        answer = find(labelled, query, mode=mode, weights={**alone, "vision": 1.0})
        assert names(answer) == best(right)
        for hit in answer.hits:
            assert hit.similarities["vision"] == pytest.approx(right[hit.video_id, hit.idx], abs=3e-3)
        told_apart += best(right)[:3] != best(wrong)[:3]
    assert told_apart >= 4, "the text model's vectors would have given another order"


def test_hybrid(labelled: Fleet) -> None:
    """A quotation, a word on a screen only, and words that two scenes share, one of them also in writing."""
    for shot in MINE:
        if shot.words:
            assert names(find(labelled, shot.words))[0] == shot.name
    weights = {"text": 0.0, "vision": 0.0, "lexical": 0.0}
    assert names(find(labelled, "4711", weights=weights)) == [("harbour", 3)]
    assert names(find(labelled, "coffee", weights=weights)) == [("kitchen", 2), ("kitchen", 0)]
    (first, *_) = find(labelled, "coffee", weights=weights).hits
    assert first.similarities["screen"] > 0 and first.similarities["keyword"] > 0
    for query in ("coffee", "a boat on the water"):
        seen = towers(labelled, query)
        likely = similarity(seen["vision"], seen["looks"])
        answer = find(labelled, query, limit=len(MINE))
        for hit in answer.hits:
            shown, name = hit.similarities, (hit.video_id, hit.idx)
            said = float(seen["said"][name] @ seen["text"]) if name in seen["said"] else 0.0
            assert shown.get("text", 0.0) == pytest.approx(max(0.0, said), abs=3e-3)
            assert shown.get("vision", 0.0) == pytest.approx(likely[name], abs=3e-3)
        assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)


def test_by_image(labelled: Fleet) -> None:
    """A worse and smaller copy of a keyframe finds its scene, and the place in another light next."""
    key = f"uploads/{USER}/queries/copy.jpg"
    for shot in MINE[:10]:
        for seed in shot.seen:
            labelled.storage.put_bytes("uploads", key, encoded(seed, quality=60), "image/jpeg")
            answer = find(labelled, image_key=key)
            assert names(answer)[0] == shot.name, (shot, seed)
            assert answer.hits[0].highlights.keyframe is not None
            assert answer.hits[0].highlights.keyframe.ordinal == shot.seen.index(seed)
    labelled.storage.put_bytes("uploads", key, encoded(13, quality=60), "image/jpeg")
    assert names(find(labelled, image_key=key))[:2] == [("street", 1), ("street", 4)]


def test_more_like_this_scene(labelled: Fleet) -> None:
    """The same place in another light comes first; then everything in the order of the vision model's vectors."""
    looks = towers(labelled, "x")["looks"]
    alike = {("street", 1): ("street", 4), ("street", 4): ("street", 1), ("street", 3): ("harbour", 0)}
    for shot in MINE:
        found = names(find(labelled, like_scene=shot.id, weights={"text": 0.0}, limit=50))
        middle = looks[shot.name].mean(axis=0)
        expected = similarity(middle / np.linalg.norm(middle), looks)
        del expected[shot.name]
        assert found == best(expected)
        if shot.name in alike:
            assert found[0] == alike[shot.name]


@pytest.mark.parametrize(
    "asked",
    [
        {"query": "the"},
        {"query": "a woman with a cup", "mode": "semantic"},
        {"query": "boat or man or woman or bus or children or rocket", "mode": "keyword"},
        {"image_key": f"uploads/{USER}/queries/any.jpg"},
        {"like_scene": MINE[9].id},
        {},
    ],
    ids=["hybrid", "semantic", "keyword", "image", "scene", "alone"],
)
def test_a_person_filter_is_exact(labelled: Fleet, asked: dict[str, Any]) -> None:
    labelled.storage.put_bytes("uploads", f"uploads/{USER}/queries/any.jpg", encoded(99), "image/jpeg")
    for persons, match, wanted in (
        (["ann"], "any", {shot.name for shot in MINE if "ann" in shot.people}),
        (["ann", "bob"], "any", {shot.name for shot in MINE if shot.people}),
        (["ann", "bob"], "all", {("kitchen", 0)}),
    ):
        found = names(find(labelled, limit=50, persons=persons, persons_match=match, **asked))
        assert len(found) == len(set(found))
        assert set(found) == wanted
    assert find(labelled, persons=["nobody"], **asked).hits == ()
