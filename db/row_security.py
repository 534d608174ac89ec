"""Row-level security: requests read as a role to which Postgres shows one user's rows only.

Every statement filters by ``user_id``. This protects against statements that lack the filter: row-level security on
every table of users (migration 0006), for the role ``scenefleet_reader``, which owns nothing, writes nothing and sees
the rows of the user named by ``app.user_id``, none without a name. The tables' owner, the user of workers, sees all rows.
Roles belong to the whole server, so a dump does not contain this one: ``allow`` may run again, and ``schema.upgrade`` runs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from db.locks import AdvisoryLock
from shared import graph

ROLE = "scenefleet_reader"
#: The setting with the user whose rows are visible; set for one transaction.
USER = "app.user_id"

#: Tables that requests read; missing tables are skipped.
READ = (
    "videos", "runs", "jobs", "scenes", "embeddings", "lexical_weights", "screen_texts", "faces", "face_tracks", "people",
    "person_photos", "person_profiles", "scene_people", "people_events", "search_changes",
    "searched_scenes", "searched_weights", "webhooks", "webhook_deliveries",
    # Rows without a user:
    "models", "active_models",
    *(table for plugin in graph.PLUGINS.plugins for stage in plugin.stages for table in stage.tables),
)  # fmt: skip
_READ_ARRAY = f"ARRAY[{', '.join(map(repr, READ))}]"

#: Become the reader of one user until the transaction ends; one statement, one round trip.
BECOME_READER = text(f"SELECT set_config('role', '{ROLE}', true), set_config('{USER}', :user_id, true)")
#: Without the role: sets the user only, for the views of keyword and lexical search.
NAME_USER = text(f"SELECT set_config('{USER}', :user_id, true)")

#: Makes the role, lets this database user act as it, and lets it read. What it may not do is skipped: ``find_gaps`` reports it.
ALLOW = f"""
DO $allow$
DECLARE
    member text := CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END;
    relation text;
BEGIN
    PERFORM pg_advisory_xact_lock({AdvisoryLock.READER_ROLE:d});
    IF to_regclass('searched_scenes') IS NULL THEN
        RETURN;
    END IF;
    -- Another database of this server may be doing the same just now; locks don't reach that far.
    FOR attempt IN 1..10 LOOP
        BEGIN
            IF to_regrole('{ROLE}') IS NULL THEN
                CREATE ROLE {ROLE} NOLOGIN;
            END IF;
            IF NOT pg_has_role('{ROLE}', member) THEN
                GRANT {ROLE} TO CURRENT_USER;
            END IF;
            EXIT;
        EXCEPTION
            WHEN insufficient_privilege THEN EXIT;
            WHEN duplicate_object OR unique_violation OR undefined_object OR internal_error THEN
                PERFORM pg_sleep(0.02 * attempt);
        END;
    END LOOP;
    IF to_regrole('{ROLE}') IS NULL THEN
        RETURN;
    END IF;
    IF NOT has_schema_privilege('{ROLE}', current_schema(), 'USAGE') THEN
        EXECUTE 'GRANT USAGE ON SCHEMA ' || quote_ident(current_schema()) || ' TO {ROLE}';
    END IF;
    FOREACH relation IN ARRAY {_READ_ARRAY} LOOP
        IF to_regclass(relation) IS NOT NULL AND NOT has_table_privilege('{ROLE}', relation, 'SELECT') THEN
            EXECUTE 'GRANT SELECT ON ' || quote_ident(relation) || ' TO {ROLE}';
        END IF;
    END LOOP;
END
$allow$
"""

#: Revokes in this database what ``ALLOW`` granted; the role stays, other databases of the server may use it.
DISALLOW = f"""
DO $disallow$
DECLARE relation text;
BEGIN
    IF to_regrole('{ROLE}') IS NOT NULL THEN
        FOREACH relation IN ARRAY {_READ_ARRAY} LOOP
            IF to_regclass(relation) IS NOT NULL THEN
                EXECUTE 'REVOKE SELECT ON ' || quote_ident(relation) || ' FROM {ROLE}';
            END IF;
        END LOOP;
    END IF;
END
$disallow$
"""

#: Errors of a server without the role, or that does not let this database user act as it.
NO_READER = ("22023", "42501")


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Gaps in row-level security."""

    #: The database user, and the number of tables with rows of users.
    user: str
    tables: int
    #: Why requests can't read as the role; empty: they can.
    role: str
    #: Tables of users that show the role every row.
    open: list[str]
    #: Tables that requests read but the role may not read.
    shut: list[str]
    #: Tables that hide rows from the database user itself, which does not own them: workers would find no rows.
    hidden: list[str]


def find_gaps(connection: Connection) -> Gaps:
    """Look for gaps in a database whose schema is this version's."""
    tables = text(
        """
        SELECT c.relname AS name, row_security_active(c.oid) AS hides,
            c.relrowsecurity AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) AS walled
        FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND (c.relname = 'runs'
            OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'user_id' AND NOT a.attisdropped))
        ORDER BY c.relname
        """
    )
    of_users = connection.execute(tables).all()
    server = (
        f"SELECT current_user, current_setting('server_version_num')::int, to_regrole('{ROLE}') IS NOT NULL"
    )
    user, version, known = connection.execute(text(server)).one()
    role, shut = f"the server has no role {ROLE}", list[str]()
    if known:
        member = "MEMBER" if version < 160000 else "SET"
        may = connection.execute(text(f"SELECT pg_has_role('{ROLE}', '{member}')")).scalar_one()
        role = "" if may else f"{user} may not act as {ROLE}"
        names = text(
            "SELECT name FROM unnest(CAST(:names AS text[])) name"
            f" WHERE to_regclass(name) IS NOT NULL AND NOT has_table_privilege('{ROLE}', name, 'SELECT')"
        )
        shut = list(connection.execute(names, {"names": list(READ)}).scalars())
    return Gaps(
        user=user,
        tables=len(of_users),
        role=role,
        open=[table.name for table in of_users if not table.walled],
        shut=shut,
        hidden=[table.name for table in of_users if table.hides],
    )
