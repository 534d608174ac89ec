"""The fleet to compare with: the same nodes, but every child loads every model, whatever its family.

What a worker with one set of tasks for everything does. Run as ``celery -A bench.naive worker``. A child that has loaded them
says so by a file in SCENEFLEET_HOME.
"""

from __future__ import annotations

import os
from typing import Any

from celery import signals

from worker.app import app
from worker.models.cache import ModelCache
from worker.models.spec import KINDS
from worker.runtime import get_runtime

__all__ = ["app"]

#: Keeps the models alive.
_model_caches: list[ModelCache] = []


# After the node's own handler, which loads the family's model.
@signals.worker_process_init.connect(weak=False)  # type: ignore[untyped-decorator]
def load_the_others(**_: Any) -> None:
    runtime = get_runtime()
    settings = runtime.settings
    model_cache = ModelCache(
        runtime.catalog,
        runtime.catalog.active(settings),
        [family for family in KINDS if family != settings.family],
        threads=settings.model_threads or None,
        models_dir=settings.models_dir,
    )
    model_cache.preload()
    _model_caches.append(model_cache)
    (settings.home / f"naive-{os.getpid()}").touch()
