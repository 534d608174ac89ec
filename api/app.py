"""Puts the HTTP API together: routes, problems, headers, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from redis.asyncio import Redis
from starlette.middleware.cors import CORSMiddleware

from api import oidc, page, problems
from api.asking import Asking
from api.callers import Keys, networks
from api.events import Hub
from api.headers import SecurityHeaders
from api.limits import Slots
from api.metrics import Counted, Metrics, publish_for_ever, serve
from api.origins import Origins
from api.routes import (
    embeddings,
    events,
    fleet,
    health,
    media,
    models,
    named_models,
    people,
    rerank,
    search,
    session,
    transcriptions,
    uploads,
    videos,
    webhooks,
)
from api.schema import describe
from api.served_models import ServedModels
from api.sessions import Sessions
from api.traces import Traces
from api.uploads import Uploads
from shared import tracing
from shared.errors import InvalidRequest
from shared.settings import Settings, get_settings
from shared.storage import configured_storage

# Routers of other parts: one import line above and one entry here each.
ROUTERS: tuple[APIRouter, ...] = (
    health.router,
    session.router,
    videos.router,
    search.router,
    people.router,
    models.router,
    uploads.router,
    media.router,
    events.router,
    fleet.router,
    webhooks.router,
)
#: At the addresses that clients of other services call.
DROP_IN: tuple[APIRouter, ...] = (
    embeddings.router,
    rerank.router,
    transcriptions.router,
    named_models.router,
)
#: Of a user and of one process at once: bodies of some MiB, which are in memory, and sounds, which are in the storage.
LARGE_BODIES, SOUNDS = (8, 32), (16, 1000)
#: Of large bodies.
PARSED_AT_ONCE = 2
PREFIX = "/api/v1"
TUS_HEADERS = (
    "Location", "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Upload-Offset", "Upload-Length",
    "Upload-Expires", "Upload-Metadata", "Tus-Checksum-Algorithm", "Scenefleet-Video-Id",
)  # fmt: skip


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API of one fleet. Reads the environment where no settings are given.

    Raises:
        InvalidRequest: a setting is missing or not acceptable.
    """
    settings = settings or get_settings()
    redis_url = settings.require("redis_url")
    try:
        networks(settings.api_trusted_proxies)
    except ValueError as error:
        raise InvalidRequest(f"API_TRUSTED_PROXIES: {error}: list addresses or networks") from None
    oidc.check_settings(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Its packages are loaded now, not while requests wait.
        tracing.root()
        app.state.redis = Redis.from_url(
            redis_url,
            socket_connect_timeout=3,
            socket_timeout=10,
            # redis-py's default is 100, and an error beyond it.
            max_connections=settings.api_max_connections,
        )
        app.state.asking = Asking(app.state.redis, redis_url, broker_url=settings.broker_url)
        await app.state.asking.start()
        app.state.served_models = ServedModels(settings)
        app.state.keys = Keys(app.state.asking)
        app.state.sessions = Sessions(app.state.redis)
        app.state.issuer = oidc.Issuer(settings) if settings.oidc_issuer else None
        # Set when the server begins to stop, so that streams end.
        app.state.stopping = asyncio.Event()
        app.state.uploads = Uploads(settings, app.state.storage, app.state.redis, app.state.asking)
        app.state.hub = Hub(app.state.asking, redis_url, app.state.stopping)
        repeated = [asyncio.create_task(app.state.uploads.sweep_for_ever())]
        if (address := serve(settings, app.state.metrics)) is not None:
            repeated.append(asyncio.create_task(publish_for_ever(app.state.redis, address)))
        yield
        for task in repeated:
            task.cancel()
        await app.state.hub.stop()
        if app.state.issuer is not None:
            await app.state.issuer.close()
        await app.state.asking.close()
        await app.state.redis.aclose()
        await asyncio.to_thread(tracing.flush)

    app = FastAPI(
        title="scenefleet",
        version="1",
        lifespan=lifespan,
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
    )
    app.state.settings = settings
    app.state.metrics = Metrics()
    app.state.storage = configured_storage(settings)
    app.state.large_bodies = Slots("large bodies", *LARGE_BODIES)
    app.state.parsing = asyncio.Semaphore(PARSED_AT_ONCE)
    app.state.sounds = Slots("sounds", *SOUNDS)
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router, prefix=PREFIX)
    for router in DROP_IN:
        app.include_router(router)
    describe(app)
    page.serve(app)
    origins = [origin.strip() for origin in settings.api_cors_origins.split(",") if origin.strip()]
    app.add_middleware(Traces)
    app.add_middleware(Origins, settings=settings)
    app.add_middleware(SecurityHeaders, settings=settings, readable=bool(origins))
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=TUS_HEADERS,
        )
    app.add_middleware(Counted, metrics=app.state.metrics)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
