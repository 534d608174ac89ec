"""The weights of the network that judges doubtful cuts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from shared.errors import ModelUnavailable
from shared.logs import get_logger
from worker.models.weights.verify import locate, sha256_of, verify
from worker.stages.context import StageContext

log = get_logger(__name__)


def find_weights(context: StageContext) -> Path | None:
    """The file of the network that judges doubtful cuts; None, and a warning, where it is not here."""
    settings = context.runtime.settings
    spec = context.runtime.catalog.active(settings).get("cuts")
    if spec is None or settings.split_mode == "fast":
        return None
    try:
        (file,) = spec.sha256
        path = locate(spec, file, models_dir=settings.models_dir)
        if _sha256(path, path.stat().st_mtime_ns) != spec.sha256[file]:
            verify(spec, models_dir=settings.models_dir)
    except (ModelUnavailable, OSError) as error:
        log.warning("cuts are judged by cheap features alone", error=str(error))
        return None
    return path


@lru_cache(maxsize=2)
def _sha256(path: Path, changed_ns: int) -> str:
    """The checksum of a file, computed once per state of it."""
    return sha256_of(path)
