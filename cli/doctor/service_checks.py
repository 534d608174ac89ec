"""Checks of what runs elsewhere: Postgres, Redis, the storage, the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, get_args

from sqlalchemy.exc import SQLAlchemyError

from cli.doctor.findings import Finding, fail, ok, warn
from local import node_plan
from local.servers.redis_versions import HOLES, is_patched, patched_releases
from shared import nodes
from shared.errors import BrokerUnavailable, DatabaseUnavailable, ScenefleetError
from shared.settings import Settings, get_settings, hide_password

PING_S = 3.0
OLDEST_PGVECTOR = (0, 8)


def check_postgres(settings: Settings) -> Iterator[Finding]:
    """Postgres answers, brings pgvector, has this version's schema and row-level security."""
    import psycopg

    from db import schema

    url = settings.require("postgres_url")
    try:
        libpq_url = "postgresql://" + settings.database_url.partition("://")[2]
        with psycopg.connect(libpq_url, connect_timeout=5) as connection:
            server = connection.execute("SHOW server_version").fetchone()
            vector = connection.execute(
                "SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchone()
    except psycopg.Error as error:
        reason = str(error).strip().split("\n")[0]
        raise DatabaseUnavailable(
            f"Postgres at {hide_password(url)} does not answer ({reason}): is it running, is POSTGRES_URL right?"
        ) from None
    assert server is not None
    yield ok("postgres", f"{server[0]} at {hide_password(url)}")
    if vector is None:
        advice = "install pgvector 0.8 or newer on the server (image pgvector/pgvector)"
        yield fail("pgvector", "the server has no extension `vector`", advice)
        return
    version = vector[1] or vector[0]
    detail = f"{version}{'' if vector[1] else ' available, `db upgrade` installs it'}"
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_PGVECTOR:
        yield ok("pgvector", detail)
    else:
        yield fail("pgvector", detail, "0.8 is needed for iterative scans: upgrade the extension")
    have, want = schema.current_revision(), schema.head_revision()
    if have != want:
        yield fail("schema", f"revision {have or 'none'}, this version wants {want}", "scenefleet db upgrade")
        return
    yield ok("schema", f"revision {have}")
    yield _check_tenancy(settings)
    yield from _check_searched_models(settings)


def _check_tenancy(settings: Settings) -> Finding:
    """The worst problem of row-level security, which separates users."""
    from db.engine import make_engine
    from db.row_security import ROLE, find_gaps

    with make_engine(settings.database_url, pooled=False).connect() as connection:
        gaps = find_gaps(connection)
    if gaps.hidden:
        hides = "row-level security hides every row of theirs from it"
        detail = f"{gaps.user} does not own the tables, and {hides}"
        advice = "set POSTGRES_URL to the user that owns them: the one that ran `scenefleet db upgrade`"
    elif gaps.open:
        detail = f"no row-level security on {', '.join(gaps.open)}"
        advice = "make it as db/migrations/versions/0006_row_level_security.py does, or restore a whole dump"
    elif gaps.shut:
        detail = f"requests may not read {', '.join(gaps.shut)}: they fail"
        advice = "scenefleet db upgrade"
    elif gaps.role:
        detail = f"only the queries keep users apart: requests are read as {gaps.user}, since {gaps.role}"
        role = f'CREATE ROLE {ROLE} NOLOGIN (if there is none); GRANT {ROLE} TO "{gaps.user}"'
        then = "then `scenefleet db upgrade`, and start the nodes again"
        return warn("tenancy", detail, f"as an administrator of Postgres: {role}; {then}")
    else:
        return ok("tenancy", f"row-level security on {gaps.tables} tables, requests are read as {ROLE}")
    return fail("tenancy", detail, advice)


def _check_searched_models(settings: Settings) -> Iterator[Finding]:
    """The active models exist in the catalogue; says which are not the configured ones."""
    from sqlalchemy.orm import Session

    from db.active_models import active_models
    from db.engine import make_engine
    from worker.models.catalog import configured_catalog

    catalog = configured_catalog(settings)
    with Session(make_engine(settings.database_url, pooled=False)) as session:
        switched = active_models(session)
    known = {spec.name: spec.revision for spec in catalog.specs}
    configured = {str(kind): spec.name for kind, spec in catalog.active(settings).items()}
    for kind, row in switched.items():
        check, said = f"searched {kind} model", configured.get(kind, "none")
        if known.get(row.name) != row.revision:
            held = f"models.yaml and models.lock have {known.get(row.name) or 'no such model'}"
            detail = f"{row.name} at revision {row.revision} is searched, {held}"
            yield fail(check, detail, "put it back into models.yaml, or into MODELS_DIR at that revision")
        else:
            instead = "" if said == row.name else f", not {said}, which is configured"
            yield ok(check, f"{row.name}, by a switch{instead}")


def check_redis(settings: Settings) -> Iterator[Finding]:
    """Redis answers, does not evict, and survives a restart."""
    import redis

    url = settings.require("redis_url")
    try:
        with nodes.open_redis(url) as client:
            info: dict[str, Any] = client.info()
            policy = info.get("maxmemory_policy", "unknown")
    except (redis.RedisError, ValueError) as error:
        raise BrokerUnavailable(
            f"Redis at {hide_password(url)} does not answer ({error}): is it running, is REDIS_URL right?"
        ) from None
    yield _check_redis_version(info, hide_password(url))
    if policy == "noeviction":
        yield ok("redis eviction", f"maxmemory-policy is {policy}")
    else:
        advice = "set maxmemory-policy noeviction: Redis would evict messages"
        yield fail("redis eviction", f"maxmemory-policy is {policy}", advice)
    if info.get("aof_enabled"):
        yield ok("redis durability", "append-only file is on")
    else:
        advice = "set appendonly yes: after a restart work goes on only once nodes have looked at the ledger"
        yield warn("redis durability", "append-only file is off", advice)


def check_broker(settings: Settings) -> Iterator[Finding]:
    """RabbitMQ answers, if BROKER_URL names one, and takes the login."""
    from kombu import Connection
    from kombu.exceptions import OperationalError

    url = settings.broker_url
    if not url:
        return
    try:
        with Connection(url, connect_timeout=PING_S) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2 * PING_S)
            server = connection.connection.server_properties
    except (OperationalError, OSError, *Connection(url).connection_errors) as error:
        raise BrokerUnavailable(
            f"RabbitMQ at {hide_password(url)} does not answer ({error}): is it running, is BROKER_URL right?"
        ) from None
    yield ok("broker", f"{server['product']} {server['version']} at {hide_password(url)}")


def _check_redis_version(info: dict[str, Any], address: str) -> Finding:
    """The server's version, and whether it has known vulnerabilities; Valkey also calls itself Redis 7.2.4."""
    product = "Valkey" if "valkey_version" in info else "Redis"
    said = info[f"{product.lower()}_version"]
    detail = f"{product} {said} at {address}"
    numbers = tuple(int(part) for part in str(said).split(".")[:3] if part.isdigit())
    if len(numbers) != 3 or is_patched(product, numbers):
        return ok("redis", detail)
    detail += f": not patched for {HOLES}, unless its distributor has backported the fixes"
    return warn("redis", detail, f"update it: patched are {patched_releases()}")


def check_storage(settings: Settings) -> Iterator[Finding]:
    """The storage can be read and written."""
    from shared.storage import configured_storage

    storage = configured_storage(settings)
    storage.check()
    yield ok("storage", storage.describe())


def check_nodes(settings: Settings) -> Iterator[Finding]:
    """Every family that the profile has a model for has a node that is ready and answers."""
    from worker.models.catalog import configured_catalog

    url = settings.require("redis_url")
    records = nodes.read_nodes(url)
    answering = ping(url, len(records)) if records else set()
    models = configured_catalog(settings).active(settings)
    needed = _needed_models(settings, (spec.name for spec in models.values()))
    for family in node_plan.usable_families(set(models)):
        mine = [record for record in records.values() if record.family == family]
        ready = [record for record in mine if record.state == "ready"]
        silent = [record.name for record in ready if record.name not in answering]
        check = f"node {family}"
        if not ready:
            found = ", ".join(f"{record.name} is {record.state} {record.error}".strip() for record in mine)
            advice = f"scenefleet up, or `scenefleet node {family}`; logs say more"
            yield fail(check, found or "none runs", advice)
        elif lacking := _lacking(mine, needed):
            advice = "other nodes do their work meanwhile; `scenefleet models pull` there"
            yield warn(check, lacking, advice)
        elif silent:
            detail = f"{', '.join(silent)} did not answer a ping in {PING_S:g} s"
            yield warn(check, detail, "look at its log if this stays")
        else:
            held = sorted({model for record in ready for model in record.models})
            names = ", ".join(sorted(record.name for record in ready))
            yield ok(check, f"{names} ready {' '.join(held)}".rstrip())


def _needed_models(settings: Settings, active: Iterable[str]) -> set[str]:
    """The active models, and those of open switches as far as Postgres can be asked."""
    from db.active_models import active_models, kept_models
    from db.engine import reading
    from shared.contracts import SearchedKind

    needed = set(active)
    with suppress(ScenefleetError, SQLAlchemyError), reading() as session:
        needed |= {row.name for row in active_models(session).values()}
        for kind in get_args(SearchedKind):
            needed |= {row.name for row in kept_models(session, kind)}
    return needed


def _lacking(records: Iterable[nodes.NodeRecord], needed: set[str]) -> str:
    """What the nodes of a family lack of the models that are in use; empty: nothing."""
    return "; ".join(
        f"{record.name} has no {model} ({record.lacks[model]})"
        for record in records
        for model in sorted(needed & record.lacks.keys())
    )


def ping(redis_url: str, expected: int) -> set[str]:
    """Names of the nodes that answer Celery's ping; waits no longer once ``expected`` did."""
    from celery import Celery

    from shared.broker import broker_config

    app = Celery("scenefleet-doctor", set_as_current=False)
    app.conf.update(broker_config(redis_url, broker_url=get_settings().broker_url))
    answers = app.control.inspect(timeout=PING_S, limit=expected).ping() or {}
    return set(answers)
