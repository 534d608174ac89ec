"""Note which users' searches may find something else than before, so that a kept answer is given only while nothing changed.

Triggers on every table that a search reads add a row per transaction and user: no statement can forget it. Rows are
only added, and removed by later transactions that add one of their own. So the set of a user's tokens that a snapshot
shows is another one whenever anything was committed in between, also by a transaction that began long before; and no
transaction waits for another's row.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

READ = (
    "videos", "scenes", "embeddings", "lexical_weights", "screen_texts", "people", "face_tracks", "scene_people"
)  # fmt: skip
ROWS = {"INSERT": "NEW", "UPDATE": "NEW", "DELETE": "OLD"}


def upgrade() -> None:
    op.create_table(
        "search_changes",
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("transaction", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", "transaction", name=op.f("pk_search_changes")),
    )
    op.execute("ALTER TABLE search_changes ENABLE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY own_rows ON search_changes FOR SELECT"
        " USING (user_id = nullif(current_setting('app.user_id', true), ''))"
    )
    op.execute(
        """
        CREATE FUNCTION note_search_change() RETURNS trigger LANGUAGE plpgsql AS $note$
        BEGIN
            -- A delete that cascades runs this for each parent row, mostly for nothing.
            IF NOT EXISTS (SELECT FROM changed) THEN
                RETURN NULL;
            END IF;
            WITH noted AS (
                INSERT INTO search_changes AS c (user_id, transaction, token)
                SELECT of_user.user_id, pg_current_xact_id()::text::bigint, gen_random_uuid()
                FROM (SELECT DISTINCT user_id FROM changed) of_user
                -- A new token also for a restored row that has the number of this transaction.
                ON CONFLICT (user_id, transaction) DO UPDATE SET token = excluded.token
                RETURNING c.user_id, c.xmax = 0 AS is_first
            ), ended AS (
                SELECT c.user_id, c.transaction FROM search_changes c JOIN noted USING (user_id)
                WHERE is_first AND c.transaction < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
                FOR UPDATE OF c SKIP LOCKED
            )
            DELETE FROM search_changes c USING ended
            WHERE c.user_id = ended.user_id AND c.transaction = ended.transaction;
            RETURN NULL;
        END
        $note$
        """
    )
    for table in READ:
        for event, rows in ROWS.items():
            op.execute(
                f"CREATE TRIGGER note_search_{event.lower()} AFTER {event} ON {table}"
                f" REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION note_search_change()"
            )


def downgrade() -> None:
    for table in READ:
        for event in ROWS:
            op.execute(f"DROP TRIGGER note_search_{event.lower()} ON {table}")
    op.execute("DROP FUNCTION note_search_change()")
    op.drop_table("search_changes")
