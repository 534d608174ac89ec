"""What a worker process has at hand: settings, catalogue, models, storage, and the ledger's rules made from them."""

from __future__ import annotations

import shutil
import threading
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

from db.ledger.jobs import RetryPolicy
from db.ledger.runs import Plan
from db.people.vote import FaceRule
from shared import graph
from shared.contracts import SearchedKind
from shared.permissions import make_private_folder
from shared.settings import Settings, get_settings
from shared.storage import Storage, configured_storage
from worker.active import Active
from worker.models.base import Model
from worker.models.cache import ModelCache
from worker.models.catalog import Catalog, configured_catalog
from worker.models.labels import read_labels
from worker.models.spec import KINDS, Kind

#: Stage -> the settings that switch it off.
_FLAGS: dict[str, tuple[str, ...]] = {
    "text": ("feature_semantic_search",),
    "vision": ("feature_vision",),
    "face": ("feature_face", "feature_face_detection"),
    "ocr": ("feature_ocr",),
}


def make_plan(settings: Settings, catalog: Catalog) -> Plan:
    """Which stages can't run in this fleet and why, and how patient the ledger is."""
    models = catalog.active(settings)
    skips: dict[str, str] = {}
    for stage in graph.PIPELINE:
        off = [flag.upper() for flag in _FLAGS.get(stage.name, ()) if not getattr(settings, flag)]
        if off:
            skips[stage.name] = f"{off[0]} is off"
        elif stage.queue != "media" and stage.queue not in models:
            skips[stage.name] = f"unavailable: profile {settings.profile} has no {stage.queue} model"
    return Plan(
        skips=skips,
        max_failures=settings.max_failures,
        tmp_ttl_s=settings.tmp_ttl_s,
        max_open_videos=settings.user_max_open_videos,
    )


def make_policy(settings: Settings) -> RetryPolicy:
    return RetryPolicy(
        max_outages=settings.max_outages,
        backoff_s=settings.backoff_s,
        backoff_max_s=settings.backoff_max_s,
        defer_max_s=settings.defer_max_s,
    )


class Runtime:
    """Made once per process, after the fork; everything in it is made at first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: ``node:main pid.birth:slot:pid`` once this is a pool child (worker/boot.py sets it).
        self.owner = "nobody"
        self.work_dir = settings.home / "work" / "nobody"
        self._lock = threading.Lock()

    @cached_property
    def catalog(self) -> Catalog:
        return configured_catalog(self.settings)

    @cached_property
    def active(self) -> Active:
        """Which model of each kind is used."""
        return Active(self.catalog, self.settings)

    @cached_property
    def plan(self) -> Plan:
        return make_plan(self.settings, self.catalog)

    @cached_property
    def policy(self) -> RetryPolicy:
        return make_policy(self.settings)

    @cached_property
    def face_rule(self) -> FaceRule:
        """From when on a face is somebody's."""
        settings = self.settings
        return FaceRule(
            cosine=settings.face_similarity_threshold,
            distance=settings.face_distance_threshold,
            margin=settings.face_margin,
        )

    @cached_property
    def storage(self) -> Storage:
        return configured_storage(self.settings)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What pictures are tagged with."""
        return read_labels(self.settings.vision_labels)

    @cached_property
    def model_cache(self) -> ModelCache:
        settings = self.settings
        return ModelCache(
            self.catalog,
            self.active.models(),
            [settings.family] if settings.family in KINDS else [],
            threads=settings.model_threads or None,
            models_dir=settings.models_dir,
            budget_mb=settings.model_memory_mb,
        )

    def model(self, kind: Kind, name: str | None = None) -> Model:
        """Return a loaded model: the active one of a kind, or the one of that kind and name.

        The one way for tasks and stages to get a model. ``model_cache`` is the node's, which preloads and publishes.

        Raises:
            ModelUnavailable: this process does not serve the kind, has no such model, or it can't be loaded.
        """
        # Models of other kinds are never switched: they are used while Postgres is away, too.
        if kind in get_args(SearchedKind) and (spec := self.active.models().get(kind)) is not None:
            self.model_cache.activate(spec)
        return self.model_cache.get(kind, name)

    def attempt_dir(self, name: str) -> Path:
        """A fresh empty folder for one attempt's temporary files."""
        path = self.work_dir / name
        shutil.rmtree(path, ignore_errors=True)
        make_private_folder(path)
        return path


@lru_cache(maxsize=1)
def get_runtime() -> Runtime:
    """This process's runtime."""
    return Runtime(get_settings())
