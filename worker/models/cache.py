"""The model cache of a process: maps providers to classes, loads models on demand, evicts the least recently used.

A provider's module, and with it its engine, is imported only when one of its models is loaded: never in the parent of a
forked worker, which must not have used torch (the child would hang).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from shared.errors import ModelDoesNotFit, ModelUnavailable
from shared.graph import PLUGINS
from shared.logs import get_logger
from worker.models.base import Model, ModelState
from worker.models.catalog import Catalog
from worker.models.placement.plan import exceeds_budget
from worker.models.spec import KINDS, Family, Kind, ModelSpec

log = get_logger(__name__)

#: (kind, provider) -> dotted path of the class. A new provider is one line here and one class there.
PROVIDERS: dict[tuple[Kind, str], str] = {
    **{key: path for plugin in PLUGINS.plugins for key, path in plugin.providers.items()},
    ("asr", "pocketsphinx"): "worker.models.providers.asr_pocketsphinx:PocketSphinxTranscriber",
    ("asr", "openai-whisper"): "worker.models.providers.asr_whisper:WhisperTranscriber",
    ("asr", "faster-whisper"): "worker.models.providers.asr_faster_whisper:FasterWhisperTranscriber",
    ("text", "minilm"): "worker.models.providers.text_minilm:MiniLmEmbedder",
    ("text", "bge-m3"): "worker.models.providers.text_bge_m3:BgeM3Embedder",
    ("text", "flagembedding"): "worker.models.providers.text_flagembedding:FlagEmbedder",
    ("rerank", "bge-reranker"): "worker.models.providers.rerank_bge:BgeReranker",
    ("vision", "siglip"): "worker.models.providers.vision_siglip:SiglipEmbedder",
    ("face", "dlib"): "worker.models.providers.face_dlib:DlibFaceAnalyser",
    ("face", "adaface"): "worker.models.providers.face_adaface:AdaFaceAnalyser",
    ("ocr", "rapidocr"): "worker.models.providers.ocr_rapid:RapidReader",
}

_ABSENT = "The profile has no {} model; use a profile that has one"
#: Providers whose engine is in an extra of its own.
_EXTRAS = {"flagembedding": "flagembedding"}


class ModelCache:
    """The models of some families in one process; the constructor loads none.

    Args:
        active: the model of each kind that jobs and requests use (`Catalog.active`).
        families: the families of this process. A kind that has no active model is listed as unavailable.
        threads: CPU threads each model may use; None for every CPU this process may run on.
        budget_mb: maximum memory of all loaded models; 0: no limit.
    """

    def __init__(
        self,
        catalog: Catalog,
        active: Mapping[Kind, ModelSpec],
        families: Sequence[Family],
        *,
        threads: int | None = None,
        models_dir: Path | None = None,
        budget_mb: int = 0,
    ) -> None:
        self.families = tuple(families)
        self.kinds = tuple(kind for family in families for kind in KINDS[family])
        self.budget_mb = budget_mb
        self.evictions = 0
        #: Called when a model was loaded, warmed up or unloaded, or could not be loaded.
        self.on_change: Callable[[], object] = lambda: None
        #: Called when a preloaded active model was unloaded and can't be loaded again for a job.
        self.on_unavailable: Callable[[ModelUnavailable], object] = lambda error: None
        self._catalog = catalog
        self._active = dict(active)
        self._threads = threads
        self._models_dir = models_dir
        #: By name, the least recently used first.
        self._models: dict[str, Model] = {}
        #: By name: the model's entry, and why its engine could not be used.
        self._not_built: dict[str, tuple[ModelSpec, str]] = {}
        # Held during a load: two loads at once would both use the free memory.
        self._lock = threading.RLock()

    def preload(self) -> None:
        """Load and warm the active models marked `preload`, one after the other.

        Raises: ModelUnavailable for the first that can't be loaded; ModelFailure if its warm-up fails.
        """
        for kind in self.kinds:
            spec = self._active.get(kind)
            if spec is not None and spec.preload:
                self.warm_up(spec.name)

    def get(self, kind: Kind, name: str | None = None) -> Model:
        """The active model of a kind, or the one of that name; loads it if necessary. Raises: ModelUnavailable."""
        if kind not in self.kinds:
            served = ", ".join(self.families) or "none"
            raise ModelUnavailable(f"This node has no {kind} model; it serves the families: {served}")
        spec = self._active.get(kind)
        if spec is None:
            raise ModelUnavailable(_ABSENT.format(kind))
        if name is not None and name != spec.name:
            spec = self._named_spec(name)
            if spec.kind != kind:
                raise ModelUnavailable(f"Model {name} is of kind {spec.kind}; name one of kind {kind}")
        return self._bring(spec)

    def active_name(self, kind: Kind) -> str | None:
        """The name of the active model of a kind; None: it has none."""
        spec = self._active.get(kind)
        return spec.name if spec is not None else None

    def activate(self, spec: ModelSpec) -> None:
        """Make a model the active one of its kind; it is loaded when it is first needed."""
        if self._active.get(spec.kind) == spec:
            return
        with self._lock:
            self._active = {**self._active, spec.kind: spec}
        log.info("model active", model=spec.name)
        self.on_change()

    def load(self, name: str) -> Model:
        """Load a model of this cache's families by name; evict others if necessary, the least recently used first.

        Raises: ModelDoesNotFit when it exceeds the whole budget; ModelUnavailable.
        """
        with self._lock:
            model = self._models.get(name)
            if model is None or not model.loaded:
                spec = model.spec if model else self._named_spec(name)
                if exceeds_budget(spec, self.budget_mb):
                    raise ModelDoesNotFit(
                        f"Model {name} needs {spec.memory_mb} MB, more than the whole budget of {self.budget_mb} MB "
                        f"({self._used_mb()} MB used): raise WORKER_MODEL_MEMORY_MB, or choose a smaller model"
                    )
            if model is None:
                try:
                    model = build(spec, threads=self._threads, models_dir=self._models_dir)
                except ModelUnavailable as error:
                    self._not_built = {**self._not_built, name: (spec, str(error))}
                    self.on_change()
                    raise
                model.bring = partial(self._bring, spec)
            # In one step: `states` reads without the lock.
            others = {other: held for other, held in self._models.items() if other != name}
            self._models = {**others, name: model}
            if not model.loaded:
                self._make_room(model.spec)
                try:
                    model.load()
                finally:
                    self.on_change()
                _log("model loaded", model)
            return model

    def unload(self, name: str) -> bool:
        """Unload a model; the next `get` or `load` loads it again. Returns whether it was loaded."""
        with self._lock:
            self._named_spec(name)
            model = self._models.get(name)
            if model is None or not model.loaded:
                return False
            model.unload()
            self.on_change()
            log.info("model unloaded", model=name)
            return True

    def warm_up(self, name: str) -> float:
        """Load a model if necessary, and run its warm-up samples. Returns their duration, seconds."""
        with self._lock:
            model = self.load(name)
            try:
                seconds = model.warm_up()
            finally:
                self.on_change()
            _log("model warm", model)
            return seconds

    def states(self) -> list[dict[str, Any]]:
        """The `ModelState` fields of each active model and each other model used so far; a kind without a model is
        listed with the reason in `unavailable`."""
        states: list[dict[str, Any]] = []
        held = self._models
        for kind in self.kinds:
            spec = self._active.get(kind)
            if spec is None:
                states.append(
                    {"kind": kind, "loaded": False, "active": False, "unavailable": _ABSENT.format(kind)}
                )
            elif spec.name not in held and spec.name not in self._not_built:
                absent = {"loaded": False, "loads": 0, "error": "", "active": True}
                states.append({**spec.model_dump(include=ModelState.OF_SPEC), **absent})
        active = {spec.name for spec in self._active.values()}
        for name, (spec, error) in self._not_built.items():
            if name not in held:
                failed = {"loaded": False, "loads": 0, "error": error, "active": name in active}
                states.append({**spec.model_dump(include=ModelState.OF_SPEC), **failed})
        states += [{**asdict(model.state), "active": name in active} for name, model in held.items()]
        return states

    def _bring(self, spec: ModelSpec) -> Model:
        """Load a model that a job needs."""
        try:
            return self.load(spec.name)
        except ModelUnavailable as error:
            error.model = spec.name
            if spec.preload and self._active.get(spec.kind) == spec:
                self.on_unavailable(error)
            raise

    def _make_room(self, spec: ModelSpec) -> None:
        if not self.budget_mb:
            return
        for name, model in list(self._models.items()):
            if self._used_mb() + spec.memory_mb <= self.budget_mb:
                return
            if model.loaded:
                model.unload()
                self.evictions += 1
                self.on_change()
                log.info("model evicted", model=name, for_model=spec.name, budget_mb=self.budget_mb)

    def _used_mb(self) -> int:
        """Memory by the catalogue, or the measured memory if larger."""
        return sum(
            max(model.spec.memory_mb, (model.state.memory_bytes or 0) >> 20)
            for model in self._models.values()
            if model.loaded
        )

    def _named_spec(self, name: str) -> ModelSpec:
        active = {spec.name: spec for spec in self._active.values()}
        spec = active.get(name) or self._catalog.get(name)
        if spec.family not in self.families:
            raise ModelUnavailable(
                f"Model {name} belongs to family {spec.family}; this node serves {', '.join(self.families) or 'none'}"
            )
        return spec


def _log(event: str, model: Model) -> None:
    state = model.state
    log.info(
        event,
        model=state.name,
        device=state.device,
        dtype=state.dtype,
        memory_mb=(state.memory_bytes or 0) >> 20,
        load_s=state.load_s and round(state.load_s, 3),
        warm_up_s=state.warm_up_s and round(state.warm_up_s, 3),
    )


def build(spec: ModelSpec, *, threads: int | None = None, models_dir: Path | None = None) -> Model:
    """The model of a catalogue entry, not yet loaded; imports its engine.

    Raises: ModelUnavailable for an unknown provider, or when its engine is not installed.
    """
    path = PROVIDERS.get((spec.kind, spec.provider))
    if path is None:
        known = ", ".join(provider for kind, provider in PROVIDERS if kind == spec.kind) or "none"
        raise ModelUnavailable(
            f"Model {spec.name} names the provider {spec.provider!r}, which kind {spec.kind} does not have "
            f"(known: {known}); correct models.yaml"
        )
    module, _, name = path.partition(":")
    try:
        provider = getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra = _EXTRAS.get(spec.provider, "lite" if "lite" in spec.profiles else "full")
        message = f"its engine does not import ({error}); install scenefleet's extra {extra!r}"
        raise spec.unloadable(message) from error
    model = provider(spec, threads=threads, models_dir=models_dir)
    assert isinstance(model, Model)
    return model
