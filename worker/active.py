"""Which model of a kind jobs and requests use: the one a switch has made active, else the configured one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from db.engine import reading
from db.switches import active_models, kept_models
from db.vectors import ModelRow
from shared.errors import DatabaseUnavailable, ModelUnavailable
from shared.logs import get_logger
from shared.settings import Settings
from worker.models.catalog import Catalog
from worker.models.spec import Kind, ModelSpec

log = get_logger(__name__)

#: An activation is noticed this late at most, seconds. Until then queries and vectors of the other model are used, which are kept.
NOTICED_S = 1.0
#: While Postgres is away it is not asked again for so long: each time costs a request seconds.
_AWAY_S = 15.0


class Active:
    """The active models, as this process knows them.

    Args:
        catalog: the models there are.
        settings: say which are active where no switch has said otherwise.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._configured = catalog.active(settings)
        self._lock = threading.Lock()
        self._switched: dict[str, ModelRow] = {}
        #: When to look again.
        self._next_s = float("-inf")

    def models(self) -> Mapping[Kind, ModelSpec]:
        """The active model of each kind; a kind that has none is absent.

        While Postgres is away what was known last goes on.

        Raises:
            ModelUnavailable: a switch has made a model active that this catalogue does not have.
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
            switched = dict(self._switched)
        found = dict(self._configured)
        for kind in found:
            if kind in switched:
                found[kind] = self._spec(switched[kind])
        return found

    def written(self, kind: Kind) -> list[ModelSpec]:
        """The models whose vectors are made of what is indexed: the active one, and the other one of an open switch.

        Raises:
            DatabaseUnavailable, ModelUnavailable.
        """
        with reading() as session:
            rows = kept_models(session, kind)
        active = self.models().get(kind)
        specs = [] if active is None else [active]
        return specs + [spec for row in rows if (spec := self._spec(row)) != active]

    def _spec(self, row: ModelRow) -> ModelSpec:
        if row.name not in self._catalog.names():
            raise ModelUnavailable(
                f"The archive has vectors of model {row.name} in use, which models.yaml does not have: add it again, or"
                " let them go with `scenefleet models switch --discard`."
            )
        spec = self._catalog.get(row.name)
        if spec.revision != row.revision:
            raise ModelUnavailable(
                f"The archive has vectors of {row.name} at revision {row.revision} in use; models.yaml and models.lock"
                f" have {spec.revision}: give the new revision a name of its own, and switch to it."
            )
        return spec
