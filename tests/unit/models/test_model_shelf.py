"""The shelf and the base class, with a made-up provider: what loads when, what is said when it can't."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shared.errors import InvalidRequest, ModelFailure, ModelUnavailable
from worker.models import shelf as shelf_module
from worker.models.base import Float32, TextEmbedder
from worker.models.catalog import Catalog, ModelSpec
from worker.models.shelf import Shelf, build
from worker.models.weights import locate, verify

WEIGHTS = b"the weights"


class CountingEmbedder(TextEmbedder):
    """Counts how often its engine is used; `fails` makes the engine fail there."""

    loads = unloads = warm_ups = 0
    fails = ""

    def _load(self) -> None:
        self.loads += 1
        self._fail_at("load")

    def _unload(self) -> None:
        self.unloads += 1

    def _warm_up(self) -> None:
        self.warm_ups += 1
        self._fail_at("warm-up")

    def _embed(self, texts: Sequence[str]) -> Float32:
        self._fail_at("embed")
        return np.full((len(texts), self.dim), self.dim**-0.5, np.float32)

    def _fail_at(self, place: str) -> None:
        if self.fails == place:
            raise RuntimeError(f"no {place} today")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    monkeypatch.setitem(shelf_module.PROVIDERS, ("text", "counting"), f"{__name__}:CountingEmbedder")
    return ModelSpec(
        name="counting",
        family="text",
        provider="counting",
        source=f"path:{tmp_path}",
        revision="1",
        dim=4,
        metric="cosine",
        licence="none",
        memory_mb=1,
        warmup_samples=3,
        sha256={"weights.bin": hashlib.sha256(WEIGHTS).hexdigest()},
        profiles=("lite",),
    )


@pytest.fixture
def make_shelf(spec: ModelSpec) -> Callable[..., Shelf]:
    def make(*families: str, **changes: object) -> Shelf:
        catalog = Catalog([spec.model_copy(update=changes)])
        return Shelf(catalog, "lite", families or ("text",))  # type: ignore[arg-type]

    return make


def embedder(shelf: Shelf) -> CountingEmbedder:
    model = shelf.get("text")
    assert isinstance(model, CountingEmbedder)
    return model


def test_preload_loads_and_warms_once(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    assert shelf.states()[0]["loaded"] is False
    shelf.preload()
    model = embedder(shelf)
    assert (model.loads, model.warm_ups) == (1, 3)
    (state,) = shelf.states()
    assert (state["name"], state["loaded"], state["dim"]) == ("counting", True, 4)
    assert state["load_s"] >= 0 and state["warm_up_s"] >= 0 and state["memory_bytes"] >= 0


def test_a_model_not_preloaded_is_loaded_when_asked_for(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf(preload=False)
    shelf.preload()
    assert shelf.states()[0]["loaded"] is False
    assert embedder(shelf).loaded
    assert shelf.get("text") is shelf.get("text")


def test_unload_frees_and_get_loads_again(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    first = embedder(shelf)
    shelf.unload("text")
    shelf.unload("text")
    assert not first.loaded and first.unloads == 1
    assert shelf.states()[0]["loaded"] is False
    assert embedder(shelf) is not first


def test_many_threads_load_once(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf()
    barrier = threading.Barrier(8)
    models = []

    def ask() -> None:
        barrier.wait()
        models.append(embedder(shelf))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, models))) == 1 and models[0].loads == 1


def test_a_family_without_a_model_is_unavailable_and_says_so(make_shelf: Callable[..., Shelf]) -> None:
    shelf = make_shelf("text", "vision")
    shelf.preload()
    assert shelf.states()[1] == {
        "family": "vision",
        "loaded": False,
        "unavailable": "Profile lite has no vision model; use a profile that has one.",
    }
    with pytest.raises(ModelUnavailable, match="Profile lite has no vision model"):
        shelf.get("vision")


def test_a_family_of_another_node_is_refused(make_shelf: Callable[..., Shelf]) -> None:
    with pytest.raises(ModelUnavailable, match="This node has no face model; it serves the families: text"):
        make_shelf().get("face")


def test_an_unknown_provider_is_named(spec: ModelSpec) -> None:
    with pytest.raises(ModelUnavailable, match="provider 'other', which family text does not have"):
        build(spec.model_copy(update={"provider": "other"}))


def test_a_missing_engine_is_named(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shelf_module.PROVIDERS, ("text", "counting"), "no_such_engine:Model")
    with pytest.raises(ModelUnavailable, match=r"No module named 'no_such_engine'.*extra 'lite'"):
        build(spec)


def test_changed_weights_are_refused_before_the_engine_sees_them(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS + b"!")
    model = build(spec)
    assert isinstance(model, CountingEmbedder)
    found = hashlib.sha256(WEIGHTS + b"!").hexdigest()
    with pytest.raises(
        ModelUnavailable, match=f"should have sha256 {spec.sha256['weights.bin']} but has {found}"
    ):
        model.load()
    assert model.loads == 0 and not model.loaded


def test_a_model_can_be_loaded_after_its_weights_are_put_right(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").unlink()
    model = build(spec)
    with pytest.raises(ModelUnavailable, match="found no such file"):
        model.load()
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    model.load()
    assert model.loaded


def test_a_folder_in_place_of_a_file_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").unlink()
    (tmp_path / "weights.bin").mkdir()
    with pytest.raises(ModelUnavailable, match="can't be read"):
        verify(spec)


def test_downloaded_weights_lie_under_models_dir(spec: ModelSpec, tmp_path: Path) -> None:
    moved = spec.model_copy(update={"source": f"models:{tmp_path.name}"})
    assert locate(moved, "weights.bin", models_dir=tmp_path.parent) == tmp_path / "weights.bin"
    with pytest.raises(ModelUnavailable, match="MODELS_DIR, which is not set"):
        locate(moved, "weights.bin")


@pytest.mark.parametrize("place", ["load", "warm-up", "embed"])
def test_what_an_engine_raises_is_a_model_failure(spec: ModelSpec, place: str) -> None:
    model = build(spec)
    assert isinstance(model, CountingEmbedder)
    model.fails = place
    with pytest.raises(ModelFailure, match=f"counting failed: RuntimeError: no {place} today") as failure:
        model.warm_up()
        model.embed(["text"])
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert model.loaded == (place != "load")


def test_a_model_loads_itself_when_used_cold(spec: ModelSpec) -> None:
    model = build(spec)
    assert isinstance(model, CountingEmbedder)
    assert model.embed(["text"]).shape == (1, 4)
    assert model.loads == 1


def test_threads_have_a_sensible_default_and_a_lower_bound(spec: ModelSpec) -> None:
    assert build(spec).threads >= 1
    assert build(spec, threads=3).threads == 3
    with pytest.raises(InvalidRequest, match="can't use 0 threads"):
        build(spec, threads=0)
