"""The runtime of a worker process: settings, catalogue, models, storage, and the ledger's policy."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeVar, get_args

import redis
from sqlalchemy.orm import Session

from db.active_models import active_models, kept_models
from db.engine import reading, with_database_retry
from db.faces.vote import FaceRule
from db.ledger.policy import RunPolicy
from db.vectors import ModelRow
from shared import graph, routing
from shared.contracts import SearchedKind
from shared.errors import DatabaseUnavailable, ModelUnavailable
from shared.logs import get_logger
from shared.permissions import make_private_folder
from shared.settings import Settings, get_settings
from shared.storage import Storage, configured_storage
from worker.job_locks import JobLocks
from worker.models.base import Model
from worker.models.cache import ModelCache
from worker.models.catalog import Catalog, configured_catalog
from worker.models.labels import read_labels
from worker.models.spec import KINDS, Kind, ModelSpec
from worker.models.vector_cache import VectorCache

log = get_logger(__name__)
T = TypeVar("T")


def make_policy(settings: Settings, catalog: Catalog) -> RunPolicy:
    """The stages that can't run in this fleet, with the reason, and the limits of retries."""
    models = catalog.active(settings)
    skips: dict[str, str] = {}
    for stage in graph.PIPELINE:
        off = [flag.upper() for flag in stage.flags if not getattr(settings, flag)]
        if off:
            skips[stage.name] = f"{off[0]} is off"
        elif stage.queue in routing.MODEL_FAMILIES and stage.queue not in models:
            skips[stage.name] = f"unavailable: profile {settings.profile} has no {stage.queue} model"
    return RunPolicy(
        skips=skips,
        max_failures=settings.max_failures,
        tmp_ttl_s=settings.tmp_ttl_s,
        max_open_videos=settings.user_max_open_videos,
        max_outages=settings.max_outages,
        backoff_s=settings.backoff_s,
        backoff_max_s=settings.backoff_max_s,
        defer_max_s=settings.defer_max_s,
    )


#: Maximum delay until an activation is noticed, seconds. Until then the other model is used, whose vectors are kept.
NOTICED_S = 1.0
#: Pause after Postgres was unavailable, seconds: each try delays a request.
_AWAY_S = 15.0


class ActiveModels:
    """The active models of the database, or those of the settings where there was no switch."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._configured = catalog.active(settings)
        self._lock = threading.Lock()
        self._switched: dict[str, ModelRow] = {}
        #: When to read them again.
        self._next_s = float("-inf")

    def models(self) -> Mapping[Kind, ModelSpec]:
        """The active model of each kind that has one; while Postgres is unavailable, the last known ones.

        Raises:
            ModelUnavailable: a switch has activated a model that this catalogue does not have.
        """
        with self._lock:
            if time.monotonic() >= self._next_s:
                pause_s = NOTICED_S
                try:
                    with reading() as session:
                        self._switched = active_models(session)
                except DatabaseUnavailable as error:
                    log.warning("active models not looked up", error=error)
                    pause_s = _AWAY_S
                self._next_s = time.monotonic() + pause_s
            switched = self._switched
        return {
            kind: self._spec(switched[kind]) if kind in switched else spec
            for kind, spec in self._configured.items()
        }

    def written(self, kind: Kind) -> list[ModelSpec]:
        """The models whose vectors are written: the active one, then the other one of an open switch, if this catalogue has it.

        Raises:
            DatabaseUnavailable, ModelUnavailable.
        """
        with reading() as session:
            rows = kept_models(session, kind)
        active = self.models().get(kind)
        specs = [] if active is None else [active]
        for row in rows:
            try:
                spec = self._spec(row)
            except ModelUnavailable as error:
                log.warning(
                    "vectors left to the switch: its model is missing here", model=row.name, error=error
                )
                continue
            if spec != active:
                specs.append(spec)
        return specs

    def _spec(self, row: ModelRow) -> ModelSpec:
        if row.name not in self._catalog.names():
            raise ModelUnavailable(
                f"The archive has vectors of model {row.name} in use, which models.yaml does not have: add it again, or"
                " let them go with `scenefleet models switch --discard`"
            )
        spec = self._catalog.get(row.name)
        if spec.revision != row.revision:
            raise ModelUnavailable(
                f"The archive has vectors of {row.name} at revision {row.revision} in use; models.yaml and models.lock"
                f" have {spec.revision}: give the new revision a name of its own, and switch to it"
            )
        return spec


class Runtime:
    """Created once per process, after the fork; its parts are created at first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: ``node:main pid.birth:slot:pid`` once this is a pool child (worker/boot.py sets it).
        self.owner = "nobody"
        self.work_dir = settings.home / "work" / "nobody"
        #: Those of the node in a pool child.
        self.job_locks = JobLocks()

    @cached_property
    def catalog(self) -> Catalog:
        return configured_catalog(self.settings)

    @cached_property
    def active(self) -> ActiveModels:
        """The active models."""
        return ActiveModels(self.catalog, self.settings)

    @cached_property
    def policy(self) -> RunPolicy:
        return make_policy(self.settings, self.catalog)

    @cached_property
    def face_rule(self) -> FaceRule:
        """When a face is assigned to a person."""
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
        """The tags of pictures."""
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

    @cached_property
    def vector_cache(self) -> VectorCache:
        """The vectors of queries."""
        url = self.settings.require("redis_url")
        client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        return VectorCache(client, self.settings)

    def model(self, kind: Kind, name: str | None = None) -> Model:
        """Return a loaded model: the active one of a kind, or the one of that kind and name.

        Raises:
            ModelUnavailable: this process does not serve the kind, has no such model, or it can't be loaded.
        """
        # Models of other kinds are never switched, so they need no Postgres.
        if kind in get_args(SearchedKind) and (spec := self.active.models().get(kind)) is not None:
            self.model_cache.activate(spec)
        return self.model_cache.get(kind, name)

    def transact(self, work: Callable[[Session], T], *, locked_s: float = 0.0) -> T:
        """``with_database_retry`` with the wait of the settings."""
        return with_database_retry(work, self.settings.database_wait_s, locked_s=locked_s)

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


def renew_runtime() -> None:
    """Give a forked child a runtime of its own: a thread of its parent may have held locks of the parent's.

    Until Python 3.12 a ``cached_property`` has one lock for all objects of its class.
    """
    for part in vars(Runtime).values():
        if isinstance(part, cached_property):
            part.__dict__["lock"] = threading.RLock()
    get_runtime.cache_clear()
