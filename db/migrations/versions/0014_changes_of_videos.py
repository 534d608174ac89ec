"""Keep the transaction that last changed a video, so that a watcher reads what has changed since it last looked.

A trigger writes ``videos.changed``: no statement can forget it. ``jobs`` gets an index for the number of jobs done in the
last minute.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("videos", sa.Column("changed", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("ix_videos_user_id_changed", "videos", ["user_id", "changed"])
    op.execute(
        "CREATE FUNCTION set_changed() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.changed := pg_current_xact_id()::text::bigint; RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER set_changed BEFORE INSERT OR UPDATE ON videos FOR EACH ROW EXECUTE FUNCTION set_changed()"
    )
    op.create_index("ix_jobs_done", "jobs", ["finished_at"], postgresql_where=sa.text("state = 'done'"))


def downgrade() -> None:
    op.drop_index("ix_jobs_done", table_name="jobs")
    op.execute("DROP TRIGGER set_changed ON videos")
    op.execute("DROP FUNCTION set_changed()")
    op.drop_index("ix_videos_user_id_changed", table_name="videos")
    op.drop_column("videos", "changed")
