"""The models that callers may name: the active ones, which nodes publish, and those that the operator allows (REQUEST_MODELS)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import get_args

from fastapi import Request
from starlette.concurrency import run_in_threadpool as in_thread

from api.dialects import UnknownModel
from shared import nodes
from shared.contracts import SearchedKind
from shared.errors import Outage
from shared.nodes import HeldModel, NodeRecord
from shared.settings import Settings

#: How long the nodes' models are believed without another look, seconds.
READ_S = 5.0
#: How long a model is known whose nodes are away: its callers are told to ask again, seconds.
KNOWN_S = 600.0
MAX_SHOWN = 20
#: The family of a kind, where that is another word.
_FAMILIES = {"rerank": "text"}
#: Kinds of which a request can choose another model than the active one.
NAMED_KINDS = get_args(SearchedKind)


class ServedModels:
    """Reads which models nodes serve; one per API process."""

    def __init__(self, settings: Settings) -> None:
        self._redis_url = settings.redis_url
        self._allowed = frozenset(settings.request_models.replace(",", " ").split())
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        #: By name, with the time of the last look that found it.
        self._known: dict[str, tuple[float, HeldModel]] = {}
        self._families: set[str] = set()

    async def list(self) -> list[HeldModel]:
        """The models that callers may name and nodes have, by name.

        Raises:
            BrokerUnavailable: Redis does not answer.
        """
        async with self._reading:
            if time.monotonic() - self._read_at > READ_S:
                self._remember((await in_thread(nodes.read_nodes, self._redis_url)).values())
        return [
            model
            for _, (_, model) in sorted(self._known.items())
            if model.active or (model.name in self._allowed and model.kind in NAMED_KINDS)
        ]

    def _remember(self, records: Iterable[NodeRecord]) -> None:
        now = time.monotonic()
        found = {model.name: (now, model) for record in records for model in record.held}
        known = {name: seen for name, seen in self._known.items() if now - seen[0] < KNOWN_S}
        self._known, self._read_at = {**known, **found}, now
        self._families = {record.family for record in records}

    async def find(self, name: str | None, *kinds: str) -> HeldModel:
        """The model of this name and one of these kinds; without a name the active one of the first kind that has one.

        Raises:
            UnknownModel: callers can't use such a model.
            Outage: no node is up that could tell.
        """
        usable = [model for model in await self.list() if model.kind in kinds]
        found = [model for model in usable if (model.active if name is None else model.name == name)]
        if found:
            return min(found, key=lambda model: kinds.index(model.kind))
        if name in self._allowed and name not in self._known and kinds[0] in NAMED_KINDS:
            # No node has used it yet: the one that is asked knows what it is.
            return HeldModel(name=name, kind=kinds[0], dim=None, active=False)
        families = {_FAMILIES.get(kind, kind) for kind in kinds}
        if not usable and not families & self._families:
            raise Outage(f"no node of {' or '.join(sorted(families))} is up: start one, or ask again")
        names = ", ".join(model.name for model in usable[:MAX_SHOWN]) or "none"
        raise UnknownModel(
            f"the model {(name or '')[:100]!a} is not one that callers can use for this: use one of: {names}"
        )


async def served_models(request: Request) -> ServedModels:
    """The dependency of routes whose callers name models."""
    found: ServedModels = request.app.state.served_models
    return found
