"""The models one process holds: says which class runs which model, and loads them when asked.

A provider's module, and with it its engine, is imported only when one of its models is loaded: never in the parent of a
forked worker, which must not have used torch (the child would hang).
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shared.errors import ModelUnavailable
from worker.models.base import Model
from worker.models.catalog import Catalog, Family, ModelSpec

#: (family, provider) -> dotted path of the class. A new provider is one line here and one class there.
PROVIDERS: dict[tuple[Family, str], str] = {
    ("asr", "pocketsphinx"): "worker.models.asr_pocketsphinx:PocketSphinxTranscriber",
    ("text", "minilm"): "worker.models.text_minilm:MiniLmEmbedder",
    ("face", "dlib"): "worker.models.face_dlib:DlibFaceAnalyser",
}


class Shelf:
    """The active models of some families in one process; cheap to make, loads nothing by itself.

    Args:
        catalog: the models there are.
        profile: which of them are active.
        families: those this process serves. One the profile has no model for is listed as unavailable.
        threads: CPU threads each model may use; None for every CPU this process may run on.
        models_dir: folder of downloaded weights.

    Raises: ModelUnavailable for an unknown profile.
    """

    def __init__(
        self,
        catalog: Catalog,
        profile: str,
        families: Sequence[Family],
        *,
        threads: int | None = None,
        models_dir: Path | None = None,
    ) -> None:
        self.profile = profile
        self.families = tuple(families)
        self._active = catalog.for_profile(profile)
        self._threads = threads
        self._models_dir = models_dir
        self._models: dict[Family, Model] = {}
        self._lock = threading.Lock()

    def preload(self) -> None:
        """Load and warm the models marked `preload`, one after the other.

        Raises: ModelUnavailable from the first that can't be loaded; ModelFailure when it fails at its warm-up.
        """
        for family in self.families:
            spec = self._active.get(family)
            if spec is not None and spec.preload:
                self.get(family).warm_up()

    def get(self, family: Family) -> Model:
        """The loaded model of a family; loads it if it isn't.

        Raises: ModelUnavailable when this shelf does not serve the family, the profile has no model for it, or it
            can't be loaded.
        """
        with self._lock:
            model = self._models.get(family)
            if model is None:
                model = self._models[family] = build(
                    self._spec(family), threads=self._threads, models_dir=self._models_dir
                )
        model.load()
        return model

    def unload(self, family: Family) -> None:
        """Free a family's model; the next `get` loads it again."""
        with self._lock:
            model = self._models.pop(family, None)
        if model is not None:
            model.unload()

    def states(self) -> list[dict[str, Any]]:
        """One entry per family served: `ModelState`'s fields, or family and `unavailable` with the reason."""
        states: list[dict[str, Any]] = []
        for family in self.families:
            spec, model = self._active.get(family), self._models.get(family)
            if spec is None:
                states.append({"family": family, "loaded": False, "unavailable": self._absent(family)})
            elif model is None:
                entry = {"name", "family", "provider", "revision", "device", "dtype", "dim"}
                states.append({**spec.model_dump(include=entry), "loaded": False})
            else:
                states.append(asdict(model.state()))
        return states

    def _spec(self, family: Family) -> ModelSpec:
        if family not in self.families:
            served = ", ".join(self.families) or "none"
            raise ModelUnavailable(f"This node has no {family} model; it serves the families: {served}.")
        spec = self._active.get(family)
        if spec is None:
            raise ModelUnavailable(self._absent(family))
        return spec

    def _absent(self, family: Family) -> str:
        return f"Profile {self.profile} has no {family} model; use a profile that has one."


def build(spec: ModelSpec, *, threads: int | None = None, models_dir: Path | None = None) -> Model:
    """The model of a catalogue entry, not yet loaded; imports its engine.

    Raises: ModelUnavailable for an unknown provider, or when its engine is not installed.
    """
    path = PROVIDERS.get((spec.family, spec.provider))
    if path is None:
        known = ", ".join(provider for family, provider in PROVIDERS if family == spec.family) or "none"
        raise ModelUnavailable(
            f"Model {spec.name} names the provider {spec.provider!r}, which family {spec.family} does not have "
            f"(known: {known}); correct models.yaml."
        )
    module, _, name = path.partition(":")
    try:
        provider = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ModelUnavailable(
            f"Model {spec.name} can't be loaded: its engine does not import ({error}); "
            f"install scenefleet's extra {spec.profiles[0]!r}."
        ) from error
    model = provider(spec, threads=threads, models_dir=models_dir)
    assert isinstance(model, Model)
    return model
