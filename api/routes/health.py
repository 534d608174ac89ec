"""Whether the fleet can be asked, and who asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from api import problems
from api.callers import Caller, caller
from shared import nodes
from shared.errors import ScenefleetError
from shared.nodes import NodeRecord

router = APIRouter(tags=["health"])


class Dependency(BaseModel):
    """A server that the fleet needs."""

    #: None: unknown, since no node has published it. The database's is what nodes have found.
    ok: bool | None
    #: How long it took to answer, milliseconds; None: not asked by the API.
    ms: float | None


class FleetResources(BaseModel):
    """The fullest machine of the fleet in each respect, percent of all."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float | None


class Health(BaseModel):
    """What of the fleet can be reached."""

    status: Literal["ok", "degraded"]
    redis: bool
    storage: bool
    #: Families with a ready node.
    families: list[str]
    #: By name: broker, storage, database.
    dependencies: dict[str, Dependency]
    #: None: no node has published them.
    resources: FleetResources | None


class Me(BaseModel):
    """Who asks, and what this API takes."""

    user_id: str
    operator: bool
    how: Literal["local", "key", "proxy", "oidc"]
    storage: Literal["local", "s3"]
    profile: str
    max_video_bytes: int
    #: Address of resumable uploads.
    tus: str
    version: str


@router.get("/health", responses={503: {"model": Health, "description": "Redis does not answer"}})
async def health(request: Request, response: Response) -> Health:
    """Say which servers of the fleet answer, which families of nodes are ready, and how full their machines are."""
    state = request.app.state
    records: list[NodeRecord] = []

    def read_nodes() -> None:
        records.extend(nodes.read_nodes(state.settings.redis_url).values())

    broker, storage = await _try(read_nodes), await _try(state.storage.check)
    families = sorted({record.family for record in records if record.state == "ready"})
    response.headers["Cache-Control"] = "no-store"
    response.status_code = 200 if broker.ok else 503
    ok = broker.ok and storage.ok and "search" in families
    return Health(
        status="ok" if ok else "degraded",
        redis=bool(broker.ok),
        storage=bool(storage.ok),
        families=families,
        dependencies={"broker": broker, "storage": storage, "database": _database(records)},
        resources=_fullest(records),
    )


async def _try(look: Callable[[], object]) -> Dependency:
    """Whether a server answers, and how soon."""
    began = time.monotonic()
    try:
        await anyio.to_thread.run_sync(look)
    except ScenefleetError:
        return Dependency(ok=False, ms=None)
    return Dependency(ok=True, ms=round(1000 * (time.monotonic() - began), 1))


def _database(records: Iterable[NodeRecord]) -> Dependency:
    """What the node has found that asked the database last: the API does not reach it."""
    found = [record.telemetry["database"] for record in records if record.telemetry.get("database")]
    return Dependency(ok=max(found, key=lambda look: look["at"])["ok"] if found else None, ms=None)


def _fullest(records: Iterable[NodeRecord]) -> FleetResources | None:
    machines = [found for record in records if (found := nodes.resources_of(record)) is not None]
    if not machines:
        return None
    memory = [1 - found.memory_available_bytes / found.memory_total_bytes for found in machines]
    disks = [
        1 - found.disk_free_bytes / found.disk_total_bytes
        for found in machines
        if found.disk_total_bytes and found.disk_free_bytes is not None
    ]
    return FleetResources(
        cpu_percent=round(max(found.cpu_percent for found in machines), 1),
        memory_percent=round(100 * max(memory), 1),
        disk_percent=round(100 * max(disks), 1) if disks else None,
    )


@router.get("/me", responses=problems.responses())
async def me(request: Request, who: Annotated[Caller, Depends(caller)]) -> Me:
    """Say who asks, and what this API takes."""
    settings = request.app.state.settings
    return Me(
        user_id=who.user_id,
        operator=who.operator,
        how=who.how,
        storage="local" if settings.storage_backend == "local" else "s3",
        profile=settings.profile,
        max_video_bytes=settings.max_video_bytes,
        tus="/api/v1/uploads",
        version=version("scenefleet"),
    )
