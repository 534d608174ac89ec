"""The text stage on a real Postgres, with a model that gives lexical weights: what it stores, and what a rerun leaves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from pgvector import SparseVector
from sqlalchemy import select, text

from db.engine import reading, transact
from db.publication import drop_unpublished
from db.tables import Embedding, LexicalWeights
from shared.errors import ModelFailure
from shared.settings import Settings
from tests.checkpoints import bge_m3, write_catalog
from tests.support.films import Film, begin, cut, say, scenes, segment, word
from tests.support.ledger import execute
from worker.models.text import LexicalWeights as Weights, TextEmbedder
from worker.runtime import Runtime
from worker.stages import text as stage, vectors

pytestmark = pytest.mark.usefixtures("database")


class Speech(Film):
    """A video of three scenes of 2 s whose words a test chooses."""

    @property
    def model(self) -> TextEmbedder:
        model = self.runtime.model("text")
        assert isinstance(model, TextEmbedder)
        return model

    def say(self, run: int, *sentences: str) -> None:
        """What is spoken in each scene, as run number `run` heard it; '' for nothing."""
        begin(run, {"split": 1, "asr": run, "text": run})
        heard = [
            segment(*(word(2 * place + 0.1, one, 2 * place + 1.9) for one in sentence.split()))
            for place, sentence in enumerate(sentences)
            if sentence
        ]
        say(run, 0, 0.0, 6.0, *heard)

    def embed(self, run: int) -> dict[str, Any]:
        return self.work(stage, "text", run)

    def scene_ids(self) -> list[UUID]:
        return [scene.scene_id for scene in scenes()]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    folder = tmp_path_factory.mktemp("runtime")
    catalog = write_catalog(folder / "models.yaml", [bge_m3.build(folder / "bge")])
    return Runtime(Settings(
        SCENEFLEET_PROFILE="full", SCENEFLEET_MODELS_FILE=catalog, SCENEFLEET_FAMILY="text", SCENEFLEET_HOME=folder,
    ))  # fmt: skip


@pytest.fixture
def film(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Speech:
    # The database is new: an index of another test's stands in none of it.
    monkeypatch.setattr(vectors, "_looked", OrderedDict())
    monkeypatch.setattr(vectors, "notify", list)
    cut([], [], [], length_s=2.0)
    return Speech(runtime, tmp_path)


def stored() -> tuple[dict[tuple[int, UUID], Any], dict[tuple[int, UUID], LexicalWeights]]:
    """Dense vectors and lexical weights in the database, by (run, scene)."""
    with reading() as session:
        dense = {(row.run, row.scene_id): row.vec for row in session.scalars(select(Embedding))}
        lexical = {(row.run, row.scene_id): row for row in session.scalars(select(LexicalWeights))}
    return dense, lexical


def assert_weights(row: LexicalWeights, expected: Weights, vocabulary_size: int) -> None:
    assert row.user_id == "u"
    assert row.tokens == sorted(expected)
    vector = row.weights
    assert isinstance(vector, SparseVector) and vector.dimensions() == vocabulary_size
    found = dict(zip(vector.indices(), vector.values(), strict=True))
    assert found == {token: pytest.approx(weight, abs=1e-5) for token, weight in expected.items()}


def test_vectors_and_weights_land_for_the_scenes_with_words(film: Speech) -> None:
    film.say(1, "a cup of coffee", "", "the red bus is on the road")
    assert film.embed(1) == {"embedded": 2, "scenes": 3}
    first, _, third = film.scene_ids()
    dense, lexical = stored()
    assert dense.keys() == lexical.keys() == {(1, first), (1, third)}
    expected = film.model.encode(["a cup of coffee", "the red bus is on the road"])
    assert expected.lexical is not None
    for place, scene in enumerate((first, third)):
        vector = np.asarray(dense[1, scene], np.float32)
        np.testing.assert_allclose(vector, expected.dense[place], atol=1e-3)
        assert_weights(lexical[1, scene], expected.lexical[place], film.model.vocabulary_size)


def test_a_second_attempt_replaces_the_rows_of_the_first(film: Speech) -> None:
    film.say(1, "a cup of coffee", "a cat", "")
    film.embed(1)
    before = stored()
    execute(text("UPDATE lexical_weights SET tokens = '{1}', weights = '{1:9}/195'"))
    film.embed(1)
    dense, lexical = stored()
    assert dense.keys() == before[0].keys() and lexical.keys() == before[1].keys() and len(lexical) == 2
    for key, row in lexical.items():
        assert row.tokens == before[1][key].tokens != [1]


def test_a_rerun_stands_beside_until_it_is_published(film: Speech) -> None:
    film.say(1, "a cup of coffee", "a cat", "")
    film.embed(1)
    film.say(2, "", "the red bus", "a dog")
    film.embed(2)
    first, second, third = film.scene_ids()
    _, lexical = stored()
    assert lexical.keys() == {(1, first), (1, second), (2, second), (2, third)}
    transact(lambda session: drop_unpublished(session, "v", {"split": 1, "asr": 2, "text": 2}, 0, 2))
    dense, lexical = stored()
    assert dense.keys() == lexical.keys() == {(2, second), (2, third)}
    (expected,) = film.model.encode(["the red bus"]).lexical or ()
    assert_weights(lexical[2, second], expected, film.model.vocabulary_size)


@pytest.mark.parametrize("weights", [{195: 0.5}, {-1: 0.5}, {5: 0.0}, {5: float("nan")}], ids=str)
def test_weights_that_can_not_be_are_refused_and_nothing_is_kept(
    film: Speech, monkeypatch: pytest.MonkeyPatch, weights: dict[int, float]
) -> None:
    film.say(1, "a cup of coffee", "", "")
    model = film.model
    honest = model.encode
    monkeypatch.setattr(
        model, "encode", lambda texts: replace(honest(texts), lexical=(weights,) * len(texts))
    )
    with pytest.raises(ModelFailure, match="lexical weights"):
        film.embed(1)
    assert stored() == ({}, {})
