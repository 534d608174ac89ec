"""The second wall between users: what answers a request is read as a role to which Postgres shows one user's rows only.

The first wall is the ``user_id`` in every statement. This one stands where that was forgotten: row-level security on
every table of users (migration 0006), for the role ``scenefleet_reader``, which owns nothing, writes nothing and sees
the rows of the user named by ``app.user_id``, none without. The tables' owner, as which workers act, sees everything.
Roles belong to the whole server, so a dump does not hold this one: ``allow`` may be run again, ``schema.upgrade`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from db.locks import AdvisoryLock

ROLE = "scenefleet_reader"
#: Whose rows are seen; set for one transaction.
USER = "app.user_id"

#: What requests read; a table that is not there yet is left out.
READ = (
    "videos",
    "runs",
    "jobs",
    "scenes",
    "embeddings",
    "lexical_weights",
    "screen_texts",
    "faces",
    "face_tracks",
    "people",
    "person_photos",
    "person_profiles",
    "scene_people",
    "people_events",
    "searched_scenes",
    "searched_weights",
    # Rows without a user:
    "models",
    "active_models",
)

#: Become the reader of one user until the transaction ends; one statement, one round trip.
BECOME_READER = text(f"SELECT set_config('role', '{ROLE}', true), set_config('{USER}', :user_id, true)")
#: Where there is no such role: views by which a search finds words show one user's rows only to those who are not the owner.
NAME_USER = text(f"SELECT set_config('{USER}', :user_id, true)")

#: Makes the role, lets this database user act as it, and lets it read. What it may not do is left undone: ``find_gaps`` says so.
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
    FOREACH relation IN ARRAY ARRAY[{", ".join(f"'{name}'" for name in READ)}] LOOP
        IF to_regclass(relation) IS NOT NULL AND NOT has_table_privilege('{ROLE}', relation, 'SELECT') THEN
            EXECUTE 'GRANT SELECT ON ' || quote_ident(relation) || ' TO {ROLE}';
        END IF;
    END LOOP;
END
$allow$
"""

#: Takes back in this database what ``ALLOW`` gave; the role stays, other databases of the server may use it.
DISALLOW = f"""
DO $disallow$
DECLARE relation text;
BEGIN
    IF to_regrole('{ROLE}') IS NOT NULL THEN
        FOREACH relation IN ARRAY ARRAY[{", ".join(f"'{name}'" for name in READ)}] LOOP
            IF to_regclass(relation) IS NOT NULL THEN
                EXECUTE 'REVOKE SELECT ON ' || quote_ident(relation) || ' FROM {ROLE}';
            END IF;
        END LOOP;
    END IF;
END
$disallow$
"""

#: Errors of a server that knows no such role, or does not let this database user act as it.
NO_READER = ("22023", "42501")


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Where the wall does not stand."""

    #: The database user that asked, and how many tables have rows of users.
    user: str
    tables: int
    #: Why requests are not read as the role; empty: they can be.
    role: str
    #: Tables of users that show the role every row.
    open: list[str]
    #: What requests read and the role may not.
    shut: list[str]
    #: Tables that hide rows from the database user itself, which does not own them: workers would find nothing.
    hidden: list[str]


def find_gaps(connection: Connection) -> Gaps:
    """Look for gaps in a database whose schema is this version's."""
    of_users = connection.execute(
        text(
            """
            SELECT c.relname AS name, row_security_active(c.oid) AS hides,
                c.relrowsecurity AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid) AS walled
            FROM pg_class c
            WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND (c.relname = 'runs'
                OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'user_id' AND NOT a.attisdropped))
            ORDER BY c.relname
            """
        )
    ).all()
    user, version, known = connection.execute(
        text(
            f"SELECT current_user, current_setting('server_version_num')::int, to_regrole('{ROLE}') IS NOT NULL"
        )
    ).one()
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
