"""The model cache and the base class, with a made-up provider: what loads when, what is said when it can't."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from shared.errors import ModelDoesNotFit, ModelFailure, ModelUnavailable
from tests.checkpoints import entry
from tests.support.threads import at_once
from worker.models import cache as cache_module
from worker.models.cache import ModelCache, build
from worker.models.catalog import Catalog
from worker.models.spec import ModelSpec
from worker.models.text import TextEmbedder, TextVectors
from worker.models.weights.verify import locate, verify

WEIGHTS = b"the weights"
Make = Callable[..., ModelCache]


class CountingEmbedder(TextEmbedder):
    """Counts how often its engine is used; `fails` makes the engine fail there."""

    starts = unloads = warm_ups = 0
    fails = ""
    #: Set while its engine works on texts; the work ends when `may_end` is set.
    working: threading.Event | None = None
    may_end: threading.Event | None = None

    def _load(self) -> None:
        self.starts += 1
        self._fail_at("load")

    def _unload(self) -> None:
        self.unloads += 1

    def _warm_up(self) -> None:
        self.warm_ups += 1
        self._fail_at("warm-up")

    def _encode(self, texts: Sequence[str]) -> TextVectors:
        self._fail_at("embed")
        if self.working is not None and self.may_end is not None:
            self.working.set()
            assert self.may_end.wait(timeout=30)
        return TextVectors(np.full((len(texts), self.dim), self.dim**-0.5, np.float32), None)

    def _fail_at(self, place: str) -> None:
        if self.fails == place:
            raise RuntimeError(f"no {place} today")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS)
    monkeypatch.setitem(cache_module.PROVIDERS, ("text", "counting"), f"{__name__}:CountingEmbedder")
    return entry(
        tmp_path, ["weights.bin"], name="counting", family="text", provider="counting", dim=4, metric="cosine", memory_mb=1,
        warmup_samples=3, profiles=("lite",),
    )  # fmt: skip


@pytest.fixture
def make_cache(spec: ModelSpec) -> Make:
    def make(*families: str, **changes: object) -> ModelCache:
        catalog = Catalog([spec.model_copy(update=changes)])
        return ModelCache(catalog, catalog.for_profile("lite"), families or ("text",))  # type: ignore[arg-type]

    return make


def embedder(model_cache: ModelCache) -> CountingEmbedder:
    return cast(CountingEmbedder, model_cache.get("text"))


def built(spec: ModelSpec) -> CountingEmbedder:
    return cast(CountingEmbedder, build(spec))


def state_of(model_cache: ModelCache, name: str = "counting") -> dict[str, Any]:
    (state,) = [state for state in model_cache.states() if state.get("name") == name]
    return state


def test_preload_loads_and_warms_once_and_get_loads_again_after_unload(make_cache: Make) -> None:
    model_cache = make_cache()
    assert state_of(model_cache)["loaded"] is False
    model_cache.preload()
    model = embedder(model_cache)
    assert (model.starts, model.warm_ups) == (1, 3)
    state = state_of(model_cache)
    assert (state["name"], state["loaded"], state["dim"]) == ("counting", True, 4)
    assert model.threads >= 1 and build(model.spec, threads=3).threads == 3
    assert state["load_s"] >= 0 and state["warm_up_s"] >= 0 and state["memory_bytes"] >= 0
    assert [model_cache.unload("counting") for _ in range(2)] == [True, False]
    assert not model.loaded and model.unloads == 1
    state = state_of(model_cache)
    assert state["loaded"] is False and state["memory_bytes"] is None and state["loads"] == 1
    assert embedder(model_cache).loaded and model.starts == 2
    assert state_of(model_cache)["loads"] == 2


def test_a_model_not_preloaded_is_loaded_once_when_many_threads_ask_for_it(make_cache: Make) -> None:
    model_cache = make_cache(preload=False)
    model_cache.preload()
    assert state_of(model_cache)["loaded"] is False
    models = at_once([lambda: embedder(model_cache)] * 8)
    assert len(set(map(id, models))) == 1 and models[0].starts == 1 and models[0].loaded


def test_a_family_without_a_model_is_unavailable_and_says_so(make_cache: Make) -> None:
    model_cache = make_cache("text", "vision")
    model_cache.preload()
    (vision,) = [state for state in model_cache.states() if state["kind"] == "vision"]
    reason = "The profile has no vision model; use a profile that has one"
    assert vision == {"kind": "vision", "loaded": False, "active": False, "unavailable": reason}
    with pytest.raises(ModelUnavailable, match="The profile has no vision model"):
        model_cache.get("vision")
    with pytest.raises(ModelUnavailable, match="This node has no face model; it serves the families: text"):
        make_cache().get("face")


def test_what_a_model_lacks_is_named(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailable, match="provider 'other', which kind text does not have"):
        build(spec.model_copy(update={"provider": "other"}))
    with pytest.raises(ModelUnavailable, match="package no_such_package is not installed"):
        build(spec.model_copy(update={"source": "package:no_such_package/model"})).load()
    monkeypatch.setitem(cache_module.PROVIDERS, ("text", "counting"), "no_such_engine:Model")
    with pytest.raises(ModelUnavailable, match=r"No module named 'no_such_engine'.*extra 'lite'"):
        build(spec)


def test_wrong_weights_are_refused_before_the_engine_sees_them(spec: ModelSpec, tmp_path: Path) -> None:
    path, model = tmp_path / "weights.bin", built(spec)
    path.write_bytes(WEIGHTS + b"!")
    found = hashlib.sha256(WEIGHTS + b"!").hexdigest()
    with pytest.raises(ModelUnavailable) as refusal:
        model.load()
    assert f"{path} should have sha256 {spec.sha256['weights.bin']} but has {found}" in str(refusal.value)
    path.unlink()
    with pytest.raises(ModelUnavailable, match="found no such file"):
        model.load()
    path.mkdir()
    with pytest.raises(ModelUnavailable, match="can't be read"):
        verify(spec)
    assert model.starts == 0 and not model.loaded
    path.rmdir()
    path.write_bytes(WEIGHTS)
    model.load()
    assert model.loaded


def test_downloaded_weights_lie_under_models_dir(spec: ModelSpec, tmp_path: Path) -> None:
    moved = spec.model_copy(update={"source": "user:"})
    (tmp_path / spec.name).mkdir()
    (tmp_path / "weights.bin").rename(tmp_path / spec.name / "weights.bin")
    assert locate(moved, "weights.bin", models_dir=tmp_path) == tmp_path / spec.name / "weights.bin"
    with pytest.raises(ModelUnavailable, match="MODELS_DIR, which is not set"):
        locate(moved, "weights.bin")


@pytest.mark.parametrize("place", ["load", "warm-up", "embed"])
def test_what_an_engine_raises_is_a_model_failure(spec: ModelSpec, place: str) -> None:
    model = built(spec)
    model.fails = place
    with pytest.raises(ModelFailure, match=f"counting failed: RuntimeError: no {place} today") as failure:
        model.warm_up()
        model.embed(["text"])
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert model.loaded == (place != "load")


# --- several models under a budget


@pytest.fixture
def make_crowd(spec: ModelSpec) -> Make:
    """A model cache of three text models, `a` the active one, 400, 300 and 500 MB large; `changes` are those of `a`."""

    def make(budget_mb: int, **changes: Any) -> ModelCache:
        crowd = [
            spec.model_copy(update={"name": "a", "memory_mb": 400, **changes}),
            spec.model_copy(update={"name": "b", "memory_mb": 300, "profiles": ()}),
            spec.model_copy(update={"name": "c", "memory_mb": 500, "profiles": ()}),
        ]
        catalog = Catalog(crowd)
        return ModelCache(catalog, catalog.for_profile("lite"), ["text"], budget_mb=budget_mb)

    return make


def loaded(model_cache: ModelCache) -> set[str]:
    return {state["name"] for state in model_cache.states() if state["loaded"]}


def test_without_a_budget_everything_stays(make_crowd: Make) -> None:
    model_cache = make_crowd(0)
    for name in "abc":
        model_cache.load(name)
    assert loaded(model_cache) == {"a", "b", "c"} and model_cache.evictions == 0


def test_the_least_recently_used_makes_room_and_no_more_than_needed(make_crowd: Make) -> None:
    model_cache = make_crowd(1000)
    model_cache.load("a")
    model_cache.load("b")
    model_cache.get("text")
    model_cache.load("c")
    assert loaded(model_cache) == {"a", "c"} and model_cache.evictions == 1
    model_cache.load("b")
    assert loaded(model_cache) == {"c", "b"} and model_cache.evictions == 2
    assert model_cache.get("text").loaded
    assert loaded(model_cache) == {"b", "a"} and model_cache.evictions == 3


def test_a_model_larger_than_the_budget_is_refused_and_nothing_goes_for_it(make_crowd: Make) -> None:
    model_cache = make_crowd(450)
    model_cache.load("a")
    said = r"c needs 500 MB, more than the whole budget of 450 MB \(400 MB used\): raise WORKER_"
    with pytest.raises(ModelDoesNotFit, match=said):
        model_cache.load("c")
    assert loaded(model_cache) == {"a"} and model_cache.evictions == 0


def test_what_was_measured_counts_where_it_is_more(make_crowd: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model_cache = make_crowd(1000)
    model = model_cache.load("a")
    monkeypatch.setattr(model, "state", replace(model.state, memory_bytes=800 << 20))
    model_cache.load("b")
    assert loaded(model_cache) == {"b"}


def test_a_model_used_after_it_was_let_go_of_comes_back_within_the_budget(make_crowd: Make) -> None:
    """Somebody got it, then another thread loaded a model that needed its room."""
    model_cache = make_crowd(600)
    model = embedder(model_cache)
    model_cache.load("c")
    assert loaded(model_cache) == {"c"}
    assert model.embed(["text"]).shape == (1, 4)
    assert loaded(model_cache) == {"a"} and model_cache.evictions == 2


def test_a_model_at_work_is_let_go_of_only_after_its_call(make_crowd: Make) -> None:
    model_cache = make_crowd(600)
    model = embedder(model_cache)
    model.working, model.may_end = threading.Event(), threading.Event()
    rows: list[int] = []
    work = threading.Thread(target=lambda: rows.append(len(model.embed(["text"]))))
    other = threading.Thread(target=lambda: model_cache.load("c"))
    work.start()
    assert model.working.wait(timeout=30)
    other.start()
    time.sleep(0.2)
    assert model.loaded and model.unloads == 0
    model.may_end.set()
    work.join(timeout=30)
    other.join(timeout=30)
    assert rows == [1] and model.unloads == 1 and loaded(model_cache) == {"c"}


def test_threads_that_want_each_others_room_all_get_on(make_crowd: Make) -> None:
    model_cache = make_crowd(600)
    a, c = embedder(model_cache), cast(TextEmbedder, model_cache.load("c"))
    done: list[str] = []

    def use(model: TextEmbedder) -> None:
        for _ in range(200):
            assert len(model.embed(["text"])) == 1
        done.append(model.spec.name)

    def end_lease() -> None:
        for _ in range(200):
            model_cache.unload("a")
            model_cache.load("b")
        done.append("control")

    threads = [threading.Thread(target=use, args=(model,), daemon=True) for model in (a, c)]
    threads.append(threading.Thread(target=end_lease, daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(done) == ["a", "c", "control"]


def test_every_change_is_told(make_crowd: Make, tmp_path: Path) -> None:
    model_cache = make_crowd(600)
    told: list[set[str]] = []
    model_cache.on_change = lambda: told.append(loaded(model_cache))
    model_cache.warm_up("a")
    assert told == [{"a"}, {"a"}]
    model_cache.load("c")
    assert told[2:] == [set(), {"c"}]
    model_cache.unload("c")
    assert told[4:] == [set()]
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelUnavailable):
        model_cache.load("b")
    assert told[5:] == [set()]
    assert state_of(model_cache, "b")["error"].startswith("Model b can't be loaded")


@pytest.mark.parametrize(("preload", "told"), [(True, 1), (False, 0)])
def test_whoever_serves_jobs_learns_that_the_model_they_need_is_gone(
    make_crowd: Make, tmp_path: Path, preload: bool, told: int
) -> None:
    model_cache = make_crowd(0, preload=preload)
    learnt: list[str] = []
    model_cache.on_unavailable = lambda error: learnt.append(str(error))
    model = embedder(model_cache)
    model_cache.unload("a")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelUnavailable):
        model_cache.load("a")
    assert learnt == [], "an order that fails is no reason to leave"
    with pytest.raises(ModelUnavailable):
        model_cache.get("text")
    assert len(learnt) == told
    with pytest.raises(ModelUnavailable):
        model.embed(["text"])
    assert len(learnt) == 2 * told
