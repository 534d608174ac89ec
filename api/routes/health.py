"""Whether the fleet can be asked, and who asks it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Literal

import anyio.to_thread
from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from api import problems
from api.callers import Caller, caller
from shared import nodes
from shared.errors import BrokerUnavailable, ScenefleetError

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """What of the fleet can be reached."""

    status: Literal["ok", "degraded"]
    redis: bool
    storage: bool
    #: Families with a ready node.
    families: list[str]


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
    """Say whether Redis and the storage answer, and which families of nodes are ready."""
    state = request.app.state
    try:
        records = await anyio.to_thread.run_sync(nodes.read_nodes, state.settings.redis_url)
        families = sorted({record.family for record in records.values() if record.state == "ready"})
        redis = True
    except BrokerUnavailable:
        families, redis = [], False
    try:
        await anyio.to_thread.run_sync(state.storage.check)
        storage = True
    except ScenefleetError:
        storage = False
    response.headers["Cache-Control"] = "no-store"
    response.status_code = 200 if redis else 503
    ok = redis and storage and "search" in families
    return Health(status="ok" if ok else "degraded", redis=redis, storage=storage, families=families)


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
